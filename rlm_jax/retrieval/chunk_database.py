"""The chunks of a stream of tokens, and what each shows when it is a neighbour.

Tokens are never copied: a chunk is a pair of positions in the memory-mapped stream, and
a neighbour [N, F], the chunk and its continuation, is read from there by its number.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, overload

import numpy as np

from rlm_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class Chunks(Sequence[np.ndarray]):
    """Chunks of at most m tokens; `chunk_stream` and `chunk_documents` make them.

    As a sequence it holds the chunks' tokens, int32 [n] each, so that
    `encode_passages.build` takes it for its passages. A neighbour shows the chunk and
    up to m tokens after it, but never beyond the last document that the chunk itself
    touches: so a neighbour without a document shows none of its text.

    Attributes:
      tokens: int [T], the stream.
      document_offsets: int64 [documents + 1], where documents begin and end.
      chunk_length: m, in tokens.
      starts: int64 [N], the first token of each chunk.
      stops: int64 [N], one past the last token of each chunk.
      ends: int64 [N], one past the last token of each chunk's continuation.
      first_document, last_document: int32 [N], what the chunk touches.
    """

    tokens: np.ndarray
    document_offsets: np.ndarray
    chunk_length: int
    starts: np.ndarray
    stops: np.ndarray
    ends: np.ndarray
    first_document: np.ndarray
    last_document: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, at: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, at: slice) -> list[np.ndarray]: ...
    def __getitem__(self, at):
        if isinstance(at, slice):
            return self._read(self.starts[at], self.stops[at])
        return self._read(self.starts[at, None], self.stops[at, None])[0]

    @property
    def identity(self) -> dict[str, Any]:
        """What the chunks of a given stream are, as plain JSON."""
        bounds = zlib.crc32(self.ends.tobytes(), zlib.crc32(self.starts.tobytes()))
        return {
            "chunk_length": self.chunk_length,
            "num_chunks": len(self),
            "bounds": f"{bounds:08x}",
        }

    def shown(self, start: int, stop: int) -> list[np.ndarray]:
        """What the chunks start..stop-1 show as neighbours, int32 [n <= 2m] each.

        This, and not the chunk alone, is what has to be free of an evaluated text.
        """
        return self._read(self.starts[start:stop], self.ends[start:stop])

    def values(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours [N, F] by the chunks' numbers.

        Args:
          ids: int [...]; -1 is an absent neighbour.

        Returns:
          tokens int32 [..., 2m], 0 where absent, and mask int32 [..., 2m], 1 = a token.
          F of a chunk shorter than m follows it at once.

        Raises:
          UserError: an id that is no chunk's.
        """
        ids = np.asarray(ids)
        if ids.size and not -1 <= ids.min() <= ids.max() < len(self):
            raise UserError(
                f"Neighbours {ids.min()}..{ids.max()} are not among {len(self)} chunks;"
                " search for them in the chunks' own datastore."
            )
        known = np.maximum(ids, 0)
        at = self.starts[known][..., None] + np.arange(2 * self.chunk_length)
        mask = (ids >= 0)[..., None] & (at < self.ends[known][..., None])
        tokens = np.zeros(mask.shape, np.int32)
        tokens[mask] = self.tokens[at[mask]]
        return tokens, mask.astype(np.int32)

    def touching(self, documents: np.ndarray) -> np.ndarray:
        """Which chunks touch any of some documents: bool [documents] to bool [N]."""
        # Of an empty document between two that a chunk touches there is nothing in it.
        marked = np.asarray(documents, bool) & (np.diff(self.document_offsets) > 0)
        before = np.concatenate([[0], np.cumsum(marked)])
        return before[self.last_document + 1] > before[self.first_document]

    def _read(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        return [
            np.asarray(self.tokens[start:stop], np.int32)
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
        ]


def chunk_stream(
    tokens: np.ndarray, document_offsets: np.ndarray, chunk_length: int
) -> Chunks:
    """Chunk u is tokens u m .. (u+1) m - 1 of the stream, across documents' ends.

    Segments of training that begin at a multiple of m consist of such chunks, so one
    encoding serves the training chunks as queries and as the database. The last chunk
    of the stream may be shorter.

    Args:
      tokens: int [T], documents one after another; may be memory-mapped.
      document_offsets: int64 [documents + 1].
      chunk_length: m, in tokens.

    Raises:
      UserError: there are no tokens, or the chunk length is below 1.

    Borgeaud et al. 2022, section 2.2.
    """
    offsets = _checked(tokens, document_offsets, chunk_length)
    starts = np.arange(0, offsets[-1], chunk_length, dtype=np.int64)
    stops = np.minimum(starts + chunk_length, offsets[-1])
    return _chunks(tokens, offsets, chunk_length, starts, stops)


def chunk_documents(
    tokens: np.ndarray, document_offsets: np.ndarray, chunk_length: int
) -> Chunks:
    """Chunks that never cross a document's end; its last one may be shorter.

    For a database apart from the training segments: arguments and errors as for
    `chunk_stream`.

    Borgeaud et al. 2022, section 2.3.
    """
    offsets = _checked(tokens, document_offsets, chunk_length)
    counts = -(-np.diff(offsets) // chunk_length)
    document = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = offsets[document] + within * chunk_length
    stops = np.minimum(starts + chunk_length, offsets[document + 1])
    return _chunks(tokens, offsets, chunk_length, starts, stops)


def join(*parts: Chunks) -> Chunks:
    """One database of several: the chunks, and the documents, of one after another.

    Those of the first part keep their numbers, so that `chunk_neighbours.same_document`
    holds for a split that is searched in itself and more. Nothing is copied.

    Raises:
      UserError: chunks of different lengths.
    """
    lengths = [part.chunk_length for part in parts]
    if len(set(lengths)) != 1:
        raise UserError(
            f"Chunks of {lengths} tokens cannot be one database; cut all of them alike."
        )
    tokens = _Joined([part.tokens for part in parts])
    documents = np.cumsum([0, *(len(part.document_offsets) - 1 for part in parts)])

    def joined(name: str, shifts: np.ndarray) -> np.ndarray:
        each = [getattr(part, name) for part in parts]
        return np.concatenate(
            [x + x.dtype.type(by) for x, by in zip(each, shifts, strict=False)]
        )

    offsets = [
        part.document_offsets[1:] + start
        for part, start in zip(parts, tokens.starts, strict=False)
    ]
    return Chunks(
        tokens=cast(np.ndarray, tokens),
        document_offsets=np.concatenate([[0], *offsets]),
        chunk_length=lengths[0],
        starts=joined("starts", tokens.starts),
        stops=joined("stops", tokens.starts),
        ends=joined("ends", tokens.starts),
        first_document=joined("first_document", documents),
        last_document=joined("last_document", documents),
    )


class _Joined:
    """Arrays one after another, read where they lie: by a slice of one, by numbers."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        self._arrays = arrays
        self.starts = np.cumsum([0, *map(len, arrays)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, at: Any) -> np.ndarray:
        first = at.start if isinstance(at, slice) else at
        parts = np.searchsorted(self.starts, first, side="right") - 1
        if isinstance(at, slice):
            before = self.starts[parts]
            return self._arrays[parts][at.start - before : at.stop - before]
        tokens = np.empty(at.shape, np.int32)
        for part in np.unique(parts):
            there = parts == part
            tokens[there] = self._arrays[part][at[there] - self.starts[part]]
        return tokens


def documents_of(document_offsets: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The document of each position of a stream, int32 [...]."""
    # On the right: of documents that begin together all but the last are empty.
    documents = np.searchsorted(document_offsets, positions, side="right") - 1
    return documents.astype(np.int32)


def _chunks(tokens, offsets, chunk_length, starts, stops) -> Chunks:
    last = documents_of(offsets, stops - 1)
    return Chunks(
        tokens=tokens,
        document_offsets=offsets,
        chunk_length=chunk_length,
        starts=starts,
        stops=stops,
        ends=np.minimum(starts + 2 * chunk_length, offsets[last + 1]),
        first_document=documents_of(offsets, starts),
        last_document=last,
    )


def _checked(tokens, document_offsets, chunk_length: int) -> np.ndarray:
    offsets = np.asarray(document_offsets, np.int64)
    if chunk_length < 1 or not len(tokens):
        raise UserError(
            f"{len(tokens)} tokens cannot be cut into chunks of {chunk_length}; give "
            "at least one token, and chunks of 1 or more."
        )
    if offsets[0] or offsets[-1] != len(tokens):
        raise UserError(
            f"Documents from {offsets[0]} to {offsets[-1]} do not cover a stream of "
            f"{len(tokens)} tokens; give the offsets that belong to it."
        )
    return offsets
