"""Whole documents in chunks: rows to train on, and windows that follow one another.

Chunks are counted from each document's own beginning and numbered through all the
documents that were kept. What is known of a chunk (candidates, neighbours) is known by
that number and says how many chunks back something lies, so it holds in a row, in a
window and in a whole document alike.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from rlm_jax.data.token_store import TokenSplit
from rlm_jax.errors import UserError
from rlm_jax.method import Batch, Batches, Rows

Known = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Numbers of chunks int64 [...] (-1 = none) -> arrays [..., K] by their names."""


class Documents(NamedTuple):
    """The documents of a split that are long enough, in chunks of m tokens."""

    split: TokenSplit
    starts: np.ndarray  # int64 [D], of their tokens
    stops: np.ndarray  # int64 [D]
    chunk_length: int
    first_chunks: np.ndarray  # int64 [D + 1], number of each one's first chunk

    @property
    def num_chunks(self) -> int:
        """Q, the full chunks of all of them."""
        return int(self.first_chunks[-1])

    def __len__(self) -> int:
        return len(self.starts)

    def tokens(self, document: int) -> np.ndarray:
        """All tokens of a document."""
        return self.split.tokens[self.starts[document] : self.stops[document]]

    def of_chunk(self, chunk: int) -> tuple[int, int]:
        """(document, which of its chunks)."""
        document = int(np.searchsorted(self.first_chunks, chunk, "right")) - 1
        return document, chunk - int(self.first_chunks[document])

    def numbers(self, documents: np.ndarray, chunks: np.ndarray) -> np.ndarray:
        """The numbers of some documents' chunks; -1 where there is no such full one."""
        counts = np.diff(self.first_chunks)[documents]
        inside = chunks < counts
        return np.where(inside, self.first_chunks[documents] + chunks, -1)


def documents(
    split: TokenSplit,
    chunk_length: int,
    *,
    window: int,
    shortest: int = 0,
    longest: int = 0,
    max_tokens: int = 0,
) -> Documents:
    """Those of at least ``shortest`` tokens, cut after ``longest``.

    Args:
      split: of a token store.
      chunk_length: m.
      window: tokens that any of them has to have.
      shortest: shorter ones are left out; 0: none is.
      longest: tokens that are read of each; 0: all.
      max_tokens: of all together, the last one cut; 0: all.

    Raises:
      UserError: one is shorter than a window, or none is left.
    """
    offsets = np.asarray(split.document_offsets, np.int64)
    lengths = np.diff(offsets)
    kept = np.flatnonzero(lengths >= shortest)
    starts, lengths = offsets[:-1][kept], lengths[kept]
    if longest:
        lengths = np.minimum(lengths, longest)
    if max_tokens:
        before = np.cumsum(lengths) - lengths
        room = max_tokens - before
        # No rest that is shorter than a window.
        kept_too = room >= np.minimum(window, lengths)
        kept, starts = kept[kept_too], starts[kept_too]
        lengths = np.minimum(lengths, room)[kept_too]
    if not len(starts):
        raise UserError(
            f"No document has {max(shortest, window)} tokens; lower documents.shortest "
            "or the window, or give longer documents."
        )
    short = np.flatnonzero(lengths < window)
    if len(short):
        name = int(kept[short[0]])
        if len(split.document_names) > name:
            name = split.document_names[name]
        raise UserError(
            f"The document {name} has {lengths[short[0]]} tokens, fewer than a window "
            f"of {window}; set documents.shortest to {window} or more to leave such "
            "documents out."
        )
    counts = lengths // chunk_length
    first_chunks = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Documents(split, starts, starts + lengths, chunk_length, first_chunks)


def rows(given: Documents, known: Known, *, batch_size: int, length: int) -> Batches:
    """Rows of T = ``length`` tokens of one document each, shuffled every epoch.

    Rows begin at multiples of T in their document; what a last one lacks has mask 0. A
    batch holds tokens, targets, mask, segment and group as other batches do, ``step``
    (int32 [B], the same everywhere), and [B, T / m, ...] of what is ``known``.

    Raises:
      UserError: T does not consist of chunks, or there are fewer rows than a batch has.
    """
    m = given.chunk_length
    if length % m or batch_size < 1:
        raise UserError(
            f"{batch_size} rows of {length} tokens do not consist of chunks of {m}; "
            "choose a multiple of method.chunk_length and a batch of 1 or more."
        )
    # The last target of a document has to be one of its tokens.
    inputs = given.stops - given.starts - 1
    counts = np.maximum(-(-(inputs - m) // length), 1)
    document = np.repeat(np.arange(len(given)), counts)
    begin = np.concatenate([np.arange(n) for n in counts]) * length
    num_batches = len(document) // batch_size
    if not num_batches:
        raise UserError(
            f"The documents make {len(document)} rows of {length} tokens, fewer than a "
            f"batch of {batch_size}; lower data.batch_size or data.length, or give "
            "more text."
        )
    order = functools.lru_cache(maxsize=2)(
        lambda seed, epoch: np.random.default_rng((seed, epoch)).permutation(
            len(document)
        )
    )

    def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
        epoch, index = divmod(step, num_batches)
        segment = np.arange(batch_size, dtype=np.int32)
        segment = segment if rows is None else segment[rows]
        which = order(seed, epoch)[index * batch_size + segment]
        batch = _window(given, document[which], begin[which], length)
        numbers = given.numbers(
            document[which, None], begin[which, None] // m + np.arange(length // m)
        )
        return {
            **batch,
            "segment": segment,
            "group": segment,
            "step": np.full(len(segment), step, np.int32),
            **known(numbers),
        }

    return Batches(batch_at, len(document), num_batches)


class Step(NamedTuple):
    """A window of some documents."""

    documents: np.ndarray  # int64 [B]
    numbers: np.ndarray  # int64 [B, C] of its chunks; -1 = none
    first: bool  # whether the documents begin here
    batch: dict[str, np.ndarray]  # tokens, targets and mask, [B, W] each


def windows(given: Documents, *, batch_size: int, window: int) -> Iterator[Step]:
    """The documents window by window, a few at a time.

    Those of a group are of like length; what follows a document's end has mask 0.
    """
    m = given.chunk_length
    inputs = given.stops - given.starts - 1
    by_length = np.argsort(-inputs, kind="stable")
    for at in range(0, len(by_length), batch_size):
        group = by_length[at : at + batch_size]
        # The last group is filled up with its last document, under a mask of 0.
        real = np.arange(batch_size) < len(group)
        group = np.pad(group, (0, batch_size - len(group)), mode="edge")
        for begin in range(0, int(inputs[group].max()), window):
            batch = _window(given, group, np.full(batch_size, begin), window)
            batch["mask"] *= real[:, None]
            chunks = begin // m + np.arange(window // m)
            numbers = np.where(real[:, None], given.numbers(group[:, None], chunks), -1)
            yield Step(group, numbers, begin == 0, batch)


def num_steps(given: Documents, *, batch_size: int, window: int) -> int:
    """How many `windows` there are."""
    inputs = np.sort(given.stops - given.starts - 1)[::-1]
    return int((-(-inputs[::batch_size] // window)).sum())


def _window(
    given: Documents, documents: np.ndarray, begin: np.ndarray, length: int
) -> dict[str, np.ndarray]:
    at = (given.starts[documents] + begin)[:, None] + np.arange(length + 1)
    inside = at < given.stops[documents, None]
    keep = inside[:, 1:]
    tokens = given.split.tokens[np.minimum(at, len(given.split.tokens) - 1)]
    tokens = tokens.astype(np.int32)
    return {
        "tokens": np.where(
            at[:, :-1] < given.stops[documents, None], tokens[:, :-1], 0
        ),
        "targets": np.where(keep, tokens[:, 1:], 0),
        "mask": keep.astype(np.float32),
    }
