"""Chunks of a text to vectors to neighbours, found once and kept on disk."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import auto_index, chunk_neighbours, encode_passages, index
from rlm_jax.retrieval.chunk_database import Chunks
from rlm_jax.retrieval.chunk_neighbours import ChunkNeighbours, Filter
from rlm_jax.retrieval.datastore import Datastore
from rlm_jax.retrieval.encode_passages import TextEncoder
from rlm_jax.retrievers import contamination, dense, encoder_towers
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.storage import locks

TRAIN = "train"
METRIC = "l2"  # the paper's; of unit vectors it orders as the inner product does


@dataclasses.dataclass
class DatabaseConfig:
    """What is retrieved from, and how its neighbours are found."""

    encoder: str = ""  # folder of the frozen encoder; empty: one of random weights
    more: str = ""  # a corpus whose training split joins the text's own
    # Of vectors and neighbours, for several runs; empty: the workdir's.
    folder: str = ""
    text_length: int = 160  # of the encoder's tokens, which a chunk is cut at
    depth: int = 64  # chunks fetched at first, of which filters leave some
    max_depth: int = 1024  # the most that are fetched where too few were left
    duplicates: float = 0.8  # 13-gram Jaccard with an evaluated document; 0: all stay
    overlap: int = 0  # words in a row that no neighbour shares with those; 0: any
    # Its k: neighbours of validation and test chunks, among which leakage is judged.
    search: SearchConfig = dataclasses.field(default_factory=lambda: SearchConfig(k=10))


class Sources(NamedTuple):
    """What is searched, and what it is searched for."""

    database: Chunks  # those of the training split, then any others
    splits: Mapping[str, Chunks]  # train, and those that are evaluated
    decode: Callable[[np.ndarray], str]  # tokens -> text
    fingerprints: list[str]  # of all these tokens

    @property
    def evaluated(self) -> dict[str, Chunks]:
        """The chunks of all splits but the training split."""
        return {name: x for name, x in self.splits.items() if name != TRAIN}


class Database(NamedTuple):
    """All that is retrieved from, and the neighbours in it of each split's chunks."""

    chunks: Chunks  # of the training split, then of the other corpus
    filters: list[Filter]  # what is no neighbour of any chunk
    index: index.Index
    encode: Callable[[list[np.ndarray]], np.ndarray]  # tokens of a few chunks -> [n, D]
    neighbours: dict[str, ChunkNeighbours]
    facts: dict[str, Any]  # for the report

    def find(
        self, chunks: list[np.ndarray], k: int, depth: int, max_depth: int
    ) -> Neighbours:
        """The k nearest of any chunks that may be neighbours, -1 where too few are."""
        return chunk_neighbours.nearest(
            self.index,
            self.encode(chunks),
            k,
            filters=self.filters,
            depth=depth,
            max_depth=max_depth,
        )


@contextlib.contextmanager
def filling(shared: str) -> Iterator[None]:
    """Keeps other runs from filling the shared folder meanwhile; empty: there is none.

    Where there can be no lock, in a folder that is read-only or on a file system that
    has none, nobody waits.
    """
    with contextlib.ExitStack() as stack:
        if shared and processes.is_first():
            waits = f"note: waiting for another run, which fills {shared}"
            with contextlib.suppress(OSError):
                pathlib.Path(shared).mkdir(parents=True, exist_ok=True)
                lock = pathlib.Path(shared, ".lock")
                stack.enter_context(locks.locked(lock, lambda: terminal.say(waits)))
        processes.wait("the database is locked")
        yield


def find_neighbours(
    config: DatabaseConfig,
    sources: Sources,
    tower: Tower,
    folder: pathlib.Path,
    *,
    k: int,
    segment_length: int,
    phases: Callable[[str], AbstractContextManager[None]],
) -> Database:
    """Encodes the database and the evaluated splits, and finds all neighbours.

    What is finished is opened; a killed run goes on from its last finished shard. Of
    several processes all encode and the first searches.

    Args:
      tower: the frozen encoder.
      folder: of vectors and neighbours.
      k: neighbours of a training chunk; the others have ``config.search.k``.
      segment_length: tokens of a training segment, which takes nothing from its own
        documents.
      phases: times what is done under a name.
    """
    search, database = config.search, sources.database
    rows, text_length = _to_rows(config, tower, sources.decode)
    encoder = dense.encoder_of(tower, search, text_length)
    with phases("database"):
        out, facts = contamination.excluded_chunks(
            database,
            list(sources.evaluated.values()),
            sources.decode,
            sources.fingerprints,
            duplicates=config.duplicates,
            num_words=config.overlap,
        )
    identity = {
        **encoder_towers.fingerprints(tower),
        "tokens": sources.fingerprints,
        "text_length": text_length,
    }
    with phases("encode"):
        vectors = {
            name: _vectors(encoder, rows, chunks, name, folder, identity, search.dtype)
            for name, chunks in {"database": database, **sources.evaluated}.items()
        }
    opened, kind = open_late(config, vectors["database"])
    searched = {"database": vectors["database"].checksum, **kind}
    filters = [chunk_neighbours.excluded(out)] if out.any() else []
    own = chunk_neighbours.same_document(
        sources.splits[TRAIN], database, segment_length
    )
    with phases("neighbours"):
        neighbours = {
            name: _neighbours(
                opened,
                vectors["database" if name == TRAIN else name],
                name,
                folder,
                searched,
                config,
                k=k if name == TRAIN else search.k,
                num_chunks=len(chunks),
                filters=[own, *filters] if name == TRAIN else filters,
            )
            for name, chunks in sources.splits.items()
        }
    facts |= {"index": kind, "chunks": len(database)}
    for name, of_split in neighbours.items():
        facts[name] = {
            "chunks": len(of_split.ids),
            "empty": of_split.empty_share,
            "chunks_per_second": of_split.chunks_per_second,
        }

    @functools.cache
    def few() -> TextEncoder:  # of a prompt, whose chunks come one at a time
        return dense.encoder_of(tower, search, text_length, max_rows=1)

    def encode(chunks: list[np.ndarray]) -> np.ndarray:
        return few()(rows(chunks))

    return Database(database, filters, opened, encode, neighbours, facts)


Rows = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def _to_rows(
    config: DatabaseConfig, tower: Tower, decode: Callable[[np.ndarray], str]
) -> tuple[Rows, int]:
    """(tokens of chunks -> what the encoder reads of them; its longest row)."""
    length = min(config.text_length, tower.config.max_length)

    def rows(chunks: Sequence[np.ndarray]) -> list[np.ndarray]:
        texts = [decode(tokens) for tokens in chunks]
        return tower.tokenizer.encode(texts, max_length=length)

    return rows, length


def _vectors(
    encoder: TextEncoder,
    rows: Rows,
    chunks: Chunks,
    name: str,
    folder: pathlib.Path,
    identity: dict[str, Any],
    dtype: str,
) -> Datastore:
    directory = folder / name
    done = directory.exists()
    with terminal.counter(f"encoding {name}", len(chunks), disable=done) as advance:
        return encode_passages.build(
            encoder,
            chunks,
            rows,
            directory,
            dtype=dtype,
            identity={**identity, "split": name, **chunks.identity},
            advance=advance,
        )


def open_late(
    config: DatabaseConfig, store: Datastore
) -> tuple[index.Index, dict[str, Any]]:
    """The index, opened at its first search, and what it is in a few words."""
    search = config.search
    kind: dict[str, Any] = {"index": "exact", "metric": METRIC}
    if auto_index.resolve(search.index, store.num_entries) == "scann":
        kind |= {"index": "scann", "target_recall": search.target_recall}
    open_index = functools.partial(dense.open_index, store, search, metric=METRIC)
    return _OpenedLate(store, open_index), kind


class _OpenedLate:
    """An index that costs nothing before its first search."""

    def __init__(self, store: Datastore, open_index: Callable[[], index.Index]):
        self.dim, self.num_entries = store.dim, store.num_entries
        self._open = functools.cache(open_index)

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        return self._open().search(queries, k)


def _neighbours(
    opened: index.Index,
    vectors: Datastore,
    name: str,
    folder: pathlib.Path,
    identity: dict[str, Any],
    config: DatabaseConfig,
    *,
    k: int,
    num_chunks: int,
    filters: list[Filter],
) -> ChunkNeighbours:
    """Found by the first process, while the others wait, and opened by all."""
    directory = folder / f"neighbours-{name}"

    def build() -> ChunkNeighbours:
        done = directory.exists()
        with terminal.counter(f"searching {name}", num_chunks, disable=done) as advance:
            return chunk_neighbours.build(
                opened,
                vectors,
                directory,
                k=k,
                identity=identity,
                num_chunks=num_chunks,
                filters=filters,
                depth=max(config.depth, k),
                max_depth=config.max_depth,
                advance=advance,
            )

    built = processes.by_first(build, f"find the neighbours of {name}") or build()
    if built.chunks_per_second:
        terminal.say(
            f"neighbours of {name}: {built.chunks_per_second:,.0f} chunks/s, "
            f"{built.empty_share:.1%} of the places are empty"
        )
    return built
