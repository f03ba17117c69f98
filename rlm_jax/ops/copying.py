"""A softmax over the vocabulary and over the tokens of a source at once.

    p(y) = (e^{g_y} + sum_{j : x_j = y} e^{c_j}) / (sum_v e^{g_v} + sum_j e^{c_j})

for the logits g of the vocabulary and the scores c of the source's tokens x: a decoder
can write what it knows and copy what it reads (Gu et al. 2016, CopyNet, eq. 4 to 8,
whose copying scores have a tanh).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int, Shaped

from rlm_jax.ops import Array
from rlm_jax.ops.memory import LogSums


def log_sums(
    scores: Float[Array, "B L M"],
    tokens: Int[Array, "B M"],
    mask: Shaped[Array, "B M"],
    targets: Int[Array, "B L"],
) -> LogSums:
    """The source's two log-sum-exps for `ops.losses.joint_nll`, float32 [B, L].

    Args:
      scores: c of each source token, for each target.
      tokens: int32, the source.
      mask: 1 = a token of the source.
      targets: int32; all tokens, and those that are equal to the target.
    """
    there = jnp.broadcast_to((mask > 0)[:, None], scores.shape)
    same = there & (tokens[:, None] == targets[..., None])
    scores = scores.astype(jnp.float32)
    return LogSums(_log_sum_exp(scores, there), _log_sum_exp(scores, same))


def log_distributions(
    logits: Float[Array, "B L V"],
    scores: Float[Array, "B L M"],
    tokens: Int[Array, "B M"],
    mask: Shaped[Array, "B M"],
) -> Float32[jax.Array, "B L V"]:
    """log p(y) of every y; arguments as in `log_sums`."""
    there = (mask > 0)[:, None]
    scores = jnp.where(there, scores.astype(jnp.float32), -jnp.inf)
    logits = logits.astype(jnp.float32)
    largest = jnp.maximum(scores.max(-1), logits.max(-1))[..., None]
    weights = jnp.exp(scores - largest)
    of_row = lambda tokens, x: (
        jnp.zeros((len(x), logits.shape[-1])).at[:, tokens].add(x)
    )
    copied = jax.vmap(of_row)(tokens, weights)
    log_p = jnp.log(jnp.exp(logits - largest) + copied)
    return log_p - jax.nn.logsumexp(log_p, axis=-1, keepdims=True)


def _log_sum_exp(x, where):
    """Minus infinity, with zero gradients, where the mask is empty."""
    any_there = where.any(-1)
    x = jnp.where(where, x, -jnp.inf)
    sums = jax.nn.logsumexp(jnp.where(any_there[..., None], x, 0.0), axis=-1)
    return jnp.where(any_there, sums, -jnp.inf)
