"""Masked log-sum-exp over a memory, in blocks: what the in-batch family shares.

For queries q_i against the keys k_j of a memory, with logits s_ij = scale * q_i . k_j,

    all_i      = log sum_{j : visible(i, j)} exp(s_ij)
    positive_i = log sum_{j : visible(i, j) and positive(i, j)} exp(s_ij)

TRIME's loss, NPM's start and end losses, DPR's and Contriever's contrastive losses, the
exact kNN-LM distribution and even the vocabulary softmax take a line each on top of the
pair. Small integer ids say which slot a query sees, so no array of [N, M] ever exists:
one tile of logits lives at a time, and the backward pass computes it again. This is the
scheme of FlashAttention (Dao et al. 2022, algorithms 1 and 4) with a second sum, over
the positive slots.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32

from rlm_jax.ops import Array

Ids = Any
"""A pytree of int32 arrays with one entry per query [N] or per slot [M]."""

Rule = Callable[[Ids, Ids], Bool[Array, "..."]]
"""(query ids, slot ids) -> bool, elementwise. The ids come as [n, 1] and [1, m]."""


def same_value(query: Ids, slot: Ids) -> Bool[Array, "..."]:
    """A slot is positive for the queries whose target is its value."""
    return slot["value"] == query["value"]


class LogSums(NamedTuple):
    """The two log-sum-exps; minus infinity over an empty set."""

    all: Float32[Array, " *N"]
    positive: Float32[Array, " *N"]


def log_sums(
    queries: Float[Array, "N D"],
    keys: Float[Array, "M D"],
    query_ids: Ids,
    key_ids: Ids,
    *,
    visible: Rule,
    positive: Rule,
    scale: float | Array = 1.0,
    block: tuple[int, int] | None = None,
) -> LogSums:
    """Log-sum-exp over the visible, and over the visible positive, slots of a memory.

    Args:
      queries: float32 or bfloat16; products accumulate in float32.
      keys: the slots' vectors.
      query_ids: pytree of int32 [N].
      key_ids: pytree of int32 [M].
      visible: which slots a query sees. A module-level function, or anything else that
        hashes equal from call to call, or each call compiles anew.
      positive: which of the visible slots are positive; evaluated on visible ones only.
      scale: multiplies the inner products (1/sqrt(D), or an inverse temperature).
      block: queries and slots of one tile; by default chosen for the backend: tiles
        that stay in cache on a CPU, large ones on an accelerator.

    Returns:
      `LogSums`, float32 [N] each, differentiable in queries, keys and scale. A tile
      that no query sees costs a comparison of ids and no product.
    """
    n, m = len(queries), len(keys)
    for name, ids, size in (("query", query_ids, n), ("key", key_ids, m)):
        for leaf in jax.tree.leaves(ids):
            if leaf.shape != (size,):
                raise ValueError(f"{name} ids have shape {leaf.shape}, not ({size},)")
    if n == 0 or m == 0:
        return LogSums(*[jnp.full(n, -jnp.inf, jnp.float32)] * 2)
    rows, columns = block or _default_block()
    # The scale goes into the queries: N x D products instead of N x M, and its gradient
    # falls out of theirs. Rounded to bfloat16 itself it would move all logits one way.
    queries = (queries * jnp.asarray(scale, jnp.float32)).astype(queries.dtype)
    sums = _log_sums(
        visible, positive, (min(rows, n), min(columns, m)), queries, keys, query_ids,
        key_ids,
    )  # fmt: skip
    # `partial` hides from type checkers what `custom_vjp` returns.
    return LogSums(*cast(tuple[jax.Array, jax.Array], sums))


def _default_block() -> tuple[int, int]:
    return (512, 512) if jax.default_backend() == "cpu" else (4096, 2048)


class _Tiles(NamedTuple):
    """Half-open ranges of equal size, the last one possibly overlapping its neighbour.

    An overlap with a mask replaces padding, which would copy the whole memory.
    """

    size: int
    count: int
    total: int

    def start(self, i):
        return jnp.minimum(i * self.size, self.total - self.size)

    def fresh(self, i):
        """bool [size]: entries that no earlier range holds."""
        return self.start(i) + jnp.arange(self.size) >= i * self.size

    def take(self, tree, i):
        return jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, self.start(i), self.size), tree
        )


def _tiles(total: int, size: int) -> _Tiles:
    return _Tiles(size, -(-total // size), total)


def _masks(visible, positive, query_ids, key_ids, fresh):
    rows = jax.tree.map(lambda x: x[:, None], query_ids)
    columns = jax.tree.map(lambda x: x[None, :], key_ids)
    seen = visible(rows, columns) & fresh[None, :]
    return seen, seen & positive(rows, columns)


def _logits(queries, keys):
    return jax.lax.dot_general(
        queries, keys, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _log_sums(visible, positive, block, queries, keys, query_ids, key_ids):
    query_tiles = _tiles(queries.shape[0], block[0])
    key_tiles = _tiles(keys.shape[0], block[1])

    def one_query_tile(i):
        q, q_ids = query_tiles.take((queries, query_ids), i)

        def add_tile(j, carry):
            k, k_ids = key_tiles.take((keys, key_ids), j)
            seen, is_positive = _masks(
                visible, positive, q_ids, k_ids, key_tiles.fresh(j)
            )

            def compute(carry):
                # Positives and negatives keep a maximum each, so that a positive far
                # below the negatives does not underflow; one exponential serves both.
                top, sums = carry
                s = _logits(q, k)
                pos = jnp.where(is_positive, s, -jnp.inf).max(1)
                neg = jnp.where(seen & ~is_positive, s, -jnp.inf).max(1)
                new_top = jnp.maximum(top, jnp.stack([neg, pos]))
                safe = jnp.where(jnp.isfinite(new_top), new_top, 0.0)
                shift = jnp.where(is_positive, safe[1][:, None], safe[0][:, None])
                e = jnp.where(seen, jnp.exp(s - shift), 0.0)
                pos_sum = jnp.where(is_positive, e, 0.0).sum(1)
                neg_sum = jnp.where(is_positive, 0.0, e).sum(1)
                tile_sums = jnp.stack([neg_sum, pos_sum])
                return new_top, sums * jnp.exp(top - safe) + tile_sums

            return jax.lax.cond(seen.any(), compute, lambda carry: carry, carry)

        empty = jnp.full((2, query_tiles.size), -jnp.inf, jnp.float32)
        top, sums = jax.lax.fori_loop(
            0, key_tiles.count, add_tile, (empty, jnp.zeros_like(empty))
        )
        negative, positive_ = jnp.log(sums) + top
        return jnp.logaddexp(negative, positive_), positive_

    if query_tiles.count == 1:
        return one_query_tile(0)

    def add_query_tile(i, out):
        start = (query_tiles.start(i),)
        return jax.tree.map(
            lambda x, y: jax.lax.dynamic_update_slice(x, y, start),
            out,
            one_query_tile(i),
        )

    zeros = jnp.zeros(queries.shape[0], jnp.float32)
    return jax.lax.fori_loop(0, query_tiles.count, add_query_tile, (zeros, zeros))


def _forward(visible, positive, block, queries, keys, query_ids, key_ids):
    sums = _log_sums(visible, positive, block, queries, keys, query_ids, key_ids)
    return sums, (queries, keys, query_ids, key_ids, sums)


def _backward(visible, positive, block, residuals, cotangents):
    """d s_ij = [j visible] p_ij g_i + [j positive] r_ij h_i, with softmaxes p and r.

    One exponential a tile: for a positive slot p_ij = r_ij exp(positive_i - all_i),
    whose factor is at most 1, so nothing overflows however small a positive is.
    """
    queries, keys, query_ids, key_ids, (lse_all, lse_positive) = residuals
    g_all, g_positive = cotangents
    ratio = jnp.where(jnp.isfinite(lse_positive), jnp.exp(lse_positive - lse_all), 0.0)
    rows = {
        "q": queries,
        "ids": query_ids,
        "all": jnp.where(jnp.isfinite(lse_all), lse_all, 0.0),
        "positive": jnp.where(jnp.isfinite(lse_positive), lse_positive, 0.0),
        "g_negative": g_all,
        "g_positive": g_positive + g_all * ratio,
    }
    query_tiles = _tiles(queries.shape[0], block[0])
    key_tiles = _tiles(keys.shape[0], block[1])

    def add_to(x, tiles, i, y):
        old = jax.lax.dynamic_slice_in_dim(x, tiles.start(i), tiles.size)
        return jax.lax.dynamic_update_slice_in_dim(x, old + y, tiles.start(i), 0)

    def one_key_tile(j, carry):
        d_queries, d_keys = carry
        k, k_ids = key_tiles.take((keys, key_ids), j)
        k_fresh = key_tiles.fresh(j)

        def one_query_tile(i, carry):
            row = query_tiles.take(rows, i)
            fresh = query_tiles.fresh(i)[:, None]
            seen, is_positive = _masks(visible, positive, row["ids"], k_ids, k_fresh)
            seen = seen & fresh

            def compute(carry):
                d_queries, d_k = carry
                s = _logits(row["q"], k)
                shift = jnp.where(
                    is_positive, row["positive"][:, None], row["all"][:, None]
                )
                g = jnp.where(
                    is_positive,
                    row["g_positive"][:, None],
                    row["g_negative"][:, None],
                )
                d_s = jnp.where(seen, jnp.exp(s - shift) * g, 0.0).astype(k.dtype)
                d_q = jax.lax.dot(d_s, k, preferred_element_type=jnp.float32)
                d_k = d_k + jax.lax.dot_general(
                    d_s,
                    row["q"],
                    (((0,), (0,)), ((), ())),
                    preferred_element_type=jnp.float32,
                )
                return add_to(d_queries, query_tiles, i, d_q), d_k

            return jax.lax.cond(seen.any(), compute, lambda carry: carry, carry)

        d_k = jnp.zeros(k.shape, jnp.float32)
        d_queries, d_k = jax.lax.fori_loop(
            0, query_tiles.count, one_query_tile, (d_queries, d_k)
        )
        return d_queries, add_to(d_keys, key_tiles, j, d_k.astype(d_keys.dtype))

    d_queries, d_keys = jax.lax.fori_loop(
        0,
        key_tiles.count,
        one_key_tile,
        (jnp.zeros(queries.shape, jnp.float32), jnp.zeros_like(keys)),
    )
    return d_queries.astype(queries.dtype), d_keys, None, None


_log_sums.defvjp(_forward, _backward)
