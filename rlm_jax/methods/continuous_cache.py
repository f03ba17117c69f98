"""The continuous cache (Grave et al. 2017, section 3).

    p(w | x_1..t) = (1 - lambda) p_LM(w | x_1..t) + lambda p_cache(w | x_1..t)
    p_cache(w | x_1..t) proportional to sum_{i < t : x_{i+1} = w} exp(theta h_t.h_i)

where i runs over the recent past, h_t is the model's state and x_{i+1} the token that
followed h_i. Nothing is trained beside a plain language model, so there is no builder:
theta and lambda are tuned. The states here are the inputs of the last feed-forward
layer, as for kNN-LM and TRIME, and theta is 1 / (t sqrt(D)) with the temperature t of
`rlm_jax.methods.trime.scale`; the paper's are those of an LSTM. TRIME differs in that
it trains with this sum, and in that the sum joins the vocabulary's normaliser.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from rlm_jax.ops import Array, memory, mixtures


def mix(
    log_probs: Float[Array, " N"], sums: memory.LogSums, weight: float | Array
) -> Float32[jax.Array, " N"]:
    """log p(y_t | x_1..t) of the targets y.

    Args:
      log_probs: float32, log p_LM of the targets.
      sums: over the recent past, as `rlm_jax.methods.trime.log_sums` makes them, with
        theta as the scale: of all slots, and of those whose value is the target.
      weight: lambda.

    Returns:
      float32; where the past is empty, log p_LM.
    """
    empty = jnp.isneginf(sums.all)
    cache = sums.positive - jnp.where(empty, 0.0, sums.all)
    mixed = mixtures.interpolate(log_probs, cache, weight)
    return jnp.where(empty, log_probs, mixed)
