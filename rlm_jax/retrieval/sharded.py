"""Several ScaNN indexes over one datastore, for keys that one index cannot hold.

Each index covers a range of rows. They are built one after another and saved as they
are finished, so that memory is bounded by one of them and a killed build goes on:

    manifest.json   the datastore, the metric, the target, the rows of each index
    00000/          an index of `rlm_jax.retrieval.scann`

While it is being built the folder is called ``<name>.partial``. ScaNN's training is not
deterministic: an index that is built again has other leaves, with the same recall.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import scann
from rlm_jax.retrieval.datastore import Datastore, partial_of
from rlm_jax.retrieval.index import (
    TARGET_RECALL,
    check_metric,
    check_search,
    check_target,
)
from rlm_jax.storage import atomic, checked_files

_FORMAT = "rlm_jax sharded scann 2"
_KINDS = {
    **dict.fromkeys(("datastore", "metric", "kept"), str),
    **{"target_recall": float, "bounds": list[int]},
}

# Keys of width 768 as float32, and the copy that ScaNN makes, take 25 GB at this size.
SHARD_ENTRIES = 4_000_000


@dataclass(frozen=True)
class Sharded:
    """Indexes over consecutive rows of a datastore; `build` or `load` makes one.

    Attributes:
      folders: of the indexes, in the order of rows.
      reports: what `scann.report` says of each.
      resident: the indexes, or None where they are loaded in turn for each search.
    """

    metric: str
    kept: str
    datastore: Datastore
    folders: tuple[Path, ...]
    reports: tuple[dict[str, Any], ...]
    resident: tuple[scann.ScannIndex, ...] | None
    target_recall: float

    @property
    def dim(self) -> int:
        return self.datastore.dim

    @property
    def num_entries(self) -> int:
        return self.datastore.num_entries

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """About the k nearest keys of each query; of equal scores the lower id first.

        Where the indexes do not fit in memory together, each is read from disk once a
        search: give many queries at a time.

        Args:
          queries: float32 [N, D].
          k: how many; where fewer were found, ids are -1 and scores minus infinity.

        Returns:
          Ids are rows of the datastore.

        Raises:
          UserError: queries of another width or with NaN or infinity, or k below 1.
        """
        queries = check_search(queries, k, self.dim)
        best = None
        for number, folder in enumerate(self.folders):
            if self.resident:
                one = self.resident[number]
            else:
                one = scann.load(folder, self.datastore, verify=False)
            neighbours = one.search(queries, k)
            del one  # before the next is loaded
            best = neighbours if best is None else _merge(best, neighbours, k)
        assert best is not None  # a datastore has entries
        return best


def build(
    datastore: Datastore,
    directory: str | os.PathLike,
    *,
    metric: str = "l2",
    kept: str = "float32",
    target_recall: float = TARGET_RECALL,
    queries: np.ndarray | None = None,
    shard_entries: int = SHARD_ENTRIES,
    memory_bytes: int | None = None,
) -> Sharded:
    """Builds the indexes that are missing, and opens them all.

    Args:
      datastore: what is searched.
      directory: where the indexes are kept.
      metric: "l2" (negated squared distance) or "ip" (inner product).
      kept: what reordering keeps of each key, "float32", "bfloat16" or "int8".
      target_recall: share of the nearest that each index is tuned to find among its
        own rows; what all find together is not less, up to chance.
      queries: what to tune on; see `scann.build`.
      shard_entries: the most entries of an index; rows are shared out evenly.
      memory_bytes: see `load`.

    Raises:
      UserError: an impossible argument, something at ``directory`` already, a
        half-built one with other arguments, a full disk, or ScaNN is not installed.
    """
    directory = Path(directory)
    check_target(target_recall)
    if shard_entries < 1:
        raise UserError(
            f"Indexes of {shard_entries} entries cannot be; use at least 1 a shard."
        )
    total = datastore.num_entries
    bounds = np.linspace(0, total, -(-total // shard_entries) + 1).astype(int).tolist()
    plan = {
        "format": _FORMAT,
        "datastore": datastore.checksum,
        "metric": check_metric(metric),
        "kept": kept,
        "target_recall": target_recall,
        "bounds": bounds,
    }
    checked_files.refuse_existing(directory)
    partial = partial_of(directory)
    with checked_files.full_disk_named(directory, "finished indexes are kept"):
        partial.mkdir(parents=True, exist_ok=True)
        if not (partial / checked_files.MANIFEST).exists():
            checked_files.write_manifest(partial, plan)
        stored = checked_files.read_manifest(partial, _FORMAT, _KINDS)
        checked_files.require_equal(plan, stored, partial)
        for number in range(len(bounds) - 1):
            folder = _folder(partial, number)
            if folder.exists():
                continue
            built = scann.build(
                datastore,
                metric=metric,
                kept=kept,
                target_recall=target_recall,
                queries=queries,
                rows=(bounds[number], bounds[number + 1]),
            )
            scann.save(built, folder)
            del built  # before the next is trained
        os.rename(partial, directory)
        atomic.sync(directory.parent)
    return load(directory, datastore, memory_bytes=memory_bytes)


def load(
    directory: str | os.PathLike,
    datastore: Datastore,
    *,
    memory_bytes: int | None = None,
) -> Sharded:
    """Opens the indexes of this datastore.

    Args:
      directory: what `build` was given.
      datastore: what the indexes were built on.
      memory_bytes: what they may take together; beyond it, one at a time is loaded.
        None takes half of the machine's memory.

    Raises:
      UserError: there are none, a file was changed, they belong to another datastore,
        or ScaNN is not installed.
    """
    directory = Path(directory)
    if not (directory / checked_files.MANIFEST).exists():
        raise UserError(f"There is no index at {directory}; build it first.")
    manifest = checked_files.read_manifest(directory, _FORMAT, _KINDS)
    wanted = {"datastore": datastore.checksum}
    checked_files.require_equal(wanted, manifest, directory)
    bounds = manifest["bounds"]
    if memory_bytes is None:
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    folders = tuple(_folder(directory, number) for number in range(len(bounds) - 1))
    indexes, reports, total = [], [], 0
    for folder, first, stop in zip(folders, bounds[:-1], bounds[1:], strict=True):
        one = scann.load(folder, datastore)
        rows = {"first": one.first, "num_entries": one.num_entries}
        checked_files.require_equal(
            {"first": first, "num_entries": stop - first}, rows, folder
        )
        reports.append(scann.report(one))
        total += reports[-1]["hashed_bytes"] + reports[-1]["kept_bytes"]
        if total <= memory_bytes:
            indexes.append(one)
        else:
            indexes.clear()
        del one
    return Sharded(
        manifest["metric"],
        manifest["kept"],
        datastore,
        folders,
        tuple(reports),
        tuple(indexes) if total <= memory_bytes else None,
        manifest["target_recall"],
    )


def report(index: Sharded) -> dict[str, Any]:
    """What the indexes cost and give together, as `scann.report` tells it of one.

    The recall for each k is the mean of the indexes' own, weighted by entries. Beside
    it stand the number of indexes and whether they are in memory together.
    """
    reports = index.reports
    sums = ("entries", "hashed_bytes", "kept_bytes", "build_seconds")
    return {
        **{field: sum(one[field] for one in reports) for field in sums},
        "target_recall": index.target_recall,
        "recall": {
            k: sum(one["recall"][k] * one["entries"] for one in reports)
            / index.num_entries
            for k in reports[0]["recall"]
            if all(k in one["recall"] for one in reports)
        },
        "shards": len(reports),
        "resident": index.resident is not None,
    }


def _folder(directory: Path, number: int) -> Path:
    return directory / f"{number:05d}"


def _merge(one: Neighbours, other: Neighbours, k: int) -> Neighbours:
    scores, ids = (
        np.concatenate(pair, axis=1) for pair in zip(one, other, strict=True)
    )
    # What is absent has the id -1 and must not come first among equals.
    order = np.lexsort((ids, ids < 0, -scores), axis=1)[:, :k]
    return Neighbours(
        np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    )
