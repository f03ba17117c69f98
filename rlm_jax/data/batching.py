"""Batches of segments as a pure function of (seed, step), in seven orders.

A batch is a dict of NumPy arrays for B rows of T = `length` tokens:

  tokens   int32 [B, T]    inputs
  targets  int32 [B, T]    the next token of each input
  mask     float32 [B, T]  1 = this target counts, 0 = padding
  segment  int32 [B]       the row's number within the global batch
  group    int32 [B]       rows of equal group are consecutive text, in row order

Every epoch sees every segment once, in a new order, except for the few that do not fill
a last batch (and, of `related` rows, the ends of the walk); the `repeats` draw their
rows, for ever. There is no state: resuming at a step needs the step alone.
"""

import functools
import os
from collections.abc import Callable

import numpy as np

from rlm_jax.data import similarity
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.errors import UserError
from rlm_jax.method import Batches, Rows

Batch = dict[str, np.ndarray]
_Spans = tuple[np.ndarray, np.ndarray]
"""Of an epoch's segments: the first position, and the first that is not an input."""


def shuffled(split: TokenSplit, *, batch_size: int, length: int) -> Batches:
    """Every row a segment from anywhere in the split, and its own group.

    Raises:
      UserError: the split is too short for one batch.
    """
    _check_sizes(batch_size, length, 1)
    num_segments = (len(split.tokens) - 1) // length

    def spans(seed: int, epoch: int) -> _Spans:
        starts = _rng(seed, epoch).permutation(num_segments) * length
        return starts, starts + length

    return _batches(split, spans, num_segments, batch_size, length, 1)


def consecutive(
    split: TokenSplit, *, batch_size: int, length: int, segments_per_group: int
) -> Batches:
    """Groups of S consecutive segments, rows ``g * S + s`` (TRIME's long-term memory).

    The groups of an epoch begin at a random offset below `length`, so the cuts between
    segments move from epoch to epoch.

    Raises:
      UserError: S does not divide the batch, or the split is too short for one batch.
    """
    _check_sizes(batch_size, length, segments_per_group)
    unit = segments_per_group * length
    # Room for the largest offset, so that every epoch has equally many batches.
    num_units = max(len(split.tokens) - length, 0) // unit
    num_segments = num_units * segments_per_group

    def spans(seed: int, epoch: int) -> _Spans:
        rng = _rng(seed, epoch)
        firsts = rng.integers(length) + rng.permutation(num_units) * unit
        starts = _expand(firsts, segments_per_group, length)
        return starts, starts + length

    return _batches(split, spans, num_segments, batch_size, length, segments_per_group)


def same_document(
    split: TokenSplit, *, batch_size: int, length: int, segments_per_group: int
) -> Batches:
    """Groups of S consecutive segments of one document, padded after its end.

    Every target of every document counts once an epoch; the first token of a document
    is an input only.

    Raises:
      UserError: S does not divide the batch, or there are too few groups for one batch.
    """
    _check_sizes(batch_size, length, segments_per_group)
    unit = segments_per_group * length
    offsets = np.asarray(split.document_offsets)
    num_targets = np.maximum(np.diff(offsets) - 1, 0)
    units = -(-num_targets // unit)
    document = np.repeat(np.arange(len(units)), units)
    within = np.arange(len(document)) - np.repeat(np.cumsum(units) - units, units)
    firsts = offsets[document] + within * unit
    ends = offsets[document + 1] - 1  # one past the last input that has a target
    num_segments = len(firsts) * segments_per_group

    def spans(seed: int, epoch: int) -> _Spans:
        order = _rng(seed, epoch).permutation(len(firsts))
        starts = _expand(firsts[order], segments_per_group, length)
        return starts, np.repeat(ends[order], segments_per_group)

    return _batches(split, spans, num_segments, batch_size, length, segments_per_group)


def similar(
    split: TokenSplit,
    *,
    batch_size: int,
    length: int,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> Batches:
    """Rows of one batch are lexically similar segments (TRIME's external memory).

    One walk leads from segment to similar segment (see `similarity.walk`); batches are
    consecutive slices of it, in a new order each epoch.

    Arguments:
      seed: of the walk, which is made once and kept under `cache_dir`.

    Raises:
      UserError: the split is too short for one batch, or the disk is full.

    Source: Zhong et al. 2022, section 4.3 (batching with BM25).
    """
    _check_sizes(batch_size, length, 1)
    num_segments = (len(split.tokens) - 1) // length
    num_batches = num_segments // batch_size
    _check_enough(num_batches, split, batch_size, length)
    walk = _walk(split, length, seed, cache_dir, progress)

    def spans(seed: int, epoch: int) -> _Spans:
        rng = _rng(seed, epoch)
        # The segments over are left out at the two ends, in a new proportion.
        first = rng.integers(num_segments % batch_size + 1)
        kept = walk[first : first + num_batches * batch_size]
        slices = kept.reshape(num_batches, batch_size)
        starts = slices[rng.permutation(num_batches)].reshape(-1) * length
        return starts, starts + length

    return _batches(split, spans, num_segments, batch_size, length, 1)


def related(
    split: TokenSplit,
    *,
    batch_size: int,
    length: int,
    segments_per_row: int,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
    progress: bool = True,
) -> Batches:
    """A row is S lexically similar segments of T / S tokens, one after another.

    They follow one another in the walk of `similar`, which each epoch cuts into rows
    from a random one of S places on; rows are shuffled. The target of a segment's last
    token is what follows it in its own text. So a model learns to use what stands
    before its text on the same subject, as a retrieved document does.

    Arguments:
      seed: of the walk, which is made once and kept under `cache_dir`.

    Raises:
      UserError: S does not divide T, the split is too short for one batch, or the disk
        is full.

    Source: Shi et al. 2023 (In-context Pretraining), section 2, which walks through
    whole documents by their embeddings, near-duplicates left out. Here a row may hold
    two segments of one document, in either order.
    """
    s = segments_per_row
    if s < 1 or length % s:
        raise UserError(
            f"A row of {length} tokens cannot be made of {s} segments; make "
            "data.length a multiple of data.segments_per_group."
        )
    piece = length // s
    _check_sizes(batch_size, piece, 1)
    num_pieces = (len(split.tokens) - 1) // piece
    num_rows = max(num_pieces - s + 1, 0) // s  # from whichever place rows begin at
    _check_enough(num_rows // batch_size, split, batch_size, length)
    walk = _walk(split, piece, seed, cache_dir, progress)

    def spans(seed: int, epoch: int) -> _Spans:
        rng = _rng(seed, epoch)
        rows = walk[rng.integers(s) :][: num_rows * s].reshape(num_rows, s)
        starts = rows[rng.permutation(num_rows)].reshape(-1) * piece
        return starts, starts + piece

    pieces = _batches(split, spans, num_rows * s, batch_size * s, piece, 1)

    def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
        row = np.arange(batch_size, dtype=np.int32)
        row = row if rows is None else row[rows]
        of_rows = (row[:, None] * s + np.arange(s)).reshape(-1)
        batch = pieces.batch_at(seed, step, rows=of_rows)
        joined = {
            name: batch[name].reshape(len(row), length)
            for name in ("tokens", "targets", "mask")
        }
        return {**joined, "segment": row, "group": row}

    return Batches(batch_at, num_rows, num_rows // batch_size)


def _walk(
    split: TokenSplit,
    length: int,
    seed: int,
    cache_dir: str | os.PathLike | None,
    progress: bool,
) -> np.ndarray:
    """Numbers of segments, int64 [N], neighbours beside one another."""
    whole = (len(split.tokens) - 1) // length * length
    return similarity.walk(
        np.asarray(split.tokens[:whole]).reshape(-1, length),
        seed=seed,
        cache_dir=cache_dir,
        progress=progress,
    ).astype(np.int64)


def repeats(split: TokenSplit, *, batch_size: int, length: int) -> Batches:
    """Rows of random tokens, read again and again: all there is to learn is to copy.

    A row is n distinct tokens, any that the split has, n uniform in [T / 8, T / 3],
    repeated until the row is full; no target counts (mask 0) of the first reading, nor
    the token at which it begins again, whose place nothing tells.
    Rows never come twice; an epoch is as long as that of `shuffled`. A small decoder
    that learns on text alone may not learn to copy for a long time, and then no
    retrieved text can help it; a thousand steps of this come first (see docs/lm.md).

    Raises:
      UserError: the split has fewer than T / 3 different tokens, or T < 16.

    Source: the task by which Olsson et al. 2022 (In-context learning and induction
    heads) measure induction heads; as training data it is ours.
    """
    kinds = np.unique(split.tokens)
    return _repeated(split, kinds, batch_size, length, replace=False)


def frequent_repeats(split: TokenSplit, *, batch_size: int, length: int) -> Batches:
    """As `repeats`, of tokens that are drawn as often as they stand in the split.

    A frequent one is followed now by this and now by that, so that more than one token
    has to match before what followed is worth copying.

    Raises:
      UserError: T < 16.
    """
    return _repeated(split, split.tokens, batch_size, length, replace=True)


def _repeated(
    split: TokenSplit, drawn: np.ndarray, batch_size: int, length: int, *, replace: bool
) -> Batches:
    _check_sizes(batch_size, length, 1)
    num_segments = (len(split.tokens) - 1) // length
    _check_enough(num_segments // batch_size, split, batch_size, length)
    shortest, longest = length // 8, length // 3
    if shortest < 2 or len(drawn) < longest:
        raise UserError(
            f"Repeated spans need segments of at least 16 tokens, and a split with "
            f"{longest} different ones; these are segments of {length}, and the split "
            f"has {len(drawn)}: set another data.length."
        )

    def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
        segment = np.arange(batch_size, dtype=np.int32)
        segment = segment if rows is None else segment[rows]
        window = np.zeros((len(segment), length + 1), np.int32)
        mask = np.ones((len(segment), length), np.float32)
        for i, row in enumerate(segment):
            # The split's size: validation is not training's batches once more.
            rng = np.random.default_rng((seed, step, int(row), len(split.tokens)))
            n = rng.integers(shortest, longest, endpoint=True)
            span = rng.choice(drawn, n, replace=replace)
            window[i] = np.resize(span, length + 1)
            mask[i, :n] = 0
        return {
            "tokens": window[:, :-1],
            "targets": window[:, 1:],
            "mask": mask,
            "segment": segment,
            "group": segment,
        }

    return Batches(batch_at, num_segments, num_segments // batch_size)


def _batches(
    split: TokenSplit,
    spans: Callable[[int, int], _Spans],
    num_segments: int,
    batch_size: int,
    length: int,
    segments_per_group: int,
) -> Batches:
    num_batches = num_segments // batch_size
    _check_enough(num_batches, split, batch_size, length)
    # A memo, not state: the order of an epoch is needed again at its every step.
    spans = functools.lru_cache(maxsize=2)(spans)
    last = len(split.tokens) - 1

    def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
        epoch, index = divmod(step, num_batches)
        starts, stops = spans(seed, epoch)
        segment = np.arange(batch_size, dtype=np.int32)
        segment = segment if rows is None else segment[rows]
        segments = index * batch_size + segment
        positions = starts[segments, None] + np.arange(length + 1)
        keep = positions[:, :-1] < stops[segments, None]
        window = split.tokens[np.minimum(positions, last)].astype(np.int32)
        return {
            "tokens": np.where(keep, window[:, :-1], 0),
            "targets": np.where(keep, window[:, 1:], 0),
            "mask": keep.astype(np.float32),
            "segment": segment,
            "group": segment // np.int32(segments_per_group),
        }

    return Batches(batch_at, num_segments, num_batches)


def _rng(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng((seed, epoch))


def _expand(firsts: np.ndarray, segments_per_group: int, length: int) -> np.ndarray:
    """Starts of groups -> starts of their segments, group after group."""
    return (firsts[:, None] + np.arange(segments_per_group) * length).reshape(-1)


def _check_sizes(batch_size: int, length: int, segments_per_group: int) -> None:
    if min(batch_size, length, segments_per_group) < 1:
        raise UserError(
            f"A batch of {batch_size} segments of {length} tokens in groups of "
            f"{segments_per_group} is empty: make all three at least 1."
        )
    if batch_size % segments_per_group:
        raise UserError(
            f"A batch of {batch_size} segments cannot hold whole groups of "
            f"{segments_per_group}: make the batch size a multiple of the segments "
            "per group."
        )


def _check_enough(
    num_batches: int, split: TokenSplit, batch_size: int, length: int
) -> None:
    if num_batches < 1:
        raise UserError(
            f"The split has {len(split.tokens)} tokens, too few for one batch of "
            f"{batch_size} segments of {length}: lower the batch size or the segment "
            "length."
        )
