"""Retrieval of a document's earlier chunks, on the device.

A row of C chunks stands after M remembered ones; the pool is the P = M + C chunks of
both, and chunk i of the row is M + i of the pool. Which of them it may retrieve is a
rule; what it retrieves are places in the pool.

Rubin and Berant 2023 (RPT), section 3. Their code sorts all scores; here `lax.top_k`
takes the K largest.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from rlm_jax.ops import Array

Rule = Literal["previous_windows", "all_earlier"]

SPARED = 2
"""Chunks before the border that are not retrieved: attention sees the nearest ones, and
a neighbour is read with the chunk that follows it."""


class Chosen(NamedTuple):
    """K places in the pool for each chunk, and whether something is there."""

    places: Int32[jax.Array, "B C K"]
    present: Bool[jax.Array, "B C K"]


def allowed(
    rule: Rule, count: int, memory: int, per_window: int, reach: int
) -> Bool[jax.Array, "{count} {memory+count}"]:
    """Which places of the pool each of ``count`` chunks may retrieve.

    Chunk i, of the window w = i // n with n chunks each, may retrieve the chunks j with

        n w - reach <= j < n w - 2    (previous_windows)
        n w - reach <= j < i - 1      (all_earlier)

    counted from the row's first chunk; remembered ones are negative.

    Args:
      rule: which of the two.
      count: C, of the row.
      memory: M, remembered ones before them.
      per_window: n.
      reach: how far back the memory reaches before a window.
    """
    i = np.arange(count)[:, None]
    j = np.arange(-memory, count)[None]
    begin = per_window * (i // per_window)
    end = begin - SPARED if rule == "previous_windows" else i - 1
    return jnp.asarray((j >= begin - reach) & (j < end))


def top(scores: Float[Array, "B C P"], visible: Bool[Array, "B C P"], k: int) -> Chosen:
    """The k visible places with the largest scores, best first."""
    k = min(k, scores.shape[-1])
    hidden = jnp.finfo(jnp.float32).min
    best, places = jax.lax.top_k(jnp.where(visible, scores, hidden), k)
    return Chosen(places.astype(jnp.int32), best > hidden)


def at_distances(
    distances: Int[Array, "B C K"], visible: Bool[Array, "B C P"]
) -> Chosen:
    """The places so many chunks back; 0 = none, and what is not visible is none."""
    count, pool = visible.shape[-2:]
    places = jnp.arange(pool - count, pool)[None, :, None] - distances
    inside = (distances > 0) & (places >= 0)
    places = jnp.where(inside, places, 0).astype(jnp.int32)
    present = inside & jnp.take_along_axis(visible, places, axis=-1)
    return Chosen(places, present)


def to_distances(chosen: Chosen, pool: int) -> Int32[jax.Array, "B C K"]:
    """How many chunks back the places are; 0 = none."""
    count = chosen.places.shape[1]
    own = jnp.arange(pool - count, pool)[None, :, None]
    return jnp.where(chosen.present, own - chosen.places, 0).astype(jnp.int32)


def with_successors(
    states: Float[Array, "B P m D"], places: Int[Array, "B C K"]
) -> Float[jax.Array, "B C K {2*states.shape[2]} D"]:
    """States of the chunks at some places, each with the one after it.

    After the last chunk of the pool come zeros.
    """
    batch, count, k = places.shape
    states = jnp.pad(jnp.asarray(states), [(0, 0), (0, 1), (0, 0), (0, 0)])
    rows = jnp.arange(batch)[:, None]
    flat = places.reshape(batch, -1)
    both = jnp.stack([states[rows, flat], states[rows, flat + 1]], axis=2)
    return both.reshape(batch, count, k, -1, states.shape[-1])
