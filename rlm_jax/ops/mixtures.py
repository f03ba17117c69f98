"""Distributions made of neighbours, and mixtures with and of language models'."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int

from rlm_jax.ops import Array


def negative_squared_l2(
    queries: Float[Array, "*B D"], keys: Float[Array, "*B K D"]
) -> Float32[jax.Array, "*B K"]:
    """-||q - k||^2 for queries and their neighbours' keys.

    The difference is formed before it is squared, in float32: near neighbours of long
    vectors keep their distance, which q.q - 2 q.k + k.k loses to cancellation.
    """
    difference = queries[..., None, :].astype(jnp.float32) - keys.astype(jnp.float32)
    return -jnp.square(difference).sum(-1)


def inner_product(
    queries: Float[Array, "*B D"], keys: Float[Array, "*B K D"]
) -> Float32[jax.Array, "*B K"]:
    """q . k for queries and their neighbours' keys."""
    return jnp.einsum(
        "...d,...kd->...k", queries, keys, preferred_element_type=jnp.float32
    )


def knn_log_probs(
    similarities: Float[Array, "*B K"],
    values: Int[Array, "*B K"],
    targets: Int[Array, " *B"],
    *,
    temperature: float | Array = 1.0,
) -> Float32[jax.Array, " *B"]:
    """log p_kNN(target), with p_kNN(y) = sum_{i : v_i = y} softmax(similarity / t)_i.

    kNN-LM (Khandelwal et al. 2020), eq. 2, where similarity = -||q - k_i||^2 and t = 1.

    Args:
      similarities: float32; -inf for an absent neighbour.
      values: int32, each neighbour's next token.
      targets: int32.
      temperature: t.

    Returns:
      float32; minus infinity where no neighbour's value is the target (the
      released code says about -10000 there).
    """
    logits = similarities.astype(jnp.float32) / temperature
    present = jnp.isfinite(logits)
    hit = present & (values == targets[..., None])
    # Without a hit there may be no neighbour at all, and -inf - -inf is not a number.
    difference = _log_sum_exp(logits, hit) - _log_sum_exp(logits, present)
    return jnp.where(hit.any(-1), difference, -jnp.inf)


def _log_sum_exp(logits, where):
    """Log-sum-exp over a mask; 0, with zero gradients, where the mask is empty."""
    any_there = where.any(-1)
    safe = jnp.where(where, logits, -jnp.inf)
    safe = jnp.where(any_there[..., None], safe, 0.0)
    return jnp.where(any_there, jax.nn.logsumexp(safe, axis=-1), 0.0)


def knn_distribution(
    similarities: Float[Array, "*B K"],
    values: Int[Array, "*B K"],
    vocab_size: int,
    *,
    temperature: float | Array = 1.0,
) -> Float32[jax.Array, "*B {vocab_size}"]:
    """The whole kNN distribution, float32; zeros without any neighbour."""
    logits = similarities.astype(jnp.float32) / temperature
    weights = jax.nn.softmax(logits, axis=-1, where=jnp.isfinite(logits))
    flat_values = values.reshape(-1, values.shape[-1])
    flat = jax.vmap(lambda v, w: jnp.zeros(vocab_size).at[v].add(w))(
        flat_values, weights.reshape(flat_values.shape)
    )
    return flat.reshape(*values.shape[:-1], vocab_size)


def interpolate(
    log_p: Float[Array, " *B"], log_q: Float[Array, " *B"], weight: float | Array
) -> Float32[jax.Array, " *B"]:
    """log [(1 - weight) p + weight q], elementwise; kNN-LM eq. 3 with q = p_kNN.

    A weight of 0 gives ``log_p`` exactly, and of 1 ``log_q``.
    """
    weight = jnp.asarray(weight, jnp.float32)
    return jnp.logaddexp(jnp.log1p(-weight) + log_p, jnp.log(weight) + log_q)


def log_weights(
    scores: Float[Array, "*B K"],
    present: Bool[Array, "*B K"],
    *,
    temperature: float | Array = 1.0,
) -> Float32[jax.Array, "*B K"]:
    """log softmax(scores / t) over those present: what retrieved documents weigh.

    Args:
      scores: float32; those of absent documents may be anything.
      present: whether there is such a document.
      temperature: t.

    Returns:
      float32; minus infinity where absent, hence everywhere where none is
      present.
    """
    present = present.astype(bool)
    logits = jnp.where(present, scores, 0.0).astype(jnp.float32) / temperature
    normaliser = _log_sum_exp(logits, present)[..., None]
    return jnp.where(present, logits - normaliser, -jnp.inf)


def ensemble(
    log_weights: Float[Array, "*B K"], log_probs: Float[Array, "*B K T"]
) -> Float32[jax.Array, "*B T"]:
    """log sum_i w_i p(y_t | d_i): one distribution out of one for each document.

    REPLUG (Shi et al. 2023), section 3.2, token by token, as released.

    Args:
      log_weights: float32; minus infinity for an absent document, whose ``log_probs``
        may be anything.
      log_probs: float32, log p(y_t | d_i).

    Returns:
      float32; minus infinity, with zero gradients, where no document is present: there
      is no distribution then, and a loss over it is infinite.
    """
    # Not "> -inf", which would take NaN, a fault to be seen, for an absent document.
    present = jnp.broadcast_to(log_weights[..., None] != -jnp.inf, log_probs.shape)
    joint = log_weights[..., None] + jnp.where(present, log_probs, 0.0)
    joint, present = (jnp.moveaxis(x, -2, -1) for x in (joint, present))
    return jnp.where(present.any(-1), _log_sum_exp(joint, present), -jnp.inf)
