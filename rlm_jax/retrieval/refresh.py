"""Indexes of a retriever in training, on the disk: one for each step it was encoded at.

    <folder>/step_<n>/           an index that is whole
    <folder>/step_<n>.partial/   one in the making
      manifest.json              of what it is: the run's identity, n, the encoder, and
                                 the checksums of the snapshot
      snapshot/                  the builder's own: what making it needs
      index/                     the builder's own: vectors

An index has its name when it is whole. What is in the making has its snapshot from the
start on (`begin`), so the trainer, or another process beside it, can go on after either
was killed. Beside the indexes stand the candidates that each round's
questions found in one, since parameters that they were searched with are gone later:

    <folder>/<start>/            of the round that begins with that step
      ids                        int32 [steps, B, K], -1 = absent

`rlm_jax.train.rounds` says which index serves when.
"""

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlm_jax import processes
from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours, Params
from rlm_jax.retrieval import encode_stream
from rlm_jax.retrieval.index import recall
from rlm_jax.storage import atomic, checked_files, sealed

SNAPSHOT, INDEX = "snapshot", "index"
"""The folders inside a step's."""

COLLAPSED, FEW = 0.5, 16
"""What `has_collapsed` goes by: a share of questions, and their number."""

_FORMAT = "rlm_jax stale index 2"
_CANDIDATES = "rlm_jax candidates 1"
_KINDS = {
    _FORMAT: {
        "identity": dict[str, Any],
        "step": int,
        "snapshot": sealed.Maybe(dict[str, int]),
    },
    _CANDIDATES: {"identity": dict[str, Any], "shape": list[int], "stop": int},
}


def begin(
    folder: str | os.PathLike,
    step: int,
    identity: Mapping[str, Any],
    passage_params: Params | None,
    snapshot: Callable[[Path], object],
) -> Path | None:
    """Where the index of a step is to be made, ``step_<n>.partial``, or None.

    None: it is whole already, or an index of the same parameters is, whose files then
    get a second name. Else what a killed run has begun of it is kept, if it is of the
    same parameters. All processes of a run call it.

    Args:
      folder: of all indexes of the run; on several processes, a shared one.
      step: n.
      identity: plain JSON, what the whole run has in common: the fingerprints of the
        passages and of the tokenizer, lengths.
      passage_params: what encodes passages at that step, or None where the run is past
        it. A run that comes by again may round otherwise: an index of other parameters
        is made again.
      snapshot: ``snapshot(folder)`` writes what making the index needs. Called by the
        first process, before the folder has its name.

    Raises:
      UserError: what is there is of another run or damaged, cannot be written, or is
        missing and there are no parameters to make it of.
    """
    there, partial = _path(folder, step), _partial(folder, step)
    wanted = checked_files.as_json(identity)
    if passage_params is not None:
        wanted["encoder"] = encode_stream.fingerprint(passage_params)

    def prepare() -> bool:
        if _holds(there, wanted, step):
            return False
        if _holds(partial, wanted, step):
            return True
        if passage_params is None:
            raise UserError(
                f"There is no index at {there}, and training has gone beyond step "
                f"{step}; restore that folder or start the run again."
            )
        for path in (there, partial):
            atomic.remove_folder(path)
        manifest = {"format": _FORMAT, "identity": wanted, "step": step}
        equal = [x for x in steps(folder) if _identity(_path(folder, x)) == wanted]
        begun = there.with_name(f".{there.name}.begun")
        with checked_files.full_disk_named(there, "what is whole is kept"):
            shutil.rmtree(begun, ignore_errors=True)
            (begun / SNAPSHOT).mkdir(parents=True)
            snapshot(begun / SNAPSHOT)
            listed = {"snapshot": _checksums(begun / SNAPSHOT)}
            if equal:
                old = _path(folder, equal[0]) / INDEX
                shutil.copytree(old, begun / INDEX, copy_function=os.link)
            else:
                (begun / INDEX).mkdir()
            checked_files.write_manifest(begun, manifest | listed)
            _rename(begun, there if equal else partial)
        return not equal

    processes.by_first(prepare, f"begin the index {there}")
    processes.wait("index begun")
    return None if there.exists() else partial


def publish(folder: str | os.PathLike, step: int) -> None:
    """Gives an index its name, once it is whole. All processes of a run call it."""
    processes.wait("index made")
    if processes.is_first():
        _rename(_partial(folder, step), _path(folder, step))
    processes.wait("index published")


def whole(folder: str | os.PathLike, step: int, identity: Mapping[str, Any]) -> Path:
    """The folder ``step_<n>`` of an index that is whole.

    Raises:
      UserError: there is none, it is damaged, or of another run.
    """
    there = _path(folder, step)
    if not _holds(there, checked_files.as_json(identity), step):
        raise UserError(
            f"There is no index at {there}; restore that folder or start the run again."
        )
    return there


def snapshot_of(there: Path) -> Path:
    """The snapshot of an index, whole or in the making, as it was written.

    Raises:
      UserError: a file of it is missing or was changed.
    """
    folder = there / SNAPSHOT
    for name, crc32 in _manifest(there, _FORMAT).get("snapshot", {}).items():
        if not (folder / name).is_file() or atomic.crc32(folder / name) != crc32:
            raise UserError(
                f"The file {folder / name} is damaged (it is not what was saved); "
                "restore it, or start the run again in another workdir."
            )
    return folder


def exists(folder: str | os.PathLike, step: int) -> bool:
    """Whether the index of a step is there, whole."""
    return _path(folder, step).exists()


def steps(folder: str | os.PathLike) -> list[int]:
    """The steps whose indexes are there, whole, in order."""
    names = (path.name.removeprefix("step_") for path in Path(folder).glob("step_*"))
    return sorted(int(name) for name in names if name.isdigit())


def pending(folder: str | os.PathLike) -> list[int]:
    """The steps whose indexes are begun and not whole, in order."""
    paths = Path(folder).glob("step_*.partial")
    names = (path.name.removeprefix("step_").removesuffix(".partial") for path in paths)
    return sorted(int(name) for name in names if name.isdigit())


def remove_others(folder: str | os.PathLike, kept: Collection[int]) -> None:
    """Deletes every index in the folder, whole or not, but those of some steps.

    To be called by all processes, once the older ones are no longer read.
    """
    processes.wait("older indexes left")
    if processes.is_first():
        atomic.remove_leftovers(Path(folder))
        names = {path.name for step in kept for path in _paths(folder, step)}
        for path in sorted(Path(folder).glob("step_*")):
            if path.name not in names:
                atomic.remove_folder(path)


def write_candidates(
    folder: str | os.PathLike,
    start: int,
    identity: Mapping[str, Any],
    search: Callable[[], np.ndarray],
) -> None:
    """The candidates of a round, searched and written if they are not there yet.

    One process does it alone.

    Args:
      folder: of all rounds of the run.
      start: the first step of the round.
      identity: plain JSON, what they depend on: the fingerprint of the query encoder,
        the step of the index. Candidates of another one are found again.
      search: () -> int32 [steps, B, K], -1 = absent.

    Raises:
      UserError: they cannot be written.
    """
    there = Path(folder) / str(start)
    wanted = checked_files.as_json(identity)
    if there.exists() and _identity(there, _CANDIDATES) == wanted:
        return
    ids = np.ascontiguousarray(search(), np.int32)
    atomic.remove_folder(there)
    checked_files.publish(
        there,
        _CANDIDATES,
        {"identity": wanted, "shape": ids.shape, "stop": start + len(ids)},
        lambda files: atomic.write_bytes(files / "ids", ids.data),
    )


def candidates(folder: str | os.PathLike, start: int) -> np.ndarray:
    """The candidates of the round that begins with a step, int32 [steps, B, K].

    Raises:
      UserError: they are missing or damaged.
    """
    there = Path(folder) / str(start)
    if not there.exists():
        raise UserError(
            f"There are no candidates at {there}, and training has gone beyond step "
            f"{start}; restore that folder or start the run again."
        )
    manifest = _manifest(there, _CANDIDATES)
    checked_files.verify_files(there, manifest)
    return checked_files.map_array(there / "ids", tuple(manifest["shape"]), "<i4")


def searched(folder: str | os.PathLike) -> dict[int, int]:
    """Start of each round that has candidates -> the step at which they end."""
    paths = Path(folder).glob("[0-9]*")
    return {
        int(path.name): _manifest(path, _CANDIDATES)["stop"]
        for path in paths
        if path.name.isdigit()
    }


def remove_candidates(folder: str | os.PathLike, before: int) -> None:
    """Deletes the candidates that end at a step or before it; one process does it."""
    atomic.remove_leftovers(Path(folder))
    for start, stop in searched(folder).items():
        if stop <= before:
            atomic.remove_folder(Path(folder) / str(start))


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


def spread(ids: np.ndarray) -> dict[str, float]:
    """Whether many questions find the same few passages: what a collapse looks like.

    Args:
      ids: int32 [N, K], what N questions found; -1 = absent.

    Returns:
      ``distinct_passages``, their number, and ``commonest_share``, the share of the
      questions that found the one that most of them found.
    """
    passages, counts = np.unique(ids[ids >= 0], return_counts=True)
    most = counts.max() / len(ids) if counts.size else 0.0
    return {"distinct_passages": float(len(passages)), "commonest_share": float(most)}


def has_collapsed(ids: np.ndarray, number: int) -> bool:
    """Whether more than `COLLAPSED` of the questions find one and the same passage.

    Fewer than `FEW` questions may, and so may any where there are few passages.

    Args:
      ids: as for `spread`.
      number: of passages in all.
    """
    bound = max(COLLAPSED, 2 * ids.shape[1] / max(number, 1))
    return len(ids) >= FEW and spread(ids)["commonest_share"] > bound


def _checksums(folder: Path) -> dict[str, int]:
    """File -> CRC-32, of all files in a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): atomic.crc32(path) for path in files}


def _path(folder: str | os.PathLike, step: int) -> Path:
    return Path(folder) / f"step_{step}"


def _partial(folder: str | os.PathLike, step: int) -> Path:
    return Path(folder) / f"step_{step}.partial"


def _paths(folder: str | os.PathLike, step: int) -> tuple[Path, Path]:
    return _path(folder, step), _partial(folder, step)


def _rename(old: Path, new: Path) -> None:
    os.rename(old, new)
    atomic.sync(new.parent)


def _manifest(there: Path, form: str) -> dict[str, Any]:
    return checked_files.read_manifest(there, form, _KINDS[form])


def _identity(there: Path, form: str = _FORMAT) -> dict[str, Any] | None:
    """What a folder says it is of; None where it cannot."""
    try:
        return _manifest(there, form)["identity"]
    except UserError:
        return None


def _holds(there: Path, wanted: Mapping[str, Any], step: int) -> bool:
    """Whether a folder holds this step's index, of the encoder that is wanted.

    Raises:
      UserError: it is damaged, or of another run.
    """
    if not there.exists():
        return False
    manifest = _manifest(there, _FORMAT)
    stored = manifest["identity"]
    ours = {field: x for field, x in wanted.items() if field != "encoder"}
    checked_files.require_equal({**ours, "step": step}, {**stored, **manifest}, there)
    return "encoder" not in wanted or wanted["encoder"] == stored.get("encoder")
