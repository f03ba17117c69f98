"""What experiments.retro retrieves: chunks to vectors to neighbours, kept on disk."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.data import batching, corpora, neighbour_batches, passages, token_store
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.errors import UserError
from rlm_jax.method import Batches, Neighbours
from rlm_jax.models.encoder import embedder, small
from rlm_jax.recipes import runs
from rlm_jax.recipes.language_model import Text
from rlm_jax.recipes.with_passages import contamination
from rlm_jax.retrieval import (
    auto_index,
    chunk_database,
    chunk_neighbours,
    encode_passages,
    index,
)
from rlm_jax.retrieval.chunk_database import Chunks
from rlm_jax.retrieval.chunk_neighbours import ChunkNeighbours, Filter
from rlm_jax.retrieval.datastore import Datastore
from rlm_jax.retrievers import dense, encoder_towers
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.storage import locks

EVALUATED = ("validation", "test")
METRIC = "l2"  # the paper's; of unit vectors it orders as the inner product does
RANDOM_VOCABULARY = 8192


@dataclasses.dataclass
class DatabaseConfig:
    """What is retrieved from, and how its neighbours are found."""

    encoder: str = ""  # folder of the frozen encoder; empty: one of random weights
    more: str = ""  # a corpus whose training split joins the text's own
    folder: str = (
        ""  # of vectors and neighbours, for several runs; empty: the workdir's
    )
    text_length: int = 160  # of the encoder's tokens, which a chunk is cut at
    depth: int = 64  # chunks fetched at first, of which filters leave some
    max_depth: int = 1024  # the most that are fetched where too few were left
    duplicates: float = 0.8  # 13-gram Jaccard with an evaluated document; 0: all stay
    overlap: int = 0  # words in a row that no neighbour shares with those; 0: any
    # Its k: neighbours of validation and test chunks, among which leakage is judged.
    search: SearchConfig = dataclasses.field(default_factory=lambda: SearchConfig(k=10))


class Database(NamedTuple):
    """Everything that is retrieved from, and what each split's chunks find in it."""

    chunks: Chunks  # of the training split, then of the other corpus
    filters: list[Filter]  # what is no neighbour of any chunk
    index: index.Index
    encode: Callable[[list[np.ndarray]], np.ndarray]  # tokens of a few chunks -> [n, D]
    neighbours: dict[str, ChunkNeighbours]
    facts: dict[str, Any]  # for the report

    def find(
        self, chunks: list[np.ndarray], k: int, depth: int, max_depth: int
    ) -> Neighbours:
        """The k nearest of some chunks that may be neighbours, -1 where too few are."""
        return chunk_neighbours.nearest(
            self.index,
            self.encode(chunks),
            k,
            filters=self.filters,
            depth=depth,
            max_depth=max_depth,
        )


def check(config: Any) -> None:
    """Raises UserError where chunks, segments and windows do not fit together."""
    m = config.method.chunk_length
    sizes = {
        "data.length": config.data.length,
        "evaluate.window": config.evaluate.window,
        "evaluate.stride": config.evaluate.stride,
    }
    for name, size in sizes.items():
        if m < 1 or size % m:
            raise UserError(
                f"{name} is {size}, which does not consist of chunks of {m} tokens; "
                "choose a multiple of method.chunk_length."
            )
    if config.data.order != "shuffled":
        raise UserError(
            f"data.order is {config.data.order!r}; neighbours are found for chunks in "
            "the order shuffled, so choose that."
        )
    if config.method.k > config.database.search.k:
        raise UserError(
            f"A test chunk keeps {config.database.search.k} neighbours and the model "
            f"reads {config.method.k}; raise database.search.k."
        )
    chosen = config.database
    if not chosen.search.k <= chosen.max_depth >= chosen.depth >= 1:
        raise UserError(
            f"Searches of depth {chosen.depth} to {chosen.max_depth} do not give "
            f"{chosen.search.k} neighbours; raise database.max_depth."
        )
    dense.check_search(chosen.search, "database.search")


def prepare(config: Any, run: runs.Run, text: Text, phases: runs.Phases) -> Database:
    """Encode the database and the evaluated splits, and find all neighbours.

    What is finished is opened; a killed run goes on from its last finished shard. Of
    several processes all encode and the first searches; of several runs that share a
    folder one fills it, while the others wait.
    """
    folder = pathlib.Path(config.database.folder or run.workdir / "database")
    with _filling(config.database.folder):
        return _prepare(config, text, phases, folder)


@contextlib.contextmanager
def _filling(shared: str) -> Iterator[None]:
    """No other run fills the shared folder meanwhile; the workdir's is the run's own.

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


def _prepare(
    config: Any, text: Text, phases: runs.Phases, folder: pathlib.Path
) -> Database:
    chosen = config.database
    with phases("database"):
        chunks, stores = _chunks(config, text)
        everything = chunks["train"]
        if chosen.more:
            everything = chunk_database.join(everything, chunks.pop("more"))
        tower = _tower(config)
        rows, text_length = _reader(chosen, tower, text)
        encoder = dense.encoder_of(tower, chosen.search, text_length)
        evaluated = [chunks[name] for name in EVALUATED]
        out, facts = contamination.left_out_chunks(
            chosen, everything, evaluated, text.tokenizer.decode, stores
        )
    identity = {
        **encoder_towers.fingerprints(tower),
        "tokens": stores,
        "text_length": text_length,
    }
    with phases("encode"):
        vectors = {
            name: _vectors(encoder, rows, some, name, folder, identity, chosen.search)
            for name, some in (
                ("database", everything),
                *((name, chunks[name]) for name in EVALUATED),
            )
        }
    searched, kind = _index(chosen, vectors["database"])
    searched_for = {"database": vectors["database"].checksum, **kind}
    filters = [chunk_neighbours.excluded(out)] if out.any() else []
    # A training segment takes nothing from its own documents.
    own = chunk_neighbours.same_document(
        chunks["train"], everything, config.data.length
    )
    with phases("neighbours"):
        found = {
            name: _neighbours(
                searched,
                vectors["database" if name == "train" else name],
                name,
                folder,
                searched_for,
                chosen,
                k=config.method.k if name == "train" else chosen.search.k,
                num_chunks=len(chunks[name]),
                filters=[own, *filters] if name == "train" else filters,
            )
            for name in ("train", *EVALUATED)
        }
    facts |= {"index": kind, "chunks": len(everything)}
    for name, each in found.items():
        facts[name] = {
            "chunks": len(each.ids),
            "empty": each.empty_share,
            "chunks_per_second": each.chunks_per_second,
        }

    @functools.cache
    def few() -> Any:  # of a prompt, whose chunks come one at a time
        return dense.encoder_of(tower, chosen.search, text_length, max_rows=1)

    def encode(some: list[np.ndarray]) -> np.ndarray:
        return few()(rows(some))

    return Database(everything, filters, searched, encode, found, facts)


def batches(
    config: Any, text: Text, name: str, chunks: Chunks, ids: np.ndarray
) -> Batches:
    """A split's training batches, each chunk with ``method.k`` neighbours."""
    order = functools.partial(
        batching.shuffled,
        batch_size=config.data.batch_size,
        length=config.data.length,
    )
    return neighbour_batches.with_neighbours(
        text.store.split(name),
        order,
        ids,
        chunks.values,
        chunk_length=config.method.chunk_length,
        k=config.method.k,
    )


def stream(config: Any, split: TokenSplit) -> Chunks:
    """A split's chunks, across documents' ends."""
    return chunk_database.chunk_stream(
        split.tokens, split.document_offsets, config.method.chunk_length
    )


def _chunks(config: Any, text: Text) -> tuple[dict[str, Chunks], list[str]]:
    """The chunks of each split and of the other corpus; the tokens' fingerprints."""
    made = {
        name: stream(config, text.store.split(name)) for name in ("train", *EVALUATED)
    }
    if not config.database.more:
        return made, [text.fingerprint]
    other = token_store.build(corpora.load(config.database.more), text.tokenizer)
    split = other.split("train")
    made["more"] = chunk_database.chunk_documents(
        split.tokens, split.document_offsets, config.method.chunk_length
    )
    return made, [text.fingerprint, other.fingerprint]


def _tower(config: Any) -> Tower:
    """The frozen encoder; of random weights where none is named.

    The mean over tokens that such an encoder makes is a random projection of the words
    a chunk holds.
    """
    if config.database.encoder:
        return encoder_towers.load(config.database.encoder)
    reader = encoder_towers.train_tokenizer(
        passages.load(f"corpus:{config.data.corpus}"), RANDOM_VOCABULARY
    )
    random_encoder = dataclasses.replace(
        small(), vocab_size=reader.vocab_size, pad_id=reader.pad_id
    )
    params = jax.device_get(embedder(random_encoder).init(jax.random.key(0)))
    return Tower(random_encoder, params, reader)


def _reader(chosen: DatabaseConfig, tower: Tower, text: Text):
    """(tokens of chunks -> what the encoder reads of them; its longest row)."""
    length = min(chosen.text_length, tower.config.max_length)

    def rows(some: list[np.ndarray]) -> list[np.ndarray]:
        texts = [text.tokenizer.decode(tokens) for tokens in some]
        return tower.tokenizer.encode(texts, max_length=length)

    return rows, length


def _vectors(
    encoder, rows, chunks: Chunks, name: str, folder: pathlib.Path, identity, search
) -> Datastore:
    directory = folder / name
    done = directory.exists()
    with terminal.counter(f"encoding {name}", len(chunks), disable=done) as advance:
        return encode_passages.build(
            encoder,
            chunks,
            rows,
            directory,
            dtype=search.dtype,
            identity={**identity, "split": name, **chunks.identity},
            advance=advance,
        )


def _index(
    chosen: DatabaseConfig, store: Datastore
) -> tuple[index.Index, dict[str, Any]]:
    """The index, opened at its first search, and what it is in a few words."""
    search = chosen.search
    kind: dict[str, Any] = {"index": "exact", "metric": METRIC}
    if auto_index.resolve(search.index, store.num_entries) == "scann":
        kind |= {"index": "scann", "target_recall": search.target_recall}
    # Tuned for as many as are fetched, of which filters leave the best.
    open_index = functools.partial(
        dense.open_index, store, search, metric=METRIC, k=chosen.depth
    )
    return _OpenedLate(store, open_index), kind


class _OpenedLate:
    """An index that costs nothing before its first search."""

    def __init__(self, store: Datastore, open_index: Callable[[], index.Index]):
        self.dim, self.num_entries = store.dim, store.num_entries
        self._open = functools.cache(open_index)

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        return self._open().search(queries, k)


def _neighbours(
    searched: index.Index,
    vectors: Datastore,
    name: str,
    folder: pathlib.Path,
    identity: dict[str, Any],
    chosen: DatabaseConfig,
    **options: Any,
) -> ChunkNeighbours:
    """Found by the first process, while the others wait, and opened by all."""

    directory = folder / f"neighbours-{name}"

    def build() -> ChunkNeighbours:
        done, total = directory.exists(), options["num_chunks"]
        with terminal.counter(f"searching {name}", total, disable=done) as advance:
            return chunk_neighbours.build(
                searched,
                vectors,
                directory,
                identity=identity,
                depth=max(chosen.depth, options["k"]),
                max_depth=chosen.max_depth,
                advance=advance,
                **options,
            )

    found = processes.by_first(build, f"find the neighbours of {name}") or build()
    if found.chunks_per_second:
        terminal.say(
            f"neighbours of {name}: {found.chunks_per_second:,.0f} chunks/s, "
            f"{found.empty_share:.1%} of the places are empty"
        )
    return found
