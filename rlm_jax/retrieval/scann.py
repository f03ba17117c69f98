"""Approximate search by ScaNN: partitions, anisotropic hashing, exact reordering.

Source: Guo et al. 2020, "Accelerating Large-Scale Inference with Anisotropic Vector
Quantization". The keys are held in memory as float32 while the index is built and used.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import checked_files
from rlm_jax.retrieval.datastore import Datastore
from rlm_jax.retrieval.index import Index, check_metric, check_search, recall

_FORMAT = "rlm_jax scann 1"
_DISTANCES = {"ip": "dot_product", "l2": "squared_l2"}


class Parameters(NamedTuple):
    """How ScaNN partitions and searches; no leaves is a comparison with every key."""

    num_leaves: int
    leaves_to_search: int
    reorder_factor: int  # candidates that are scored exactly, per neighbour asked for


@dataclass(frozen=True)
class ScannIndex:
    """An approximate index; `build` makes one, `load` reads one that was saved."""

    metric: str
    dim: int
    num_entries: int
    parameters: Parameters
    datastore_checksum: str
    searcher: Any

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """About the k nearest keys of each query, best first.

        Args:
          queries: float32 [N, D].
          k: how many; where fewer were found, ids are -1 and scores minus infinity.

        Raises:
          UserError: queries of another width or with NaN or infinity, or k below 1.
        """
        queries = check_search(queries, k, self.dim)
        if not len(queries):
            return Neighbours(np.zeros((0, k), np.float32), np.zeros((0, k), np.int32))
        limits = {}
        if self.parameters.num_leaves:
            num_leaves, to_search, factor = self.parameters
            # A large k must not run out of candidates in the leaves that are visited.
            enough = -(-4 * k * num_leaves // self.num_entries)
            limits["leaves_to_search"] = min(num_leaves, max(to_search, enough))
            reorder = min(self.num_entries, max(200, factor * k))
            limits["pre_reorder_num_neighbors"] = reorder
        found, scores = self.searcher.search_batched_parallel(
            queries, final_num_neighbors=k, **limits
        )
        absent = np.isnan(scores)
        scores = -scores if self.metric == "l2" else scores
        return Neighbours(
            np.where(absent, -np.inf, scores).astype(np.float32),
            np.where(absent, -1, found.astype(np.int32)),
        )


def choose_parameters(num_entries: int) -> Parameters:
    """Parameters from the size, tuned for a recall of about 0.9 at 100,000 keys.

    Leaves grow as the square root of the keys, and the leaves searched as the square
    root of those: a fifth of all at 100,000 keys, 1 in 28 at a hundred million.
    """
    if num_entries < 4096:
        return Parameters(0, 0, 0)
    num_leaves = round(2 * num_entries**0.5)
    return Parameters(num_leaves, round(5 * num_leaves**0.5), 16)


def build(
    datastore: Datastore, *, metric: str = "l2", parameters: Parameters | None = None
) -> ScannIndex:
    """Trains an index on a datastore's keys.

    Args:
      datastore: what is searched; all its keys are read as float32.
      metric: "l2" (negated squared distance) or "ip" (inner product).
      parameters: None takes `choose_parameters` of the size.

    Raises:
      UserError: an unknown metric, or ScaNN is not installed.
    """
    library = _import_scann()
    distance = _DISTANCES[check_metric(metric)]
    parameters = parameters or choose_parameters(datastore.num_entries)
    keys = datastore.keys(0, datastore.num_entries)
    builder = library.builder(keys, 10, distance)
    if parameters.num_leaves:
        # Weighting the error along the key is right for inner products alone.
        threshold = 0.2 if metric == "ip" else float("nan")
        builder = (
            builder.tree(
                parameters.num_leaves,
                parameters.leaves_to_search,
                training_sample_size=min(datastore.num_entries, 250_000),
            )
            .score_ah(2, anisotropic_quantization_threshold=threshold)
            .reorder(100)
        )
    else:
        builder = builder.score_brute_force()
    return ScannIndex(
        metric,
        datastore.dim,
        datastore.num_entries,
        parameters,
        datastore.checksum,
        builder.build(),
    )


def save(index: ScannIndex, directory: str | os.PathLike) -> None:
    """Writes an index to a new folder, published by a rename.

    Raises:
      UserError: something is there already, or it cannot be written.
    """
    directory = Path(directory)
    if directory.exists():
        raise UserError(
            f"There is something at {directory} already; delete it or choose another "
            "folder."
        )
    partial = directory.with_name(directory.name + ".partial")
    with checked_files.full_disk_named(directory, "the index is built again"):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            index.searcher.serialize(str(partial), relative_path=True)
        except RuntimeError as error:  # how ScaNN reports any failure to write
            raise UserError(
                f"ScaNN cannot write {partial} ({error}); free some space there."
            ) from error
        manifest = {
            "format": _FORMAT,
            "metric": index.metric,
            "dim": index.dim,
            "num_entries": index.num_entries,
            "parameters": list(index.parameters),
            "datastore": index.datastore_checksum,
            "files": {
                path.name: checked_files.checksum(path) for path in partial.iterdir()
            },
        }
        checked_files.write_manifest(partial, manifest)
        os.rename(partial, directory)


def load(directory: str | os.PathLike, datastore: Datastore) -> ScannIndex:
    """Reads a saved index of this datastore.

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
    names = {path.name for path in directory.iterdir()} - {checked_files.MANIFEST}
    files = manifest["files"]
    if names != set(files) or any(
        checked_files.checksum(directory / name) != files[name] for name in files
    ):
        raise UserError(
            f"The files of the index {directory} are not those it was saved with; "
            "delete it and build it again."
        )
    return ScannIndex(
        manifest["metric"],
        manifest["dim"],
        manifest["num_entries"],
        Parameters(*manifest["parameters"]),
        manifest["datastore"],
        _import_scann().load_searcher(str(directory), assets_backcompat_shim=False),
    )


def measure_recall(index: Index, exact: Index, queries: np.ndarray, k: int) -> float:
    """The share of the k exact neighbours of each query [N, D] that ``index`` finds."""
    return recall(index.search(queries, k), exact.search(queries, k))


def _import_scann() -> ModuleType:
    try:
        from scann.scann_ops.py import scann_ops_pybind
    except ImportError as error:
        raise UserError(
            "Approximate search needs ScaNN, which is not installed; run `pip install "
            "scann`, or search exactly."
        ) from error
    return scann_ops_pybind
