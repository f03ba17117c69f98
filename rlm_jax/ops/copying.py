"""A softmax over the vocabulary and over the tokens of a source at once.

    p(y) = (e^{g_y} + sum_{j : x_j = y} e^{c_j}) / (sum_v e^{g_v} + sum_j e^{c_j})

for the logits g of the vocabulary and the scores c of the source's tokens x: a decoder
can write what it knows and copy what it reads (Gu et al. 2016, CopyNet, eq. 4 to 8,
whose copying scores have a tanh).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int, Int32, Shaped

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


def match_lengths(
    tokens: Int[Array, "B M"], first: Bool[Array, " M"], targets: Int[Array, "B L"]
) -> Int32[jax.Array, "B L M"]:
    """How many tokens before each of the source's are the last that were written.

        m_t(j) = [x_{j-1} = y_{t-1}] (1 + m_{t-1}(j - 1)),  m_0 = 0

    A token whose predecessors were just written is the one with which copying goes on;
    a name of several tokens is seldom in doubt after two of them.

    Args:
      tokens: int32, the source x.
      first: where a part of the source begins, which nothing precedes.
      targets: int32 y; m_t counts those before y_t.
    """

    def one_step(lengths, written):
        after = matches_after(lengths, tokens, first, written)
        return after, after

    begin = jnp.zeros(tokens.shape, jnp.int32)
    _, later = jax.lax.scan(one_step, begin, targets[:, :-1].T)
    return jnp.concatenate([begin[:, None], later.swapaxes(0, 1)], axis=1)


def matches_after(
    lengths: Int32[Array, "R M"],
    tokens: Int[Array, "R M"],
    first: Bool[Array, " M"],
    written: Int[Array, " R"],
) -> Int32[jax.Array, "R M"]:
    """`match_lengths` a step later, when ``written`` has been written."""
    ending = jnp.where(tokens == written[:, None], lengths + 1, 0)
    before = jnp.pad(ending[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(first, 0, before)


def _log_sum_exp(x, where):
    """Minus infinity, with zero gradients, where the mask is empty."""
    any_there = where.any(-1)
    x = jnp.where(where, x, -jnp.inf)
    sums = jax.nn.logsumexp(jnp.where(any_there[..., None], x, 0.0), axis=-1)
    return jnp.where(any_there, sums, -jnp.inf)
