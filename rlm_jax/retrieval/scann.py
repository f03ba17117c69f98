"""Approximate search by ScaNN: partitions, anisotropic hashing, exact reordering.

Source: Guo et al. 2020, "Accelerating Large-Scale Inference with Anisotropic Vector
Quantization"; every key has a second leaf, after Sun et al. 2023,
"SOAR: Improved Indexing for Approximate Nearest Neighbor Search". Keys are turned
before they are hashed (`rotation`), and how much is searched is tuned for several k's
(`effort`). The keys are held in memory as float32 while the index is built, and as
`Parameters.kept` while it is used.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import effort, exact, native_log
from rlm_jax.retrieval import rotation as rotations
from rlm_jax.retrieval.datastore import Datastore
from rlm_jax.retrieval.effort import Effort
from rlm_jax.retrieval.index import (
    TARGET_RECALL,
    Index,
    check_metric,
    check_search,
    check_target,
    none_found,
    recall,
)
from rlm_jax.retrieval.rotation import Rotation
from rlm_jax.storage import checked_files

_FORMAT = "rlm_jax scann 3"
_KINDS = {
    **dict.fromkeys(("metric", "kept", "datastore"), str),
    **dict.fromkeys(("dim", "num_entries", "num_leaves", "first"), int),
    **{"efforts": list[list], "target_recall": float | None, "seconds": float},
}
_DISTANCES = {"ip": "dot_product", "l2": "squared_l2"}

# What reordering keeps of each key -> bytes of a number.
KEPT = {"float32": 4, "bfloat16": 2, "int8": 1}
_COPIES = 2  # leaves that a key stands in
_READ = 65_536  # keys read from the datastore at a time
_DEPTH_OF_ALL = 10  # neighbours by which a comparison with every key is judged


class Parameters(NamedTuple):
    """How ScaNN partitions and searches; no leaves is a comparison with every key."""

    num_leaves: int
    efforts: Sequence[Effort] = ()  # by rising k; at least one where there are leaves
    kept: str = "float32"  # the keys of the reordering: float32, bfloat16 or int8


@dataclass(frozen=True)
class ScannIndex:
    """An approximate index; `build` makes one, `load` reads one that was saved.

    Attributes:
      rotation: what its keys went through; None where they are not hashed.
      first: row of the datastore that is this index's first entry.
      target_recall: what it was tuned for, the share of the nearest that is found; None
        for an index whose parameters were given.
      seconds: how long it took to build.
    """

    metric: str
    dim: int
    num_entries: int
    parameters: Parameters
    datastore_checksum: str
    searcher: Any
    rotation: Rotation | None = None
    first: int = 0
    target_recall: float | None = None
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
        num_leaves, efforts, _ = self.parameters
        spent = Effort(k, 0, 0)
        if num_leaves:
            spent = effort.for_k(
                efforts, k, num_leaves=num_leaves, num_entries=self.num_entries
            )
        return self.search_with(queries, spent)

    def search_with(self, queries: np.ndarray, spent: Effort) -> Neighbours:
        """`search` of checked queries with an effort of one's own."""
        limits, turned = {}, queries
        if self.parameters.num_leaves:
            limits["leaves_to_search"] = spent.leaves
            limits["pre_reorder_num_neighbors"] = spent.candidates
        if self.rotation is not None:
            turned = rotations.turn_queries(self.rotation, queries)
        rows, scores = self.searcher.search_batched_parallel(
            turned, final_num_neighbors=spent.k, **limits
        )
        absent = np.isnan(scores)
        if self.rotation is not None:
            scores = rotations.scores(self.rotation, scores, queries)
        elif self.metric == "l2":
            scores = -scores
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
        return Parameters(0)
    num_leaves = round(2 * num_entries**0.5)
    return Parameters(num_leaves, [Effort(1, round(num_leaves**0.5 / 2), 0)])


def build(
    datastore: Datastore,
    *,
    metric: str = "l2",
    parameters: Parameters | None = None,
    kept: str = "float32",
    target_recall: float = TARGET_RECALL,
    queries: np.ndarray | None = None,
    rows: tuple[int, int] | None = None,
) -> ScannIndex:
    """Trains an index on a datastore's keys and tunes how it is searched.

    Tuning holds the index to exact search over the same keys, on a sample of 2,000
    queries, for each k of `effort.KS`; a search for another k does what lies between.
    Without ``queries`` the sample is keys of the datastore, drawn with a fixed seed and
    each moved by three quarters of the difference of two others, which makes them a
    little harder to search than the questions of real passages.

    Args:
      datastore: what is searched; its keys are read as float32.
      metric: "l2" (negated squared distance) or "ip" (inner product).
      parameters: taken as they are; None takes `choose_parameters` of the size and
        tunes them.
      kept: what reordering keeps of each key, "float32", "bfloat16" or "int8"; with
        ``parameters`` it is theirs.
      target_recall: share of the k nearest to be found, whatever k.
      queries: float32 [N, D], what to tune on: real ones, if there are any.
      rows: the first row and the one after the last; None takes all.

    Raises:
      UserError: an unknown metric or dtype, a target outside (0, 1], queries that do
        not fit, or ScaNN is not installed.
    """
    module = library()
    first, stop = rows or (0, datastore.num_entries)
    tuned = parameters is None
    if parameters is None:
        parameters = choose_parameters(stop - first)._replace(kept=kept)
    check_metric(metric)
    check_target(target_recall)
    if parameters.kept not in KEPT:
        raise UserError(
            f"Reordering cannot keep keys as {parameters.kept!r}; use one of "
            f"{tuple(KEPT)}."
        )
    if queries is not None:
        queries = check_search(queries, 1, datastore.dim)
    start = time.perf_counter()
    dim = datastore.dim
    width = rotations.width(dim, metric) if parameters.num_leaves else dim
    turned = np.empty((stop - first, width), np.float32)
    keys = turned[:, :dim]
    for i in range(first, stop, _READ):
        until = min(i + _READ, stop)
        keys[i - first : until - first] = datastore.keys(i, until)
    truth = None
    if tuned:
        # Before ScaNN has a copy of the keys, so that the peak of memory is its own.
        queries = effort.sample_queries(datastore, queries)
        depth = effort.KS[-1] if parameters.num_leaves else _DEPTH_OF_ALL
        truth = exact.build(keys, metric=metric, resident_bytes=0).search(
            queries, min(depth, stop - first)
        )
        truth = truth._replace(ids=np.where(truth.ids < 0, -1, truth.ids + first))
    rotation = None
    if parameters.num_leaves:
        rotation = rotations.of_keys(keys, metric)
        rotations.turn_keys(rotation, turned)
    searcher = native_log.quietly(_train, module, turned, metric, parameters)
    del keys, turned
    index = ScannIndex(
        metric,
        dim,
        stop - first,
        parameters,
        datastore.checksum,
        searcher,
        rotation,
        first,
    )
    if truth is not None and queries is not None:
        index = _tune(index, queries, truth, target_recall)
    return replace(index, seconds=round(time.perf_counter() - start, 3))


def _train(
    module: ModuleType, keys: np.ndarray, metric: str, parameters: Parameters
) -> Any:
    kept = module.scann_builder.ReorderType[parameters.kept.upper()]
    if not parameters.num_leaves:
        builder = module.builder(keys, 10, _DISTANCES[metric])
        return builder.score_brute_force(kept).build()
    # Turned keys are compared by inner products, whatever the metric.
    builder = module.builder(keys, 10, _DISTANCES["ip"])
    return (
        builder.tree(
            parameters.num_leaves,
            parameters.efforts[0].leaves,
            training_sample_size=min(len(keys), 250_000),
            soar_lambda=1.5,
        )
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(100, kept)
        .build()
    )


def _tune(
    index: ScannIndex, queries: np.ndarray, truth: Neighbours, target: float
) -> ScannIndex:
    """The index with efforts that reach the target; nothing is trained again."""
    num_leaves, efforts, kept = index.parameters
    slack = rotations.rounding(index.rotation, queries, truth.scores)
    if index.rotation is not None:
        efforts = effort.tune(
            index.search_with,
            queries,
            truth,
            target,
            first_leaves=efforts[0].leaves,
            num_leaves=num_leaves,
            num_entries=index.num_entries,
            copies=_COPIES,
            lossy=kept != "float32",
            slack=slack if kept == "float32" else None,
        )
    else:
        spent = Effort(truth.ids.shape[1], 0, index.num_entries)
        measured = recall(index.search_with(queries, spent), truth, slack)
        efforts = (spent._replace(recall=measured),)
    parameters = Parameters(num_leaves, efforts, kept)
    return replace(index, parameters=parameters, target_recall=target)


def report(index: ScannIndex) -> dict[str, Any]:
    """What an index costs and gives.

    Returns:
      entries; bytes in memory, of the hashed keys with the leaves' centres and of the
      keys kept for reordering; seconds to build; target recall, and for each k that it
      was tuned for the recall measured (none where parameters were given).
    """
    parameters = index.parameters
    hashed = 0
    if parameters.num_leaves:
        # Four bits for two dimensions.
        width = rotations.width(index.dim, index.metric)
        hashed = _COPIES * index.num_entries * -(-width // 4)
        hashed += 4 * parameters.num_leaves * width
    return {
        "entries": index.num_entries,
        "hashed_bytes": hashed,
        "kept_bytes": index.num_entries * index.dim * KEPT[parameters.kept],
        "build_seconds": index.seconds,
        "target_recall": index.target_recall,
        "recall": {
            one.k: one.recall for one in parameters.efforts if one.recall is not None
        },
    }


def save(index: ScannIndex, directory: str | os.PathLike) -> None:
    """Writes an index to a new folder, published by a rename.

    Raises:
      UserError: something is there already, or it cannot be written.
    """
    fields = {
        **{"metric": index.metric, "dim": index.dim, "first": index.first},
        **{"num_entries": index.num_entries, "kept": index.kept},
        "num_leaves": index.parameters.num_leaves,
        "efforts": [list(one) for one in index.parameters.efforts],
        "datastore": index.datastore_checksum,
        **{"target_recall": index.target_recall, "seconds": index.seconds},
    }

    def write(folder: Path) -> None:
        try:
            index.searcher.serialize(str(folder), relative_path=True)
        except RuntimeError as error:  # how ScaNN reports any failure to write
            raise UserError(
                f"ScaNN cannot write {folder} ({error}); free some space there."
            ) from error
        if index.rotation is not None:
            rotations.write(index.rotation, folder)

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
    manifest = checked_files.read_manifest(directory, _FORMAT, _KINDS)
    checked_files.require_equal({"datastore": datastore.checksum}, manifest, directory)
    # ScaNN would unpickle a file of its own that we never write, so nothing may be
    # there that the manifest does not name.
    checked_files.verify_files(directory, manifest, checksums=verify)
    num_leaves, dim = manifest["num_leaves"], manifest["dim"]
    return ScannIndex(
        manifest["metric"],
        dim,
        manifest["num_entries"],
        Parameters(
            num_leaves,
            tuple(Effort(*one) for one in manifest["efforts"]),
            manifest["kept"],
        ),
        manifest["datastore"],
        library().load_searcher(str(directory), assets_backcompat_shim=False),
        rotations.read(directory, dim, manifest["metric"]) if num_leaves else None,
        manifest["first"],
        manifest["target_recall"],
        manifest["seconds"],
    )


def measure_recall(index: Index, exact: Index, queries: np.ndarray, k: int) -> float:
    """The share of the k exact neighbours of each query [N, D] that ``index`` finds."""
    return recall(index.search(queries, k), exact.search(queries, k))


def installed() -> bool:
    """Whether ScaNN can be imported."""
    with contextlib.suppress(UserError):
        return bool(library())
    return False


def library() -> ModuleType:
    """ScaNN, or a UserError where it cannot be imported."""
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError as error:
        raise UserError(
            "Approximate search needs ScaNN, which is not installed; run `pip install "
            "scann`, or search exactly."
        ) from error
    return scann_ops_pybind
