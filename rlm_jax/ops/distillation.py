"""What a retriever learns from a language model's likelihoods of K documents.

Both take log-probabilities over the documents, as `ops.mixtures.log_weights` makes them
of scores: minus infinity for an absent document.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32

from rlm_jax.ops import Array, mixtures


def kl(
    log_p: Float[Array, "*B K"], log_q: Float[Array, "*B K"]
) -> Float32[jax.Array, " *B"]:
    """KL(p || q) = sum_i p_i (log p_i - log q_i), in nats.

    Systems differ in the direction: REPLUG-LSR has the retriever as p, FiD and Atlas
    as q. Stopping the gradient of the teacher's side is up to the caller.

    Args:
      log_p, log_q: float32; minus infinity where a document is absent.

    Returns:
      float32; 0, with zero gradients, where p is nowhere; infinite where q lacks
      a document that p has.
    """
    present = log_p != -jnp.inf  # NaN is a fault to be seen
    # The untaken branch of a `where` must be finite, or its gradient is 0 times inf.
    difference = jnp.where(present, log_p, 0.0) - jnp.where(present, log_q, 0.0)
    p = jnp.where(present, jnp.exp(jnp.where(present, log_p, 0.0)), 0.0)
    return (p * difference).sum(-1)


def marginal_nll(
    log_weights: Float[Array, "*B K"], log_likelihoods: Float[Array, "*B K"]
) -> Float32[jax.Array, " *B"]:
    """-log sum_i w_i p(y | d_i), in nats: the documents marginalised out.

    Over whole continuations y, as in-context RALM's trained reranker and RAG-Sequence
    have it; `mixtures.ensemble` is the same token by token.

    Args:
      log_weights: float32; minus infinity where a document is absent.
      log_likelihoods: float32, log p(y | d_i).

    Returns:
      float32; infinite, with zero gradients, where no document is present.
    """
    return -mixtures.ensemble(log_weights, log_likelihoods[..., None])[..., 0]


def rank_correlation(
    a: Float[Array, "*B K"], b: Float[Array, "*B K"], present: Bool[Array, "*B K"]
) -> Float32[jax.Array, " *B"]:
    """Kendall's tau-a of two scorings of K documents, in [-1, 1].

        mean over pairs i < j of sign(a_i - a_j) sign(b_i - b_j)

    Args:
      a, b: scores.
      present: pairs with an absent document do not count.

    Returns:
      float32; 0 where fewer than two documents are present.
    """
    pairs = present[..., :, None] & present[..., None, :]
    number = present.sum(-1)

    def order(x):
        x = jnp.where(present, x, 0.0)
        return jnp.sign(x[..., :, None] - x[..., None, :])

    agreed = jnp.where(pairs, order(a) * order(b), 0.0).sum((-2, -1))
    return agreed.astype(jnp.float32) / jnp.maximum(number * (number - 1), 1)
