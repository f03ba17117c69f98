"""Losses as sums and weights."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Shaped

from rlm_jax.ops import Array
from rlm_jax.ops.memory import LogSums


def weighted(
    values: Shaped[Array, " *B"], mask: Shaped[Array, " *B"]
) -> tuple[Float32[jax.Array, ""], Float32[jax.Array, ""]]:
    """(sum of values over the mask, sum of the mask), float32 scalars.

    Values under a zero mask count for nothing even where they are infinite or NaN.
    """
    mask = jnp.asarray(mask, jnp.float32)
    kept = jnp.where(mask > 0, values, 0.0).astype(jnp.float32)
    # Not a dot product: an accelerator would round its factors to 10 bits or fewer.
    return (kept * mask).sum(), mask.sum()


def joint_nll(
    target_score: Float[Array, " *B"],
    log_normaliser: Float[Array, " *B"],
    memory: LogSums,
) -> Float32[jax.Array, " *B"]:
    """Cross-entropy normalised over the vocabulary and a memory at once, in nats.

        -log [ (e^{E_y.f} + sum_{positive j} e^{s_j})
               / (sum_v e^{E_v.f} + sum_{visible j} e^{s_j}) ]

    With an empty memory it is the plain cross-entropy. TRIME (Zhong et al. 2022), eq.
    4.

    Args:
      target_score, log_normaliser: float32, the two logarithms of the vocabulary.
      memory: `ops.memory.log_sums` of the same shape.
    """
    return jnp.logaddexp(log_normaliser, memory.all) - jnp.logaddexp(
        target_score, memory.positive
    )
