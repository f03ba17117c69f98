"""The systems: one file each, with its configuration, its equation and its builder."""

from rlm_jax.methods import knn_lm, lm, trime

METHODS = {
    "lm": (lm.LMConfig, lm.lm),
    "knn_lm": (knn_lm.KnnLMConfig, knn_lm.knn_lm),
    "trime": (trime.TrimeConfig, trime.trime),
}
"""Name -> (configuration, builder)."""
