"""What a run keeps beside its checkpoints, and whether it is still there.

The manifest of a checkpoint names the files of the run's folder that decide what the
run is and does, as far as they were written by then, and tells what was logged. One
that is gone later is no file that is still to be written.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from rlm_jax.errors import UserError
from rlm_jax.storage import checked_files, sealed
from rlm_jax.train import checkpoint_files

NAMES = ("config.json", "identity.json", "refreshes.json", "decisions.json")

_KINDS = {
    "beside": sealed.Maybe(list[str]),
    "log": sealed.Maybe(dict[str, int]),
}


def fields(directory: pathlib.Path, log: Mapping[str, int]) -> dict[str, Any]:
    """What the manifest of a checkpoint in a folder of steps tells of all this.

    Args:
      directory: the folder of steps, in the run's own.
      log: `metrics.Writer.written`.
    """
    there = [name for name in NAMES if directory.with_name(name).exists()]
    return {"beside": there, "log": dict(log)}


def logged_by(folder: pathlib.Path) -> dict[str, int]:
    """What had been logged by a step; nothing if an older version wrote it."""
    return _told(folder).get("log", {})


def forget(folder: pathlib.Path) -> None:
    """The folder of a step that another run goes on from: of that one it tells all."""
    if manifest := _told(folder):
        kept = {field: x for field, x in manifest.items() if field not in _KINDS}
        checked_files.write_manifest(folder, kept)


def require(workdir: pathlib.Path) -> None:
    """Raises UserError where a file is gone that the last checkpoint was made with."""
    directory = workdir / "checkpoints"
    steps = [int(path.name) for path in directory.glob("*") if path.name.isdigit()]
    told = _told(directory / str(max(steps))) if steps else {}
    for name in told.get("beside", ()):
        if not (workdir / name).exists():
            raise UserError(
                f"The file {workdir / name} is missing, which was there when step "
                f"{max(steps)} was saved; restore it, or name another workdir."
            )


def _told(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a checkpoint; nothing where an older version wrote none."""
    if not (folder / checked_files.MANIFEST).exists():
        return {}
    return checked_files.read_manifest(folder, checkpoint_files.FORMAT, _KINDS)
