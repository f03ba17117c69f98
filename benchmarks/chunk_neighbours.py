"""Precomputing the neighbours of a split's chunks: throughput, and bounded memory.

    python -m benchmarks.chunk_neighbours

Every chunk is searched among all chunks, those of its own document left out: random
vectors of a sentence encoder's width, exact search. Beside it the same build with an
index that answers at once, which leaves filters and disk. Of that one memory is told
too, at two sizes in fresh processes: what it adds is a block, a shard and the pages of
the mapped files, which the system takes back as it likes.
"""

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import record
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import chunk_database, chunk_neighbours, datastore, exact
from rlm_jax.retrieval.chunk_database import Chunks

K, CHUNK, SEGMENT = 2, 4, 16
DOCUMENT = 1000  # tokens


class AtOnce:
    """Every k-th entry, whatever is asked."""

    def __init__(self, dim: int, num_entries: int):
        self.dim, self.num_entries = dim, num_entries

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        ids = np.linspace(0, self.num_entries - 1, k).astype(np.int32)
        ids = np.broadcast_to(ids, (len(queries), k))
        return Neighbours(np.zeros(ids.shape, np.float32), ids)


def chunks_of(num: int) -> Chunks:
    """So many chunks of a stream; which tokens it holds does not matter here."""
    tokens = np.broadcast_to(np.uint16(0), num * CHUNK)
    offsets = np.append(np.arange(0, len(tokens), DOCUMENT), len(tokens))
    return chunk_database.chunk_stream(tokens, offsets, CHUNK)


def vectors_of(num: int, dim: int, folder: Path) -> datastore.Datastore:
    """Random unit vectors on disk."""
    writer = datastore.create(
        folder, dim=dim, dtype="float32", num_entries=num, identity={"random": num}
    )
    rng = np.random.default_rng(0)
    for start in range(0, num, 4096):
        some = rng.normal(size=(min(4096, num - start), dim)).astype(np.float32)
        some /= np.linalg.norm(some, axis=1, keepdims=True)
        writer.append(some, np.arange(start, start + len(some)))
    return writer.publish()


def build_memory(num: int, dim: int) -> float:
    """MB that finding the neighbours of so many chunks adds, but for the index'."""
    chunks = chunks_of(num)
    own = chunk_neighbours.same_document(chunks, chunks, SEGMENT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vectors = vectors_of(num, dim, folder / "vectors")
        before = record.start_of_memory()
        chunk_neighbours.build(
            AtOnce(dim, num), vectors, folder / "n", k=K, identity={}, filters=[own]
        )
        return round(record.added_memory(before), 2)


def measure(quick: bool) -> dict:
    num, dim = (2_000, 16) if quick else (50_000, 384)
    chunks = chunks_of(num)
    own = chunk_neighbours.same_document(chunks, chunks, SEGMENT)
    speed, empty = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vectors = vectors_of(num, dim, folder / "vectors")
        indexes = {
            "exact": exact.build(vectors, metric="ip"),
            "filters_and_disk": AtOnce(dim, num),
        }
        indexes["exact"].search(vectors.keys(0, min(num, 8192)), 64)  # compiles
        for kind, searched in indexes.items():
            began = time.perf_counter()
            found = chunk_neighbours.build(
                searched, vectors, folder / kind, k=K, identity={}, filters=[own]
            )
            speed[kind] = num / (time.perf_counter() - began)
            empty[kind] = found.empty_share
    few, many = (1_000, 4_000) if quick else (50_000, 200_000)
    width = 8 if quick else 32
    memory = {
        f"{count} chunks": record.in_fresh_process(
            "benchmarks.chunk_neighbours", "build_memory", count, width
        )
        for count in (few, many)
    }
    short, long = memory.values()
    # Vectors are read, and neighbours written, through mapped files.
    mapped_mb = (many - few) * 4 * (width + K) / 1e6
    return {
        "sizes": {"chunks": num, "width": dim, "k": K, "depth": 64},
        "claims": {
            f"growth of added memory, {few} to {many} chunks, over the mapped files'": (
                record.claim(max(long - short, 0) / mapped_mb, at_most=1.5)
            )
        },
        "chunks_per_second": {kind: round(x) for kind, x in speed.items()},
        "hours_per_million_chunks": {
            kind: float(f"{1e6 / x / 3600:.3g}") for kind, x in speed.items()
        },
        "empty_share": empty,
        "mapped_mb": round(mapped_mb, 2),
        "added_mb": memory,
    }


if __name__ == "__main__":
    record.main("chunk_neighbours", measure)
