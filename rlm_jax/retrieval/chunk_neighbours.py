"""The neighbours of every chunk of a split, searched once and kept on disk.

They are `storage.row_shards`: ``rows`` is int32 [Q, K], best first, -1 where nothing
was left, and a killed build goes on from its last finished shard.
"""

import functools
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval.chunk_database import Chunks, documents_of
from rlm_jax.retrieval.datastore import Datastore
from rlm_jax.retrieval.index import Index, first_kept, none_found
from rlm_jax.storage import checked_files, row_shards

FORM = "rlm_jax chunk neighbours 2"
_DEEPER = 4


def dtype(k: int) -> np.dtype:
    """That of a chunk's neighbours on disk."""
    return np.dtype([("ids", "<i4", (k,))])


class Filter(NamedTuple):
    """What is no neighbour; `same_document` and `excluded` make one.

    ``drops(rows, ids)``: int64 [n], some chunks, and int32 [n, K], what was found for
    each (anything is said of -1) -> bool [n, K]. ``identity`` is plain JSON.
    """

    identity: Mapping[str, Any]
    drops: Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class ChunkNeighbours:
    """The published neighbours of a split.

    Attributes:
      ids: int32 [Q, K], memory-mapped, numbers of the database's chunks; -1 = absent.
      checksum: a digest of the identity and of the array.
      chunks_per_second: of the search that made them; None where none was
        needed.
    """

    ids: np.ndarray
    checksum: str
    chunks_per_second: float | None = None

    @property
    def empty_share(self) -> float:
        """The share of the Q K slots that nothing was left for."""
        return float((self.ids < 0).mean())


def same_document(chunks: Chunks, database: Chunks, segment_length: int) -> Filter:
    """Drops what touches a document of the chunk's training segment.

    A segment of T tokens and its targets may touch several documents. A neighbour of
    any chunk reaches all later positions of the segment, so none may come from any of
    the segment's documents, wherever in it the chunk lies.

    Args:
      chunks: by `chunk_stream`, the queries.
      database: what is searched, of the same documents.
      segment_length: T, a multiple of the chunk length; segments begin at multiples
        of T. A filter for T serves every length that divides it.

    Raises:
      UserError: T is no multiple of the chunk length.

    Borgeaud et al. 2022, section 2.3.
    """
    if segment_length < 1 or segment_length % chunks.chunk_length:
        raise UserError(
            f"Segments of {segment_length} tokens do not consist of chunks of "
            f"{chunks.chunk_length}; choose a multiple."
        )
    begins = chunks.starts // segment_length * segment_length
    # The target of a segment's last token is one past its end.
    lasts = np.minimum(begins + segment_length, len(chunks.tokens) - 1)
    first = documents_of(chunks.document_offsets, begins)
    last = documents_of(chunks.document_offsets, lasts)

    def drops(rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return (database.first_document[ids] <= last[rows, None]) & (
            database.last_document[ids] >= first[rows, None]
        )

    return Filter({"same_document": segment_length}, drops)


def excluded(rows: np.ndarray) -> Filter:
    """Drops the chunks of the database that are marked, bool [N].

    For chunks that show part of an evaluated text: judge `Chunks.shown`, not the chunk.
    """
    rows = np.asarray(rows, bool)
    mark = f"{zlib.crc32(np.packbits(rows).tobytes()):08x}"
    identity = {"excluded": int(rows.sum()), "mark": mark}
    return Filter(identity, lambda _, ids: rows[ids])


def build(
    index: Index,
    vectors: Datastore,
    directory: str | os.PathLike,
    *,
    k: int,
    identity: Mapping[str, Any],
    num_chunks: int | None = None,
    filters: Sequence[Filter] = (),
    depth: int = 64,
    max_depth: int = 1024,
    block_size: int = 8192,
    shard_size: int = 1 << 16,
    advance: Callable[[int], object] = lambda count: None,
) -> ChunkNeighbours:
    """The k nearest chunks of each chunk that no filter drops, on disk.

    More than k are fetched. Chunks that keep fewer are searched again, ever deeper;
    what is missing then is -1, and counted. Opens what is there already, if its
    identity is the same; goes on from the last finished shard of a killed build.
    Memory is bounded by a block's vectors and a shard's ids. For one process.

    Args:
      index: over the database's vectors.
      vectors: of the Q chunks that get neighbours, in their order.
      directory: where the neighbours go.
      k: K, kept for each chunk.
      identity: what is searched: the database's checksum, the index's kind.
      num_chunks: Q, where more follow in ``vectors`` (a joined database, whose first
        part is the split); None: all.
      filters: what is no neighbour.
      depth: how many are fetched at first.
      max_depth: the most that are fetched for a chunk.
      block_size: chunks of one search.
      shard_size: chunks after which a killed build goes on; whole blocks.
      advance: called with a number of chunks when they are done, for a progress bar.

    Raises:
      UserError: not 1 <= k <= depth <= max_depth, the neighbours there are others, they
        are damaged, or the disk is full.

    Borgeaud et al. 2022, section 2.3; what an exhausted search leaves, it does not say.
    """
    directory = Path(directory)
    if not 1 <= k <= depth <= max_depth or min(block_size, shard_size) < 1:
        raise UserError(
            f"{k} neighbours cannot come from searches of depth {depth} to {max_depth} "
            f"in blocks of {block_size}; choose 1 <= k <= depth <= max_depth."
        )
    total = vectors.num_entries if num_chunks is None else num_chunks
    if not 1 <= total <= vectors.num_entries:
        raise UserError(
            f"There are {vectors.num_entries} vectors and not those of {total} chunks; "
            "encode all of the chunks that get neighbours."
        )
    identity = {
        **identity,
        "queries": vectors.checksum,
        "num_chunks": total,
        "k": k,
        "depths": [depth, max_depth],
        "filters": [dict(each.identity) for each in filters],
    }
    searched, began = 0, time.perf_counter()

    def make(start: int, stop: int) -> np.ndarray:
        nonlocal searched
        if not searched:
            advance(start)  # what a killed build had found
        shard = np.empty(stop - start, dtype(k))
        for first in range(start, stop, block_size):
            rows = np.arange(first, min(first + block_size, stop))
            shard["ids"][rows - start] = nearest(
                index,
                vectors.keys(int(rows[0]), int(rows[-1]) + 1),
                k,
                rows=rows,
                filters=filters,
                depth=depth,
                max_depth=max_depth,
            ).ids
            searched += len(rows)
            advance(len(rows))
        return shard

    records = row_shards.build(
        directory,
        FORM,
        dtype(k),
        total,
        make,
        identity=identity,
        shard_size=-(-shard_size // block_size) * block_size,
    )
    seconds = time.perf_counter() - began
    checksum = checked_files.read_manifest(directory, FORM)["checksum"]
    speed = searched / seconds if searched else None
    return ChunkNeighbours(records["ids"], checksum, speed)


def nearest(
    index: Index,
    queries: np.ndarray,
    k: int,
    *,
    rows: np.ndarray | None = None,
    filters: Sequence[Filter] = (),
    depth: int = 64,
    max_depth: int = 1024,
) -> Neighbours:
    """The k nearest chunks of some queries that no filter drops, best first.

    More than k are fetched; a query that keeps fewer searches again, ever deeper.

    Args:
      index: over the database's vectors.
      queries: float32 [n, D].
      k: K.
      rows: int64 [n], which chunks they are, for the filters; None: 0, 1, ...
      filters, depth, max_depth: as of `build`.

    Returns:
      [n, K]; -1 and minus infinity where nothing was left.
    """
    short = np.arange(len(queries))
    rows = short if rows is None else rows
    scores, ids = none_found(len(queries), k)
    while len(short):
        fetched = index.search(queries[short], min(depth, index.num_entries))
        keep = functools.partial(_stays, rows[short], filters)
        scores[short], ids[short] = first_kept(fetched, keep, k)
        if depth >= min(max_depth, index.num_entries):
            break
        short = short[ids[short, -1] < 0]
        depth = min(depth * _DEEPER, max_depth)
    return Neighbours(scores, ids)


def shuffled(
    ids: np.ndarray, seed: int = 0, *, filters: Sequence[Filter] = ()
) -> np.ndarray:
    """A control: every chunk has another chunk's neighbours, int32 [Q, K].

    All chunks lie on one random cycle, so that none keeps its own.

    Args:
      ids: int32 [Q, K].
      seed: of the cycle.
      filters: where the split is its own database, those of `build`: what they drop
        is absent.
    """
    cycle = np.random.default_rng(seed).permutation(len(ids))
    others = np.empty(ids.shape, np.int32)
    others[cycle] = ids[np.roll(cycle, 1)]
    rows = np.arange(len(ids))
    for each in filters:
        others[each.drops(rows, others)] = -1
    return others


def _stays(rows: np.ndarray, filters: Sequence[Filter], ids: np.ndarray) -> np.ndarray:
    stays = np.ones(ids.shape, bool)
    for each in filters:
        stays &= ~each.drops(rows, ids)
    return stays
