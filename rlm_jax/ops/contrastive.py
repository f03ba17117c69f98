"""Contrastive losses of retrievers: one positive against many negatives.

For a query q_i, its positive p_i and the slots N(i) that it sees, s(q, k) = scale q.k,

    L_i = -log [ e^{s(q_i, p_i)} / (e^{s(q_i, p_i)} + sum_{k in N(i)} e^{s(q_i, k)}) ]

DPR and Contriever differ in N(i), which is the passages of the batch or a queue of
earlier keys. Both call `ops.memory.log_sums`, so no array of [N, M] is kept.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32

from rlm_jax.ops import Array
from rlm_jax.ops.memory import Ids, Rule, log_sums

_RANK_ROWS = 64


class Contrast(NamedTuple):
    """What is known of each query."""

    nll: Float32[Array, " N"]  # L_i, nats; differentiable
    score: Float32[Array, " N"]  # s(q_i, p_i); differentiable
    rank: Float32[Array, " N"]
    """How many visible slots score above the positive, from 0; a constant."""


def own_slot(query: Ids, slot: Ids) -> Bool[Array, "..."]:
    """The one slot that is the query's positive."""
    return slot["slot"] == query["slot"]


def other_slot(query: Ids, slot: Ids) -> Bool[Array, "..."]:
    """Every slot but the query's positive."""
    return slot["slot"] != query["slot"]


def in_batch(
    queries: Float[Array, "N D"],
    keys: Float[Array, "M D"],
    query_ids: Ids,
    key_ids: Ids,
    *,
    visible: Rule,
    scale: float | Array = 1.0,
) -> Contrast:
    """The loss against the slots of a batch, one of which is the query's positive.

    Args:
      queries: float32 or bfloat16.
      keys: the slots' vectors.
      query_ids: pytree of int32 [N] with ``slot``, the number of the positive's slot.
      key_ids: pytree of int32 [M] with ``slot``, the slot's number.
      visible: which slots a query sees (a module-level function, see `log_sums`); it
        must see its positive, or its loss is not a number.
      scale: multiplies the inner products; an inverse temperature.
    """
    sums = log_sums(
        queries, keys, query_ids, key_ids,
        visible=visible, positive=own_slot, scale=scale,
    )  # fmt: skip

    def other(query, slot):
        # Two products of the same vectors may differ in their last bit.
        return visible(query, slot) & other_slot(query, slot)

    rank = ranks(
        queries, keys, sums.positive, query_ids, key_ids, visible=other, scale=scale
    )
    return Contrast(sums.all - sums.positive, sums.positive, rank)


def against_queue(
    queries: Float[Array, "N D"],
    positives: Float[Array, "N D"],
    queue: Float[Array, "M D"],
    *,
    scale: float | Array = 1.0,
) -> Contrast:
    """The loss of each query against its own positive and a queue that all see (MoCo).

    Args:
      queries: float32 or bfloat16.
      positives: row i for query i; the other rows are no negatives.
      queue: the negatives.
      scale: multiplies the inner products; an inverse temperature.

    He et al. 2020, equation 1.
    """
    scaled = (queries * jnp.asarray(scale, jnp.float32)).astype(jnp.float32)
    score = (scaled * positives.astype(jnp.float32)).sum(-1)
    nowhere = {"slot": jnp.full(len(queries), -1, jnp.int32)}
    slots = {"slot": jnp.arange(len(queue), dtype=jnp.int32)}
    sums = log_sums(
        queries, queue, nowhere, slots,
        visible=other_slot, positive=own_slot, scale=scale,
    )  # fmt: skip
    rank = ranks(queries, queue, score, nowhere, slots, visible=other_slot, scale=scale)
    return Contrast(jnp.logaddexp(sums.all, score) - score, score, rank)


def label_smoothing(
    contrast: Contrast, mean_score: Float[Array, " N"], epsilon: float
) -> Float32[Array, " N"]:
    """L_i with ``epsilon`` of the target spread evenly over positive and negatives.

        (1 - e) (Z - s_i) + e (Z - mean_k s_ik)  =  L_i + e (s_i - mean_k s_ik)

    Args:
      contrast: of the queries.
      mean_score: float32, the mean of a query's scores with all the slots it sees,
        the positive among them; a product with the mean key where all see the same.
      epsilon: from 0 to 1.

    Szegedy et al. 2016, section 7.
    """
    return contrast.nll + epsilon * (contrast.score - mean_score)


def ranks(
    queries: Float[Array, "N D"],
    keys: Float[Array, "M D"],
    scores: Float[Array, " N"],
    query_ids: Ids,
    key_ids: Ids,
    *,
    visible: Rule,
    scale: float | Array = 1.0,
) -> Float32[jax.Array, " N"]:
    """How many visible slots score above ``scores``; without a gradient."""
    queries, keys, scores = jax.lax.stop_gradient((queries, keys, scores))
    queries = (queries * jnp.asarray(scale, jnp.float32)).astype(queries.dtype)

    def rank(one):
        query, score, ids = one
        slot_scores = jnp.dot(keys, query, preferred_element_type=jnp.float32)
        return (visible(ids, key_ids) & (slot_scores > score)).sum().astype(jnp.float32)

    rows = min(_RANK_ROWS, len(queries))
    return jax.lax.map(rank, (queries, scores, query_ids), batch_size=rows)
