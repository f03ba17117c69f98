"""What a reader says of each of the K passages of a question.

A retriever can learn from any of these. Izacard et al. 2022 (Atlas), section 2.2:

    pdist   log p(y | q, d_i), each passage read alone          `mean_log_prob`
    loop    -log p(y | q, all passages but d_i)                 minus the same
    adist   how much of d_i the decoder's attention takes       `attention_mass`

and emdr2 (Singh et al. 2021, EMDR2) marginalises the passages out, token by token:
`ops.mixtures.ensemble` over the retriever's weights and log p(y_t | q, d_i, y_{<t}),
whose gradient pulls these weights to the passages' `posterior`.

What a passage is worth besides depends on the others that are read: `average_change`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
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


def posterior(
    log_weights: Float[Array, "*B K"],
    log_p: Float[Array, "*B K L"],
    mask: Shaped[Array, "*B L"],
) -> Float32[jax.Array, "*B K"]:
    """How much each passage has made of y: what EMDR2 pulls the retriever's weights to.

        r_i = mean over t of p_i p(y_t | d_i) / sum_j p_j p(y_t | d_j)

    For L = -sum_t log sum_i p_i p(y_t | d_i) and p = softmax(s) the gradient is
    dL/ds_i = |y| (p_i - r_i).

    Args:
      log_weights: log p_i, minus infinity of an absent passage.
      log_p: log p(y_t | q, d_i, y_{<t}), in nats.
      mask: of the targets, 1 = counts.

    Returns:
      float32; 0 of an absent passage, or where no target counts.
    """
    both = log_weights.astype(jnp.float32)[..., None] + log_p
    there = jnp.isfinite(log_weights)[..., None]
    made = jax.nn.softmax(both, axis=-2, where=jnp.broadcast_to(there, both.shape))
    counts = (mask > 0)[..., None, :] & there
    total = jnp.where(counts, made, 0.0).sum(-1)
    return total / jnp.maximum((mask > 0).sum(-1), 1)[..., None]


def average_change(
    of_subsets: Float[Array, "*B S"], passages: int
) -> Float32[jax.Array, "*B {passages}"]:
    """What a passage adds to log p(y), on average over what else is read.

        phi_i = sum over subsets S without i of
                |S|! (K - |S| - 1)! / K!  (log p(y | S, d_i) - log p(y | S))

    Shapley's (1953) value: the mean over all orders in which the passages could come.
    The phi_i add up to log p(y | all) - log p(y | none).

    Args:
      of_subsets: log p(y | S) of all S = 2^K subsets; bit i of a place is passage i.
      passages: K.
    """
    return jnp.einsum("...s,ks->...k", of_subsets, _shapley(passages))


def _shapley(number: int) -> np.ndarray:
    """float32 [K, 2^K], what each subset counts for each passage."""
    weights = np.zeros((number, 1 << number))
    for subset in range(1 << number):
        size = subset.bit_count()
        for i in range(number):
            others = size - (subset >> i & 1)
            share = math.factorial(others) * math.factorial(number - others - 1)
            sign = 1 if subset >> i & 1 else -1
            weights[i, subset] = sign * share / math.factorial(number)
    return weights.astype(np.float32)


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
