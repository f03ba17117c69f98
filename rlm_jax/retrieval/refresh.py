"""An index that grows stale while its encoder is trained, and is made anew.

Training runs in rounds. A round searches one index, whose keys were encoded with the
parameters of some earlier step; the candidates are scored again with current ones on
the device, so only the candidate set is stale. A policy is a function that lays out the
rounds and says of which step each one's index is, and what goes over the rounds need
not know the policy. There is one so far, `synchronous`: training stops, the corpus is
encoded with the parameters of that very step, training goes on. It gives the same run
however often the run is killed.

    for turn in refresh.synchronous(done, steps, every):
        params = current parameters, where they are those of turn.index_step, else None
        index = refresh.open_or_build(
            folder, turn.index_step, identity, params=params, build=build, open=open
        )
        # report refresh.staleness(old candidates, new candidates), then let go of old
        refresh.remove_others(folder, turn.index_step)
        train from turn.start to turn.stop, a checkpoint at the end

REALM (Guu et al. 2020, section 3.3) and Atlas (Izacard et al. 2022, section 2.4) train
so as well; REALM's refresh runs beside the training.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from rlm_jax import processes
from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours, Params
from rlm_jax.retrieval import encode_stream
from rlm_jax.retrieval.index import recall
from rlm_jax.storage import atomic, checked_files

T = TypeVar("T")
_FORMAT = "rlm_jax stale index 1"
_FILES = "index"  # the folder inside, which is the builder's own


class Round(NamedTuple):
    """Steps start..stop-1, and the step whose parameters made their index."""

    start: int
    stop: int
    index_step: int

    def age(self) -> dict[str, float]:
        """How old the index is over the round, in steps: its mean and its maximum."""
        first, last = self.start - self.index_step, self.stop - 1 - self.index_step
        return {"mean_age": (first + last) / 2, "max_age": float(last)}


def synchronous(done: int, steps: int, every: int) -> list[Round]:
    """The rounds that remain; each begins with an index of its own first step.

    Args:
      done: steps already made, where a run goes on. Inside a round, the first of the
        list is the rest of it, with the index it has had from the start.
      steps: of the whole run.
      every: steps a round; 0: the index of step 0 serves them all.

    Raises:
      UserError: a negative number.
    """
    if min(done, steps, every) < 0:
        raise UserError(
            f"An index cannot be refreshed every {every} of {steps} steps; choose 0 or "
            "more."
        )
    every = every or max(steps, 1)
    rounds, start = [], done
    while start < steps:
        first = start // every * every
        stop = min(first + every, steps)
        rounds.append(Round(start, stop, index_step=first))
        start = stop
    return rounds


def open_or_build(
    folder: str | os.PathLike,
    step: int,
    identity: Mapping[str, Any],
    *,
    params: Params | None,
    build: Callable[[Params, Path], object],
    open: Callable[[Path], T],
) -> T:
    """The index of one step's parameters: from the disk, or made and published there.

    It lies in ``<folder>/step_<n>``, which has its name when it is whole. A build that
    was killed finds what it left in its folder, if that is of the same parameters.

    Args:
      folder: of all indexes of the run; on several processes, a shared one.
      step: n.
      identity: plain JSON, what the whole run has in common: the fingerprints of the
        passages and of the tokenizer, lengths.
      params: the encoder's at that step, or None where the run is past it. They are
        compared with those that a published index was made of.
      build: ``build(params, folder)`` writes the index's files there. All processes
        call it.
      open: ``open(folder)`` gives the index, also after it was just built, so that a
        run that goes on searches the very thing that it searched before.

    Raises:
      UserError: the index is of something else, is damaged, cannot be written, or is
        missing and there are no parameters to make it of.
    """
    there = _path(folder, step)
    wanted = checked_files.as_json({**identity, "step": step})
    if params is not None:
        wanted["encoder"] = encode_stream.fingerprint(params)
    if not there.exists():
        if params is None:
            raise UserError(
                f"There is no index at {there}, and training has gone beyond step "
                f"{step}; restore that folder or start the run again."
            )
        _build(there, wanted, lambda files: build(params, files))
    manifest = checked_files.read_manifest(there, _FORMAT)
    checked_files.require_equal(wanted, manifest["identity"], there)
    return open(there / _FILES)


def exists(folder: str | os.PathLike, step: int) -> bool:
    """Whether the index of a step is there, whole."""
    return _path(folder, step).exists()


def remove_others(folder: str | os.PathLike, step: int) -> None:
    """Deletes every index in the folder, whole or not, but the one of this step.

    To be called by all processes, once the older ones are no longer read.
    """
    processes.wait("older indexes left")
    if processes.is_first():
        for path in sorted(Path(folder).glob("step_*")):
            if path != _path(folder, step):
                shutil.rmtree(path)


def staleness(stale: Neighbours, fresh: Neighbours) -> dict[str, float]:
    """How far an old index's candidates are from a new one's, for the same queries.

    Args:
      stale, fresh: ids [N, K], found with the current query encoder in the index that
        is replaced and in the one that replaces it; equal ids are equal passages.

    Returns:
      ``stale_recall``, the share of the fresh candidates that the old index found too,
      and ``stale_first``, the share of queries whose best candidate is the same.
    """
    best = fresh.ids[:, 0] >= 0
    same = (stale.ids[:, 0] == fresh.ids[:, 0])[best]
    return {
        "stale_recall": recall(stale, fresh),
        "stale_first": float(np.mean(same)) if same.size else 1.0,
    }


def _path(folder: str | os.PathLike, step: int) -> Path:
    return Path(folder) / f"step_{step}"


def _build(
    there: Path, identity: dict[str, Any], build: Callable[[Path], object]
) -> None:
    """Builds in ``<there>.partial``, whose manifest says of what from the start on."""
    partial = there.with_name(f"{there.name}.partial")
    with checked_files.full_disk_named(there, "what is whole is kept"):
        if processes.is_first():
            if not _is_of(partial, identity):
                shutil.rmtree(partial, ignore_errors=True)
                (partial / _FILES).mkdir(parents=True)
                manifest = {"format": _FORMAT, "identity": identity}
                checked_files.write_manifest(partial, manifest)
        processes.wait("index begun")
        build(partial / _FILES)
        processes.wait("index built")
        if processes.is_first():
            os.rename(partial, there)
            atomic.sync(there.parent)
        processes.wait("index published")


def _is_of(partial: Path, identity: dict[str, Any]) -> bool:
    try:
        manifest = checked_files.read_manifest(partial, _FORMAT)
    except UserError:
        return False
    return manifest["identity"] == identity
