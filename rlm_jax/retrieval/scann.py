"""Approximate search by ScaNN: partitions, anisotropic hashing, exact reordering.

Source: Guo et al. 2020, "Accelerating Large-Scale Inference with Anisotropic Vector
Quantization"; for inner products every key has a second leaf, after Sun et al. 2023,
"SOAR: Improved Indexing for Approximate Nearest Neighbor Search". The keys are held in
memory as float32 while the index is built, and as `Parameters.kept` while it is used.
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import exact
from rlm_jax.retrieval.datastore import Datastore
from rlm_jax.retrieval.index import (
    TARGET_RECALL,
    Index,
    check_metric,
    check_search,
    check_target,
    none_found,
    recall,
)
from rlm_jax.storage import checked_files

_FORMAT = "rlm_jax scann 2"
_DISTANCES = {"ip": "dot_product", "l2": "squared_l2"}


# What reordering keeps of each key -> bytes of a number.
KEPT = {"float32": 4, "bfloat16": 2, "int8": 1}
_FEWEST = 30  # candidates that are scored exactly, however small k is
_SAMPLE = 1000  # queries on which an index is tuned
_ENOUGH = 30  # given queries that are tuned on alone


class Parameters(NamedTuple):
    """How ScaNN partitions and searches; no leaves is a comparison with every key."""

    num_leaves: int
    leaves_to_search: int
    reorder_factor: int  # candidates that are scored exactly, per neighbour asked for
    kept: str = "float32"  # the keys they are scored with: float32, bfloat16 or int8


@dataclass(frozen=True)
class ScannIndex:
    """An approximate index; `build` makes one, `load` reads one that was saved.

    Attributes:
      first: row of the datastore that is this index's first entry.
      target_recall: what it was tuned for, the share of the ``tuned_k`` nearest; None
        for an index whose parameters were given.
      recall: what was measured for that.
      seconds: how long it took to build.
    """

    metric: str
    dim: int
    num_entries: int
    parameters: Parameters
    datastore_checksum: str
    searcher: Any
    first: int = 0
    target_recall: float | None = None
    tuned_k: int | None = None
    recall: float | None = None
    seconds: float = 0.0

    @property
    def kept(self) -> str:
        return self.parameters.kept

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """About the k nearest keys of each query, best first.

        Args:
          queries: float32 [N, D].
          k: how many; where fewer were found, ids are -1 and scores minus infinity.

        Returns:
          Ids are rows of the datastore.

        Raises:
          UserError: queries of another width or with NaN or infinity, or k below 1.
        """
        queries = check_search(queries, k, self.dim)
        if not len(queries):
            return none_found(0, k)
        limits = {}
        if self.parameters.num_leaves:
            num_leaves, to_search, factor, _ = self.parameters
            # A large k must not run out of candidates in the leaves that are visited.
            enough = -(-4 * k * num_leaves // self.num_entries)
            limits["leaves_to_search"] = min(num_leaves, max(to_search, enough))
            reorder = min(self.num_entries, max(_FEWEST, factor * k))
            limits["pre_reorder_num_neighbors"] = reorder
        rows, scores = self.searcher.search_batched_parallel(
            queries, final_num_neighbors=k, **limits
        )
        absent = np.isnan(scores)
        scores = -scores if self.metric == "l2" else scores
        return Neighbours(
            np.where(absent, -np.inf, scores).astype(np.float32),
            np.where(absent, -1, rows.astype(np.int32) + self.first),
        )


def choose_parameters(num_entries: int) -> Parameters:
    """Parameters from the size: where tuning for a target recall starts.

    Leaves grow as the square root of the keys, and the leaves searched as the square
    root of those.
    """
    if num_entries < 4096:
        return Parameters(0, 0, 0)
    num_leaves = round(2 * num_entries**0.5)
    return Parameters(num_leaves, round(num_leaves**0.5 / 2), 3)


def build(
    datastore: Datastore,
    *,
    metric: str = "l2",
    parameters: Parameters | None = None,
    kept: str = "float32",
    target_recall: float = TARGET_RECALL,
    k: int = 10,
    queries: np.ndarray | None = None,
    rows: tuple[int, int] | None = None,
) -> ScannIndex:
    """Trains an index on a datastore's keys and tunes how it is searched.

    Tuning holds the index to exact search over the same keys, on a sample of 1,000
    queries. Without ``queries`` the sample is keys of the datastore, drawn with a fixed
    seed and each moved by three quarters of the difference of two others, which makes
    them a little harder to search than the questions of real passages.

    Args:
      datastore: what is searched; its keys are read as float32.
      metric: "l2" (negated squared distance) or "ip" (inner product).
      parameters: taken as they are; None takes `choose_parameters` of the size and
        tunes them.
      kept: what reordering keeps of each key, "float32", "bfloat16" or "int8"; with
        ``parameters`` it is theirs.
      target_recall: share of the k nearest to be found.
      k: the number of neighbours at which that is measured.
      queries: float32 [N, D], what to tune on: real ones, if there are any.
      rows: the first row and the one after the last; None takes all.

    Raises:
      UserError: an unknown metric or dtype, a target outside (0, 1], queries that do
        not fit, or ScaNN is not installed.
    """
    library = _import_scann()
    first, stop = rows or (0, datastore.num_entries)
    tuned = parameters is None
    if parameters is None:
        parameters = choose_parameters(stop - first)._replace(kept=kept)
    distance = _DISTANCES[check_metric(metric)]
    check_target(target_recall)
    if parameters.kept not in KEPT:
        raise UserError(
            f"Reordering cannot keep keys as {parameters.kept!r}; use one of "
            f"{tuple(KEPT)}."
        )
    if queries is not None:
        queries = check_search(queries, k, datastore.dim)
    start = time.perf_counter()
    keys = datastore.keys(first, stop)
    truth = None
    if tuned:
        # Before ScaNN has a copy of the keys, so that the peak of memory is its own.
        queries = sample_queries(datastore, queries)
        truth = exact.build(keys, metric=metric, resident_bytes=0).search(queries, k)
        truth = truth._replace(ids=np.where(truth.ids < 0, -1, truth.ids + first))
    searcher = _train(library, keys, distance, parameters)
    del keys
    index = ScannIndex(
        metric,
        datastore.dim,
        stop - first,
        parameters,
        datastore.checksum,
        searcher,
        first,
    )
    if truth is not None and queries is not None:
        index = _tune(index, queries, truth, target_recall)
    return replace(index, seconds=round(time.perf_counter() - start, 3))


def sample_queries(datastore: Datastore, queries: np.ndarray | None) -> np.ndarray:
    """About 1,000 queries [N, D] to tune on: of those given, or moved keys if few are.

    Drawn with a fixed seed; see `build`.
    """
    rng = np.random.default_rng(0)
    given = np.zeros((0, datastore.dim), np.float32)
    if queries is not None:
        given = queries[rng.permutation(len(queries))[:_SAMPLE]]
    # A handful of questions would say little of the recall of others.
    if len(given) >= _ENOUGH:
        return given
    count = min(_SAMPLE, datastore.num_entries)
    ids = rng.integers(0, datastore.num_entries, (3, count))
    keys, plus, minus = datastore.gather_keys(ids)
    return np.concatenate([given, keys + np.float32(0.75) * (plus - minus)])


def _train(
    library: ModuleType, keys: np.ndarray, distance: str, parameters: Parameters
) -> Any:
    kinds = library.scann_builder.ReorderType
    kept = kinds[parameters.kept.upper()]
    builder = library.builder(keys, 10, distance)
    if not parameters.num_leaves:
        return builder.score_brute_force(kept).build()
    inner = distance == _DISTANCES["ip"]
    # A second leaf, and weighting the error along the key, are right for inner products
    # alone.
    builder = (
        builder.tree(
            parameters.num_leaves,
            parameters.leaves_to_search,
            training_sample_size=min(len(keys), 250_000),
            soar_lambda=1.5 if inner else None,
        )
        .score_ah(2, anisotropic_quantization_threshold=0.2 if inner else float("nan"))
        .reorder(100, kept)
    )
    return builder.build()


def _tune(
    index: ScannIndex, queries: np.ndarray, truth: Neighbours, target: float
) -> ScannIndex:
    """Searches more leaves, or reorders more, until the target holds.

    Each step does one of the two, the one that gains more; neither needs training.
    """
    k = truth.ids.shape[1]

    def measured(leaves: int, factor: int) -> ScannIndex:
        changed = index.parameters._replace(
            leaves_to_search=leaves, reorder_factor=factor
        )
        tried = replace(index, parameters=changed)
        return replace(tried, recall=recall(tried.search(queries, k), truth))

    num_leaves, leaves, factor, _ = index.parameters
    best = measured(leaves, factor)
    while (best.recall or 0) < target:
        _, leaves, factor, _ = best.parameters
        steps = []
        if leaves < num_leaves:
            steps.append((min(num_leaves, -(-5 * leaves // 4)), factor))
        if num_leaves and factor * k < index.num_entries:
            steps.append((leaves, 2 * factor))
        if not steps:
            break
        best = max((measured(*step) for step in steps), key=lambda one: one.recall or 0)
    return replace(best, target_recall=target, tuned_k=k)


def report(index: ScannIndex) -> dict[str, Any]:
    """What an index costs and gives.

    Returns:
      entries; bytes in memory, of the hashed keys with the leaves' centres and of the
      keys kept for reordering; seconds to build; target recall, the k it was tuned at,
      and the recall measured (None where parameters were given).
    """
    parameters = index.parameters
    hashed = 0
    if parameters.num_leaves:
        # Four bits for two dimensions; with SOAR a key stands in two leaves.
        places = 2 if index.metric == "ip" else 1
        hashed = places * index.num_entries * -(-index.dim // 4)
        hashed += 4 * parameters.num_leaves * index.dim
    return {
        "entries": index.num_entries,
        "hashed_bytes": hashed,
        "kept_bytes": index.num_entries * index.dim * KEPT[parameters.kept],
        "build_seconds": index.seconds,
        "target_recall": index.target_recall,
        "k": index.tuned_k,
        "recall": index.recall,
    }


def save(index: ScannIndex, directory: str | os.PathLike) -> None:
    """Writes an index to a new folder, published by a rename.

    Raises:
      UserError: something is there already, or it cannot be written.
    """
    fields = {
        "metric": index.metric,
        "dim": index.dim,
        "num_entries": index.num_entries,
        "parameters": list(index.parameters),
        "datastore": index.datastore_checksum,
        "first": index.first,
        "target_recall": index.target_recall,
        "tuned_k": index.tuned_k,
        "recall": index.recall,
        "seconds": index.seconds,
    }

    def write(folder: Path) -> None:
        try:
            index.searcher.serialize(str(folder), relative_path=True)
        except RuntimeError as error:  # how ScaNN reports any failure to write
            raise UserError(
                f"ScaNN cannot write {folder} ({error}); free some space there."
            ) from error

    checked_files.publish(Path(directory), _FORMAT, fields, write)


def load(
    directory: str | os.PathLike, datastore: Datastore, *, verify: bool = True
) -> ScannIndex:
    """Reads a saved index of this datastore.

    Args:
      directory: what `save` was given.
      datastore: what the index was built on.
      verify: read every file and compare its CRC-32; False compares names alone.

    Raises:
      UserError: there is none, a file was changed or added, it belongs to another
        datastore, or ScaNN is not installed.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"There is no index at {directory}; build and save it first.")
    manifest = checked_files.read_manifest(directory, _FORMAT)
    wanted = {"datastore": datastore.checksum}
    checked_files.require_equal(wanted, manifest, directory)
    # ScaNN would unpickle a file of its own that we never write, so nothing may be
    # there that the manifest does not name.
    checked_files.verify_files(directory, manifest, checksums=verify)
    return ScannIndex(
        manifest["metric"],
        manifest["dim"],
        manifest["num_entries"],
        Parameters(*manifest["parameters"]),
        manifest["datastore"],
        _import_scann().load_searcher(str(directory), assets_backcompat_shim=False),
        manifest["first"],
        manifest["target_recall"],
        manifest["tuned_k"],
        manifest["recall"],
        manifest["seconds"],
    )


def measure_recall(index: Index, exact: Index, queries: np.ndarray, k: int) -> float:
    """The share of the k exact neighbours of each query [N, D] that ``index`` finds."""
    return recall(index.search(queries, k), exact.search(queries, k))


def installed() -> bool:
    """Whether ScaNN can be imported."""
    try:
        _import_scann()
    except UserError:
        return False
    return True


def check_installed() -> None:
    """Raises a UserError where ScaNN cannot be imported."""
    _import_scann()


def _import_scann() -> ModuleType:
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError as error:
        raise UserError(
            "Approximate search needs ScaNN, which is not installed; run `pip install "
            "scann`, or search exactly."
        ) from error
    return scann_ops_pybind
