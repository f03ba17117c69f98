"""Encodes the snapshots that runs in training leave, whoever started those runs.

The other end of `rlm_jax.retrievers.background.Elsewhere`. A run leaves the encoder of
a step in ``indexes/step_<n>.partial``; `watch` encodes the collection with it, and
renames the folder when its index is whole. It may be killed and started again at any
moment, and so may the run.
"""

import pathlib
import time
from collections.abc import Callable

from rlm_jax import terminal
from rlm_jax.errors import UserError
from rlm_jax.retrieval import refresh
from rlm_jax.retrievers import encode_snapshot

INDEXES = "indexes"


def waiting(folder: pathlib.Path) -> list[pathlib.Path]:
    """The snapshots in a run's folder whose indexes are not whole, oldest first."""
    folders = [x for x in (folder, *sorted(folder.rglob(INDEXES))) if x.name == INDEXES]
    return [
        there
        for indexes in folders
        for step in refresh.pending(indexes)
        for there in [indexes / f"step_{step}.partial"]
        if (there / refresh.SNAPSHOT / encode_snapshot.JOB).is_file()
    ]


def watch(
    folder: pathlib.Path, *, seconds: float, ended: Callable[[], bool] = lambda: False
) -> int:
    """Encodes what is there and what comes; how many indexes it published.

    What fails, as where a run has been started anew meanwhile, is told and left.

    Args:
      folder: a run's workdir, or its ``indexes``.
      seconds: between two looks.
      ended: whether to return, asked after each look.
    """
    published, failed = 0, set()
    while True:
        for partial in waiting(folder):
            began = partial, partial.stat().st_ino
            if began in failed:
                continue
            try:
                encode_snapshot.run(partial)
            except (UserError, FileNotFoundError) as error:
                failed.add(began)
                terminal.say(f"{partial}: {error}")
                continue
            published += 1
            terminal.say(f"published {partial.with_suffix('')}")
        if ended():
            return published
        time.sleep(seconds)
