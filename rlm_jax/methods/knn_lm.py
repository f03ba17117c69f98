"""kNN-LM: generalization through memorization (Khandelwal et al. 2020).

    p(y | x) = lambda p_kNN(y | x) + (1 - lambda) p_LM(y | x)                   (eq. 3)
    p_kNN(y | x) proportional to sum_{(k_i, v_i) in N : v_i = y} exp(-||q - k_i||^2 / t)

where q, and each key k_i, is the input of the last feed-forward layer at its position
and v_i the token that followed. The language model is trained as ever; the datastore is
a pass over its training tokens. t is 1 in the paper, and squared distances enter, not
distances.

The search runs on the host, between the language model's scores and the mixture:
``rlm_jax.evaluate.knn`` looks the neighbours up and calls the two equations below.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
from jaxtyping import Float, Float32, Int

from rlm_jax.configuration import check_fields
from rlm_jax.method import Method
from rlm_jax.methods.lm import LMConfig, lm
from rlm_jax.models.decoder import DecoderConfig
from rlm_jax.ops import Array, mixtures


@dataclasses.dataclass
class KnnLMConfig:
    """A decoder, and how its neighbours' distribution is formed and mixed in."""

    SHARES: ClassVar = ("weight",)

    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    k: int = 1024  # neighbours of a token
    metric: Literal["l2", "ip"] = "l2"  # negated squared distance, inner product
    temperature: float = 1.0  # that similarities are divided by
    weight: float = 0.25  # lambda


SIMILARITIES = {"l2": mixtures.negative_squared_l2, "ip": mixtures.inner_product}
"""Metric -> the similarity of queries [..., D] and keys [..., K, D]: [..., K]."""


def neighbour_log_probs(
    similarities: Float[Array, "N K"],
    values: Int[Array, "N K"],
    targets: Int[Array, " N"],
    *,
    k: int,
    temperature: float | Array,
) -> Float32[jax.Array, " N"]:
    """log p_kNN(y | x) of the targets y over the k nearest neighbours.

    Args:
      similarities: float32, nearest first, K >= k; -inf where absent.
      values: int32, the tokens that followed the neighbours.
      targets: int32.
      k: neighbours that count.
      temperature: t.

    Returns:
      float32; minus infinity where no neighbour's value is the target.
    """
    return mixtures.knn_log_probs(
        similarities[:, :k], values[:, :k], targets, temperature=temperature
    )


def mix(
    log_probs: Float[Array, " N"],
    knn_log_probs: Float[Array, " N"],
    weight: float | Array,
) -> Float32[jax.Array, " N"]:
    """log p(y | x) of eq. 3 from log p_LM and log p_kNN, elementwise."""
    return mixtures.interpolate(log_probs, knn_log_probs, weight)


def knn_lm(config: KnnLMConfig) -> Method:
    """The plain language model, whose ``score`` gives queries, keys and p_LM.

    Nothing else is trained. ``evaluate`` is the model without neighbours.

    Raises:
      UserError: a weight outside [0, 1], or a temperature that is not positive.
    """
    check_fields(config)
    return lm(LMConfig(config.decoder))
