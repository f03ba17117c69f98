"""The systems: one file each, with its configuration, its equation and its builder."""

from rlm_jax.methods import contriever, dpr, knn_lm, lm, trime

METHODS = {
    "lm": (lm.LMConfig, lm.lm),
    "knn_lm": (knn_lm.KnnLMConfig, knn_lm.knn_lm),
    "trime": (trime.TrimeConfig, trime.trime),
    "dpr": (dpr.DPRConfig, dpr.dpr),
    "contriever": (contriever.ContrieverConfig, contriever.contriever),
    "contriever_in_batch": (
        contriever.InBatchConfig,
        contriever.contriever_in_batch,
    ),
}
"""Name -> (configuration, builder)."""
