"""A ranking loss over scored candidates, with NDCG's weights (LambdaRank's).

Of each query S candidates have a target score; the others of the P that it may choose
from have none, and are worth less than any.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int

from rlm_jax.ops import Array


class Candidates(NamedTuple):
    """What is known of S of the P choices of each query."""

    places: Int[jax.Array, "*B S"]  # among the P, no place twice
    targets: Float[jax.Array, "*B S"]
    present: Bool[jax.Array, "*B S"]


class PairLoss(NamedTuple):
    """The sum over all pairs of each query, and their number, float32."""

    total: Float32[jax.Array, " *B"]
    pairs: Float32[jax.Array, " *B"]


def pair_weights(
    scores: Float[Array, "*B P"],
    candidates: Candidates,
    visible: Bool[Array, "*B P"],
    threshold: float = 0.0,
) -> Float32[jax.Array, "*B S P"]:
    """What a candidate in place of another choice would change in NDCG.

        |(2^{t_l} - 2^{t_j}) (log2(1 + r_l) - log2(1 + r_j))| / max(Z, 0.001)

    r is the rank by score among what is visible, from 1, and Z the discounted gain of
    the best order; t counts as 0 where it is not above the threshold. As the released
    code has it the difference is that of the discounts, where NDCG's would be that of
    their reciprocals. All terms are divided by the largest 2^t, which changes nothing
    but the range of the numbers.

    Args:
      scores: the P scores.
      candidates: those with a target.
      visible: what may be chosen.
      threshold: a positive candidate's target is above it.

    Source: OhadRubin/RPT, compute_ndcg_lambda; Burges 2010 for LambdaRank.
    """
    scores, visible = jnp.asarray(scores), jnp.asarray(visible)
    places, targets, present = candidates
    hidden = jnp.where(visible, scores, -jnp.inf)
    order = jnp.argsort(-hidden, axis=-1, stable=True)
    ranks = jnp.argsort(order, axis=-1) + 1
    positive = present & (targets > threshold) & _at(visible, places)
    gains = jnp.where(positive, targets, 0.0).astype(jnp.float32)
    largest = gains.max(-1, keepdims=True, initial=0.0)
    powers = jnp.exp2(gains - largest)
    nothing = jnp.exp2(-largest)
    best_first = -jnp.sort(-(powers - nothing), axis=-1)
    discounts = jnp.log2(jnp.arange(2, 2 + gains.shape[-1], dtype=jnp.float32))
    discounts = jnp.broadcast_to(discounts, gains.shape)
    normaliser = (best_first / discounts).sum(-1, keepdims=True)
    normaliser = jnp.maximum(normaliser, 0.001 * nothing)
    all_powers = _scatter(places, powers, present, visible.shape, nothing)
    all_discounts = jnp.log2(1.0 + ranks)
    discounts = _at(all_discounts, places)
    change = (powers[..., None] - all_powers[..., None, :]) * (
        discounts[..., None] - all_discounts[..., None, :]
    )
    return jnp.abs(change) / normaliser[..., None]


def pair_loss(
    scores: Float[Array, "*B P"],
    candidates: Candidates,
    visible: Bool[Array, "*B P"],
    *,
    threshold: float = 0.0,
    margin: float | Float[Array, ""] = 1.0,
) -> PairLoss:
    """A hinge on every pair of a positive candidate and a choice that is worth less.

        sum over t_l > threshold, t_l > t_j, both visible of
            weight_lj max(margin - (s_l - s_j), 0)

    Args:
      scores, candidates, visible, threshold: as of `pair_weights`; what has no target
        is worth less than any candidate.
      margin: between the two scores.

    Returns:
      Sums and numbers of pairs; the gradient is the hinge's, the weights are constant.

    Source: OhadRubin/RPT, compute_retriever_loss; Rubin and Berant 2023, section 3.2.
    """
    scores, visible = jnp.asarray(scores, jnp.float32), jnp.asarray(visible)
    places, targets, present = candidates
    weights = jax.lax.stop_gradient(
        pair_weights(scores, candidates, visible, threshold)
    )
    worst = jnp.full(targets.shape[:-1] + (1,), -jnp.inf)
    all_targets = _scatter(places, targets, present, visible.shape, worst)
    positive = present & (targets > threshold) & _at(visible, places)
    valid = positive[..., None] & visible[..., None, :]
    valid &= targets[..., None] > all_targets[..., None, :]
    gap = _at(scores, places)[..., None] - scores[..., None, :]
    hinge = jnp.where(valid, weights * jax.nn.relu(margin - gap), 0.0)
    return PairLoss(hinge.sum((-2, -1)), valid.sum((-2, -1)).astype(jnp.float32))


def _at(x, places):
    return jnp.take_along_axis(x, places, axis=-1)


def _scatter(places, values, present, shape, fill):
    """Values at their places among P, ``fill`` elsewhere."""
    pool = shape[-1]
    at = jnp.where(present, places, pool)  # beyond the end: dropped

    def one(at, values, fill):
        return jnp.full(pool, fill[0], values.dtype).at[at].set(values, mode="drop")

    for _ in shape[:-1]:
        one = jax.vmap(one)
    return one(at, values, jnp.broadcast_to(fill, (*shape[:-1], 1)))
