"""From how many keys on does ScaNN pay? Exact search and ScaNN at growing sizes.

    python -m benchmarks.search_crossover

Keys of width 256 from a mixture of 2,000 Gaussians with a decaying spectrum, which is
harder than the states of a trained model; 1,024 queries from the same mixture, k = 64.
An index is built once and searched for many batches, so the crossover is told as the
number of batches after which building the ScaNN index has paid for itself. Times are
seconds of processor time over all threads, which other programs disturb little.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import record
from rlm_jax.retrieval import datastore, exact, scann

SIZES = (4096, 16_384, 65_536, 200_000)
DIM, NUM_QUERIES, K = 256, 1024, 64


def mixture(num: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2000, DIM))
    points = centres[rng.integers(0, 2000, num)] + rng.normal(size=(num, DIM))
    return (4 * points * np.arange(1, DIM + 1) ** -0.5).astype(np.float32)


def seconds(search, queries: np.ndarray) -> float:
    """The cheaper of two searches, after one that compiles."""
    times = []
    for _ in range(3):
        start = time.process_time()
        search(queries, K)
        times.append(time.process_time() - start)
    return min(times[1:])


def one_size(keys: np.ndarray, queries: np.ndarray, metric: str, folder: Path) -> dict:
    writer = datastore.create(
        folder, dim=DIM, dtype="float32", num_entries=len(keys), identity={}
    )
    writer.append(keys, np.arange(len(keys)))
    store = writer.publish()
    truth = exact.build(store, metric=metric)
    start = time.process_time()
    index = scann.build(store, metric=metric)
    build_seconds = time.process_time() - start
    exact_seconds = seconds(truth.search, queries)
    scann_seconds = seconds(index.search, queries)
    saved = exact_seconds - scann_seconds
    return {
        "metric": metric,
        "num_entries": len(keys),
        "num_leaves": index.parameters.num_leaves,
        "efforts": [one._asdict() for one in index.parameters.efforts],
        "exact_cpu_seconds": round(exact_seconds, 4),
        "scann_cpu_seconds": round(scann_seconds, 4),
        "scann_build_cpu_seconds": round(build_seconds, 2),
        "batches_to_pay": round(build_seconds / saved) if saved > 0 else None,
        "recall": round(scann.measure_recall(index, truth, queries, K), 4),
    }


def measure(quick: bool) -> dict:
    sizes = (1024,) if quick else SIZES
    points = mixture(max(sizes) + NUM_QUERIES)
    queries, keys = points[:NUM_QUERIES], points[NUM_QUERIES:]
    rows = []
    for size in sizes:
        for metric in ("l2", "ip"):
            with tempfile.TemporaryDirectory() as folder:
                store = Path(folder) / "store"
                rows.append(one_size(keys[:size], queries, metric, store))
            print(json.dumps(rows[-1]), flush=True)
    return {"dim": DIM, "num_queries": NUM_QUERIES, "k": K, "rows": rows}


if __name__ == "__main__":
    record.main("search_crossover", measure)
