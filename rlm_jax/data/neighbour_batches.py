"""Batches with the neighbours of their chunks, for models that attend to them.

The stream of a split is cut into chunks of m tokens from its beginning, and every chunk
has K neighbours, found beforehand. Segments of T tokens that begin at multiples of m
consist of C = T / m chunks. A batch gets, beside what `batching` makes,

  neighbours      int32 [B, C, K, R]  tokens, R = 2 m: the chunk and its continuation
  neighbour_mask  int32 [B, C, K, R]  1 = a token, 0 = absent

and stays a pure function of (seed, step).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from rlm_jax.data.batching import Batch
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.errors import UserError
from rlm_jax.method import Batches, Rows

Order = Callable[[TokenSplit], Batches]
"""Such as ``functools.partial(batching.shuffled, batch_size=8, length=512)``."""

Lookup = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Ids int [...], -1 = absent -> tokens and mask, int32 [..., R] each."""


def with_neighbours(
    split: TokenSplit,
    order: Order,
    ids: np.ndarray,
    lookup: Lookup,
    *,
    chunk_length: int,
    k: int,
) -> Batches:
    """The batches of an order, each row with the neighbours of its chunks.

    Args:
      split: of a token store, N tokens.
      order: `in_order`, or `batching.shuffled`: one whose segments begin at multiples
        of the chunk length and which does not look at tokens.
      ids: int32 [ceil(N / m), >= K], the neighbours of each chunk of the split, best
        first, -1 = absent; may be memory-mapped.
      lookup: `retrieval.chunk_database.Chunks.values` of what was searched.
      chunk_length: m, in tokens.
      k: K, of the neighbours that a chunk has, the first that are used.

    Raises:
      UserError: segments that are no whole chunks, or ids of another split.

    Borgeaud et al. 2022, section 2.2.
    """
    num_chunks = -(-len(split.tokens) // chunk_length)
    if ids.shape[0] != num_chunks or not 1 <= k <= ids.shape[1]:
        raise UserError(
            f"Neighbours {list(ids.shape)} do not serve {num_chunks} chunks with {k} "
            "each; search for those of this split's own chunks, and for enough."
        )
    positions = order(_of_positions(split))

    def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
        batch = positions.batch_at(seed, step, rows=rows)
        at = batch["tokens"]
        first, odd = np.divmod(at[:, 0], chunk_length)
        if odd.any() or at.shape[1] % chunk_length:
            raise UserError(
                f"Segments of {at.shape[1]} tokens that begin at token {at[0, 0]} are "
                f"no whole chunks of {chunk_length}; make the segment length (and the "
                "stride) a multiple of it, and use an order without offsets."
            )
        chunks = first[:, None] + np.arange(at.shape[1] // chunk_length)
        # A last segment may reach beyond the stream, where there are no chunks.
        inside = (chunks < num_chunks)[..., None]
        rows_of_chunks = ids[np.minimum(chunks, num_chunks - 1), :k]
        neighbours, mask = lookup(np.where(inside, rows_of_chunks, -1))
        return {
            **batch,
            "tokens": np.asarray(split.tokens[at], np.int32),
            "targets": np.asarray(split.tokens[batch["targets"]], np.int32),
            "neighbours": neighbours,
            "neighbour_mask": mask,
        }

    return dataclasses.replace(positions, batch_at=batch_at)


def in_order(
    split: TokenSplit, *, batch_size: int, length: int, stride: int
) -> Batches:
    """Sliding windows over a split, for its evaluation: every target counts once.

    Windows of T = `length` inputs advance by `stride`; the mask is 1 where a target is
    new. So ``log_probs[mask > 0]``, over the batches 0, 1, ..., are those of all N - 1
    targets in their order. The seed is ignored. Rows that fill up the last batch repeat
    its last window under a mask of 0, and so do positions beyond the stream its end.

    Raises:
      UserError: not 1 <= stride <= length, no rows, or fewer than two tokens.
    """
    total = len(split.tokens) - 1
    if not 1 <= stride <= length or batch_size < 1 or total < 1:
        raise UserError(
            f"Windows of {length} tokens with stride {stride}, {batch_size} at a time, "
            f"cannot pass over {total + 1} tokens; choose 1 <= stride <= length, a "
            "batch of 1 or more, and a text of at least two tokens."
        )
    num_windows = -(-total // stride)
    num_batches = -(-num_windows // batch_size)

    def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
        segment = np.arange(batch_size, dtype=np.int32)
        segment = segment if rows is None else segment[rows]
        number = step % num_batches * batch_size + segment.astype(np.int64)
        fresh = np.minimum(number, num_windows - 1)[:, None] * stride
        start = np.maximum(0, fresh + stride - length)
        at = start + np.arange(length)
        new = (at >= fresh) & (at < np.minimum(fresh + stride, total))
        new &= (number < num_windows)[:, None]
        inputs = np.minimum(at, total)
        return {
            "tokens": split.tokens[inputs].astype(np.int32),
            "targets": split.tokens[np.minimum(inputs + 1, total)].astype(np.int32),
            "mask": new.astype(np.float32),
            "segment": segment,
            "group": segment,
        }

    return Batches(batch_at, num_windows, num_batches)


class _Positions:
    """An array of 0, 1, 2, ... that takes no memory."""

    def __init__(self, length: int):
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, at: Any) -> np.ndarray:
        if not isinstance(at, np.ndarray):
            raise UserError(
                "An order that compares the segments' tokens cannot have neighbours; "
                "use the order shuffled."
            )
        return at


def _of_positions(split: TokenSplit) -> TokenSplit:
    """The split with positions for tokens: its batches say where their rows lie."""
    if len(split.tokens) > np.iinfo(np.int32).max:
        raise UserError(
            f"A split of {len(split.tokens)} tokens is too long for batches with "
            "neighbours; use at most 2,147,483,647 tokens."
        )
    positions = cast(np.ndarray, _Positions(len(split.tokens)))
    return dataclasses.replace(split, tokens=positions)
