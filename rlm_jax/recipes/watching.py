"""A process that makes the indexes of a run of which it is no part."""

import dataclasses
import pathlib

from rlm_jax import terminal
from rlm_jax.errors import UserError
from rlm_jax.retrievers import watch_snapshots


@dataclasses.dataclass
class Config:
    """How often to look, and when to stop."""

    seconds: float = 1.0  # between two looks
    once: bool = False  # encode what is there, then end


def run(
    config: Config,
    workdir: str | pathlib.Path,
    *,
    preset: str = "custom",
    dry_run: bool = False,
) -> int:
    """Encode the snapshots of a run until interrupted; how many indexes were made.

    It holds no lock in the workdir, which is the run's.

    Raises:
      UserError: there is no such folder, or the time between two looks is none.
    """
    del preset
    folder = pathlib.Path(workdir)
    if config.seconds <= 0:
        raise UserError(f"seconds is {config.seconds}; choose more than 0.")
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder} to watch; name the workdir of a run with "
            "refresh.policy=external, once it has begun."
        )
    found = watch_snapshots.waiting(folder)
    terminal.say(f"watching {folder}: {len(found)} snapshots wait")
    if dry_run:
        return 0
    return watch_snapshots.watch(
        folder, seconds=config.seconds, ended=lambda: config.once
    )
