"""Opens or builds the right index: exact, by ScaNN, or several of ScaNN."""

import os
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.retrieval import exact, scann, sharded
from rlm_jax.retrieval.datastore import Datastore
from rlm_jax.retrieval.index import TARGET_RECALL, Index, check_metric, check_target
from rlm_jax.retrieval.sharded import SHARD_ENTRIES
from rlm_jax.storage import checked_files

# Measured by benchmarks/search_crossover.py on a CPU (D 256, 1,024 queries, k 64): one
# search costs the same at about 4,096 keys; at 16,384 ScaNN takes half of the time, and
# building it is repaid after some 12 such batches.
EXACT_BELOW = 16_384

Kind = Literal["auto", "exact", "scann"]
KINDS: tuple[str, ...] = get_args(Kind)


def check_kind(kind: str, field: str = "index") -> str:
    """Returns the kind of index, or raises a UserError if it cannot be had.

    Args:
      kind: "auto", "exact" or "scann".
      field: what the error calls it.

    Raises:
      UserError: there is no such kind, or it is ScaNN, which is not installed.
    """
    if kind not in KINDS:
        raise UserError(f"{field} is {kind!r}; choose one of {', '.join(KINDS)}.")
    if kind == "scann":
        scann.library()
    return kind


def resolve(
    kind: str,
    num_entries: int,
    *,
    exact_below: int = EXACT_BELOW,
    field: str = "index",
) -> Literal["exact", "scann"]:
    """What "auto" means for so many entries: ScaNN for many, where it is installed.

    There is no ScaNN for macOS and for the newest Pythons; there "auto" is exact.

    Args:
      kind: "auto", "exact" or "scann"; the last two mean themselves.
      num_entries: keys to be searched.
      exact_below: number of entries from which "auto" takes ScaNN.
      field: what an error calls the kind.

    Raises:
      UserError: as `check_kind`.
    """
    check_kind(kind, field)
    if kind == "auto":
        return "scann" if num_entries >= exact_below and scann.installed() else "exact"
    return "scann" if kind == "scann" else "exact"


def choose(
    datastore: Datastore,
    metric: str,
    *,
    kind: str = "auto",
    exact_below: int = EXACT_BELOW,
    directory: str | os.PathLike | None = None,
    target_recall: float = TARGET_RECALL,
    kept: str = "float32",
    queries: np.ndarray | None = None,
    shard_entries: int = SHARD_ENTRIES,
    memory_bytes: int | None = None,
) -> Index:
    """Exact search for few keys, ScaNN for many, several ScaNN indexes for very many.

    Args:
      datastore: what is searched.
      metric: "l2" (negated squared distance) or "ip" (inner product).
      kind: "auto", "exact" or "scann"; see `resolve`.
      exact_below: number of entries from which "auto" takes ScaNN.
      directory: where the ScaNN index is kept from one run to the next; None puts it
        beside the datastore.
      target_recall: share of the k nearest that ScaNN is tuned to find, whatever k.
      kept: what ScaNN scores the best candidates with, keys of "float32", "bfloat16" or
        "int8"; it is most of an index's memory.
      queries: float32 [N, D], what it is tuned on when it is built; see `scann.build`.
      shard_entries: the most entries of one ScaNN index; see `sharded.build`.
      memory_bytes: what several indexes may take together; see `sharded.load`.

    Raises:
      UserError: an unknown kind or metric, a target recall outside (0, 1], ScaNN is
        asked for and not installed, or the kept index is of another datastore, metric,
        target or dtype.
    """
    check_metric(metric)
    check_target(target_recall)
    entries = datastore.num_entries
    if resolve(kind, entries, exact_below=exact_below) == "exact":
        return exact.build(datastore, metric=metric)
    beside = datastore.directory.with_name(f"{datastore.directory.name}.scann-{metric}")
    directory = Path(directory or beside)
    several = entries > shard_entries
    if not directory.exists():
        build = scann.build
        if several:
            build = partial(
                sharded.build,
                directory=directory,
                shard_entries=shard_entries,
                memory_bytes=memory_bytes,
            )
        built = build(
            datastore,
            metric=metric,
            kept=kept,
            target_recall=target_recall,
            queries=queries,
        )
        if isinstance(built, scann.ScannIndex):
            scann.save(built, directory)
        return built
    if several:
        index = sharded.load(directory, datastore, memory_bytes=memory_bytes)
    else:
        index = scann.load(directory, datastore)
    checked_files.require_equal(
        {"metric": metric, "target_recall": target_recall, "kept": kept},
        {
            "metric": index.metric,
            "target_recall": index.target_recall,
            "kept": index.kept,
        },
        directory,
    )
    return index
