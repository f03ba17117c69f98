"""The systems: one file each, with its equation, its configuration and its builder.

In-context RALM and the continuous cache train nothing of their own: their files have
neither configuration nor builder.
"""

from rlm_jax.methods import (
    atlas,
    contriever,
    dpr,
    fid,
    fid_kd,
    knn_lm,
    lm,
    masked_lm,
    npm,
    realm,
    replug,
    replug_lsr,
    reranker,
    retro,
    rpt,
    trime,
)

METHODS = {
    "lm": (lm.LMConfig, lm.lm),
    "knn_lm": (knn_lm.KnnLMConfig, knn_lm.knn_lm),
    "trime": (trime.TrimeConfig, trime.trime),
    "retro": (retro.RetroConfig, retro.retro),
    "rpt": (rpt.RPTConfig, rpt.rpt),
    "dpr": (dpr.DPRConfig, dpr.dpr),
    "contriever": (contriever.ContrieverConfig, contriever.contriever),
    "contriever_in_batch": (
        contriever.InBatchConfig,
        contriever.contriever_in_batch,
    ),
    "fid": (fid.FiDConfig, fid.fid),
    "fid_kd": (fid_kd.FiDKDConfig, fid_kd.fid_kd),
    "atlas": (atlas.AtlasConfig, atlas.atlas),
    "realm": (realm.REALMConfig, realm.realm),
    "replug": (replug.REPLUGConfig, replug.replug),
    "replug_lsr": (replug_lsr.REPLUGLSRConfig, replug_lsr.replug_lsr),
    "npm": (npm.NPMConfig, npm.npm),
    "masked_lm": (masked_lm.MaskedLMConfig, masked_lm.masked_lm),
    "reranker": (reranker.RerankerConfig, reranker.reranker),
}
"""Name -> (configuration, builder)."""
