"""REPLUG-LSR: a retriever learns which documents help a frozen language model.

    P(d_i | x) = softmax_i(s(x, d_i) / gamma),  s = q.c
    Q(d_i | x, y) = softmax_i(log p_LM(y | d_i, x) / beta)
    L = KL(P || Q)                       (Shi et al. 2023, section 4; Q is constant)

over the K documents that an index found for the context x, y being what follows. The
index is stale (`rlm_jax.retrieval.refresh`); the K documents are encoded and scored
again with the current parameters, so only which documents they are is out of date. The
released code of this part does not run; the equations are the paper's.
"""

import dataclasses

from rlm_jax.configuration import check_fields
from rlm_jax.method import Method
from rlm_jax.methods.distilled import distilled
from rlm_jax.models.encoder import EncoderConfig, embedder
from rlm_jax.ops import distillation


@dataclasses.dataclass
class REPLUGLSRConfig:
    """One encoder for contexts and documents, and the two temperatures."""

    # Vectors of length 1: the paper's scores are cosines, and gamma goes with them.
    encoder: EncoderConfig = dataclasses.field(
        default_factory=lambda: EncoderConfig(normalise=True)
    )
    gamma: float = 0.1  # of the retriever's scores
    beta: float = 0.1  # of the language model's
    chunk: int = 0  # rows encoded at once, 0 = all; see `encoder.in_chunks`
    k: int = 20  # documents of a context


def replug_lsr(config: REPLUGLSRConfig) -> Method:
    """The method; parameters are the encoder's.

    Batches are those of `distilled`. ``teacher_scores`` are log p_LM(y | d_i, x): beta
    belongs to a mean over y's tokens or to their sum, whichever is given.

    Raises:
      UserError: a temperature, chunk or k that is out of range.
    """
    return dual_encoder(config, *embedder(config.encoder))


def dual_encoder(config: REPLUGLSRConfig, init, embed) -> Method:
    """`replug_lsr` over any encoder: ``init(key)``, ``embed(params, batch, key=)``."""
    c = config
    check_fields(c)
    return distilled(
        init,
        embed,
        distillation.kl,
        k=c.k,
        student_temperature=c.gamma,
        teacher_temperature=c.beta,
        chunk=c.chunk,
    )
