"""What a reader says of each of the K passages of a question.

A retriever can learn from any of these. Izacard et al. 2022 (Atlas), section 2.2:

    pdist   log p(y | q, d_i), each passage read alone          `mean_log_prob`
    loop    -log p(y | q, all passages but d_i)                 minus the same
    adist   how much of d_i the decoder's attention takes       `attention_mass`

and emdr2 (Singh et al. 2021, EMDR2) marginalises the passages out, token by token:
`ops.mixtures.ensemble` over the retriever's weights and log p(y_t | q, d_i, y_{<t}).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Shaped

from rlm_jax.ops import Array

RELEASED_DIVISOR = 256.0
"""Of Atlas's code in `attention_mass`, whatever the length of a passage."""


def total_log_prob(
    log_p: Float[Array, "*B L"], mask: Shaped[Array, "*B L"]
) -> Float32[jax.Array, " *B"]:
    """sum_t log p(y_t), in nats, over the tokens that count: the papers' log p(y)."""
    kept = jnp.where(mask > 0, log_p, 0.0)
    return kept.astype(jnp.float32).sum(-1)


def mean_log_prob(
    log_p: Float[Array, "*B L"], mask: Shaped[Array, "*B L"]
) -> Float32[jax.Array, " *B"]:
    """The mean of log p(y_t) over the tokens that count, as Atlas's code has it.

    Without such a token it is 0.
    """
    number = (mask > 0).sum(-1)
    return total_log_prob(log_p, mask) / jnp.maximum(number, 1)


def sharpened(
    log_p: Float[Array, "*B V"], temperature: float | Array
) -> Float32[jax.Array, "*B V"]:
    """log softmax(log p / t) over the vocabulary.

    Atlas's emdr2 divides the reader's logits by its temperature, 0.01; EMDR2 itself
    has none, which is 1.
    """
    return jax.nn.log_softmax(log_p.astype(jnp.float32) / temperature)


def attention_mass(
    scores: Float[Array, "J B H L M"],
    value_norms: Float[Array, "J B H M"],
    mask: Shaped[Array, "B M"],
    target_mask: Shaped[Array, "B L"],
    *,
    passages: int,
    divisor: float = RELEASED_DIVISOR,
) -> Float32[jax.Array, "B {passages}"]:
    """What the decoder's cross-attention takes of each passage, by value vectors.

        G_i = 1 / (c J |y|) sum over layers, t, tokens m of d_i of
              mean_h softmax_m(scores)_{h, t, m} |v_{h, m}|

    The softmax is over the tokens of all passages. Izacard et al. 2022, section 2.2
    (ADist); the released code looks for it under a name that it does not have.

    Args:
      scores: float32, before the softmax, of J layers and H heads.
      value_norms: lengths of the value vectors.
      mask: of the M = passages x tokens vectors, 1 = keep.
      target_mask: of the targets y, 1 = counts.
      passages: K.
      divisor: c.

    Returns:
      float32; 0 of a passage without a vector.
    """
    there = (mask > 0)[None, :, None, None]
    share = jax.nn.softmax(scores.astype(jnp.float32), axis=-1, where=there)
    # Of a memory without a vector the softmax is no number.
    taken = jnp.where(there, share, 0.0) * value_norms[:, :, :, None]
    counts = (target_mask > 0)[None, :, None, :, None]
    each = jnp.where(counts, taken, 0.0).mean(2).sum((0, 2))
    number = scores.shape[0] * jnp.maximum((target_mask > 0).sum(-1), 1)
    mass = each.reshape(each.shape[0], passages, -1).sum(-1)
    return mass / (divisor * number[:, None])
