"""FiD-KD: a retriever learns where a Fusion-in-Decoder reader looks.

    s(q, p) = E(q).E(p) / sqrt(d)
    L = KL(softmax_i(G_i) || softmax_i(s(q, p_i)))       (Izacard and Grave 2021, 3.3)

over the K passages that the reader was given. G_i, a constant, is the mean over heads,
layers and tokens of passage i of the decoder's cross-attention before its softmax, at
the first decoded token (`fid.relevance`). The released code divides the sum over
questions by B K in place of B (`KLDivLoss`'s default), which is another learning rate;
its encoder has a projection and a LayerNorm of every token before the mean
(``encoder.projection_norm``).
"""

import dataclasses
from typing import ClassVar

from rlm_jax.configuration import check_fields
from rlm_jax.method import Method
from rlm_jax.methods.distilled import distilled
from rlm_jax.models.encoder import EncoderConfig, embedder
from rlm_jax.ops import distillation


@dataclasses.dataclass
class FiDKDConfig:
    """One encoder for questions and passages, and the two temperatures."""

    MAY_BE_ZERO: ClassVar = ("temperature",)

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    # 0: sqrt(d), the paper's. Vectors of length 1 need a smaller one, as 0.05.
    temperature: float = 0.0
    reader_temperature: float = 1.0  # of the cross-attention; the paper has none
    chunk: int = 0  # rows encoded at once, 0 = all; see `encoder.in_chunks`
    k: int = 100  # passages of a question


def fid_kd(config: FiDKDConfig) -> Method:
    """The method; parameters are the encoder's, batches those of `distilled`.

    Raises:
      UserError: a temperature, chunk or k that is out of range.
    """
    c = config
    check_fields(c)
    width = c.encoder.projection or c.encoder.width
    return distilled(
        *embedder(c.encoder),
        lambda log_p, log_q: distillation.kl(log_q, log_p),
        k=c.k,
        student_temperature=c.temperature or width**0.5,
        teacher_temperature=c.reader_temperature,
        chunk=c.chunk,
    )
