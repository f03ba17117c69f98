"""Queries a second at a recall of 0.95: exact search, ScaNN, and faiss's IVF-PQ.

    python -m benchmarks.search_at_scale --embeddings FILE.npy --queries FILE.npy

The keys are unit vectors by inner product: the given embeddings float32 [N, D], and
beyond their number jittered copies of them, each moved by a quarter of the difference
of two others (so that the noise has the data's own spectrum) and made unit again. The
queries are given embeddings that no key is a copy of. Without files both come from a
mixture of 20,000 Gaussians with a decaying spectrum.

Each side is tuned on the same queries to the same recall of the 10 nearest, and has the
same threads: ScaNN as `scann.build` does it; faiss for each depth of its refinement
(exact float32, as ScaNN's) with the fewest lists that reach the recall, of which the
fastest counts. Both have as many leaves. Beside faiss's IVF-PQ of 8 bits for 8
dimensions, on which the claim is, stands its fast-scan variant of 4 bits for 2, which
is the layout of ScaNN. Searches are timed in turns. Build times and the peak of memory
come from fresh processes at three sizes.
"""

import argparse
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import datastore, exact, scann
from rlm_jax.retrieval.index import recall

SIZES, QUICK_SIZES = (250_000, 500_000, 1_000_000), (4_500, 8_000)
DIM, NUM_QUERIES, K, TARGET = 384, 1000, 10, 0.95
QUICK_DIM, QUICK_QUERIES = 32, 50
REFINE = (2, 5, 10, 20, 40)  # times K candidates that faiss scores exactly
# Product quantisers of faiss: dimensions of a block, and how it is coded.
PEERS = {"faiss IVF-PQ": (8, ""), "faiss IVF-PQ fast scan": (2, "x4fs")}


def mixture(num: int, dim: int, seed: int) -> np.ndarray:
    """Unit vectors float32 [num, dim] where no embeddings are given."""
    centres = np.random.default_rng(0).normal(size=(20_000, dim)).astype(np.float32)
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(num, dim)).astype(np.float32)
    points = centres[rng.integers(0, len(centres), num)] + noise
    return unit(points * np.arange(1, dim + 1, dtype=np.float32) ** -0.5)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_keys(folder: Path, size: int, embeddings: str, dim: int) -> None:
    """A float32 datastore of that many keys, written in pieces."""
    base = np.load(embeddings).astype(np.float32) if embeddings else None
    dim = base.shape[1] if base is not None else dim
    rng = np.random.default_rng(1)
    writer = datastore.create(
        folder, dim=dim, dtype="float32", num_entries=size, identity={}
    )
    for start in range(0, size, 50_000):
        rows = np.arange(start, min(start + 50_000, size))
        if base is None:
            keys = mixture(len(rows), dim, seed=2 + start)
        else:
            plus, minus = base[rng.integers(0, len(base), (2, len(rows)))]
            copied = (rows >= len(base))[:, None]
            keys = base[rows % len(base)] + copied * (plus - minus) / 4
        writer.append(unit(keys), rows)
    writer.publish()


def build_cost(folder: str, queries: str) -> dict[str, float]:
    """Seconds of building a ScaNN index in this process, and MB at its peak."""
    store = datastore.open(folder, verify=False)
    options: dict[str, Any] = {"target_recall": TARGET, "queries": np.load(queries)}
    # The library and the compiled programs of exact search are not the index's.
    scann.build(store, metric="ip", rows=(0, store.num_entries // 10), **options)
    start = record.start_of_memory()
    clock = time.process_time()
    index = scann.build(store, metric="ip", **options)
    return {
        "entries": store.num_entries,
        "seconds": index.seconds,
        "cpu_seconds": round(time.process_time() - clock, 2),
        "peak_mb": round(record.added_memory(start), 1),
    }


class Faiss:
    """IVF-PQ with exact refinement; `tune` finds how to search it.

    Args:
      keys: float32 [M, D].
      num_lists: leaves.
      threads: of searches.
      block, code: see `PEERS`.
      metric: "ip" or "l2".
    """

    def __init__(
        self,
        keys: np.ndarray,
        num_lists: int,
        threads: int,
        block: int,
        code: str,
        metric: str = "ip",
    ):
        import faiss  # pyright: ignore[reportMissingImports]

        faiss.omp_set_num_threads(threads)
        start = time.perf_counter()
        dim = keys.shape[1]
        factory = f"IVF{num_lists},PQ{dim // block}{code},RFlat"
        metrics = {"ip": faiss.METRIC_INNER_PRODUCT, "l2": faiss.METRIC_L2}
        self.index: Any = faiss.index_factory(dim, factory, metrics[metric])
        sample = np.random.default_rng(0).permutation(len(keys))[:250_000]
        self.index.train(keys[np.sort(sample)])
        self.index.add(keys)
        self.build_seconds = round(time.perf_counter() - start, 1)
        self.lists = faiss.extract_index_ivf(self.index)
        self.num_lists = num_lists

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        scores, ids = self.index.search(queries, k)
        return Neighbours(scores, ids.astype(np.int32))

    def tune(
        self, queries: np.ndarray, truth: Neighbours, target: float = TARGET
    ) -> dict[str, Any]:
        """The fastest setting that reaches the target, or else the one nearest it."""
        tried, k = [], truth.ids.shape[1]
        for refine in REFINE:
            probes, found = 2, 0.0
            while found < target and probes < self.num_lists:
                probes, before = min(self.num_lists, -(-5 * probes // 4)), found
                self.set(probes, refine)
                found = recall(self.search(queries, k), truth)
                if probes > 50 and found - before < 1e-4:
                    break  # more candidates are wanted, not more lists
            seconds = min(
                record.timed(lambda: self.search(queries, k))()[0] for _ in "ab"
            )
            tried.append({"probes": probes, "refine": refine, "recall": found})
            tried[-1]["seconds"] = seconds if found >= target else float("inf")
        best = min(tried, key=lambda one: (one["seconds"], -one["recall"]))
        self.set(best["probes"], best["refine"])
        return {field: best[field] for field in ("probes", "refine", "recall")}

    def set(self, probes: int, refine: int) -> None:
        self.lists.nprobe, self.index.k_factor = probes, refine


def at_largest(folder: Path, queries: np.ndarray, threads: int) -> dict[str, Any]:
    """Queries a second and recall of the three on one datastore."""
    store = datastore.open(folder, verify=False)
    truth = exact.build(store, metric="ip")
    wanted = truth.search(queries, K)
    index = scann.build(store, metric="ip", target_recall=TARGET, queries=queries)
    index.searcher.set_num_threads(threads)
    sides: dict[str, Any] = {"scann": index, "exact": truth}
    figures: dict[str, Any] = {
        "exact": {"recall": 1.0},
        "scann": {
            "num_leaves": index.parameters.num_leaves,
            "kept": index.kept,
            "efforts": [one._asdict() for one in index.parameters.efforts],
            **scann.report(index),
            "recall": recall(index.search(queries, K), wanted),
        },
    }
    if find_spec("faiss"):
        leaves = max(index.parameters.num_leaves, 1)
        for name, coding in PEERS.items():
            peer = Faiss(store.keys(0, store.num_entries), leaves, threads, *coding)
            tuned = peer.tune(queries, wanted)
            figures[name] = {"build_seconds": peer.build_seconds, **tuned}
            sides[name] = peer
    # As many searches a turn as make a time that can be trusted.
    repeats = dict.fromkeys(sides, 10) | {"exact": 1}

    def work(name):
        def run():
            for _ in range(repeats[name]):
                sides[name].search(queries, K)

        return record.timed(run)

    for name in ("scann", "exact"):
        work(name)()
    for other in sorted(set(sides) - {"scann"}):
        spent = record.interleaved(
            {other: work(other), "scann": work("scann")},
            rounds=3 if other == "exact" else 7,
        )
        # Scaled, since the two sides need not search equally often.
        scale = repeats["scann"] / repeats[other]
        figures[other]["scann_is_faster"] = round(spent["ratio"]["median"] * scale, 3)
        figures[other]["quartiles"] = [
            round(value * scale, 3) for value in spent["ratio"]["quartiles"]
        ]
        for name in (other, "scann"):
            rate = len(queries) * repeats[name] / spent["seconds"][name]
            figures[name]["queries_per_second"] = round(rate, 1)
    return figures


def measure(quick: bool, embeddings: str = "", queries_file: str = "") -> dict:
    sizes = QUICK_SIZES if quick else SIZES
    dim, count = (QUICK_DIM, QUICK_QUERIES) if quick else (DIM, NUM_QUERIES)
    if queries_file:
        queries = unit(np.load(queries_file).astype(np.float32))
        queries = queries[np.random.default_rng(0).permutation(len(queries))[:count]]
    else:
        queries = mixture(count, dim, seed=1)
    costs = []
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        np.save(path / "queries.npy", queries)
        folder = path / "keys"
        for size in sizes:
            folder = path / str(size)
            write_keys(folder, size, embeddings, dim)
            cost = record.in_fresh_process(
                "benchmarks.search_at_scale",
                "build_cost",
                str(folder),
                str(path / "queries.npy"),
            )
            costs.append(cost)
            print(cost, flush=True)
        figures = at_largest(folder, queries, record.num_cores())

    def growth(field: str) -> float:
        each = [cost[field] / cost["entries"] for cost in costs]
        return each[-1] / each[0]

    claims = {
        "recall@10 of ScaNN": record.claim(figures["scann"]["recall"], at_least=TARGET),
        "peak memory an entry, largest / smallest": record.claim(
            growth("peak_mb"), at_most=1.3
        ),
        "build processor seconds an entry, largest / smallest": record.claim(
            growth("cpu_seconds"), at_most=1.3
        ),
    }
    if "faiss IVF-PQ" in figures:
        claims["queries/s, ScaNN / faiss IVF-PQ"] = record.claim(
            figures["faiss IVF-PQ"]["scann_is_faster"], at_least=2.0
        )
    return {
        "data": "given embeddings" if embeddings else "mixture of Gaussians",
        "sizes": sizes,
        "dim": queries.shape[1],
        "num_queries": len(queries),
        "k": K,
        "threads": record.num_cores(),
        "claims": claims,
        "builds": costs,
        "search": figures,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--embeddings", default="")
    parser.add_argument("--queries", default="")
    record.with_options(
        "search_at_scale",
        parser,
        lambda quick, given: measure(quick, given.embeddings, given.queries),
        told=("embeddings", "queries"),
    )
