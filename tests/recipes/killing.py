"""Runs of launchers in processes of their own, which are killed again and again."""

import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(code: str, *arguments: str | pathlib.Path) -> subprocess.Popen:
    """A Python process that runs the code, with arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "16"},
        stderr=subprocess.DEVNULL,
    )


def kill_at(
    begin: Callable[[], subprocess.Popen],
    folder: pathlib.Path,
    moments: Sequence[tuple[str, float]],
) -> int:
    """Begins a run for each moment and kills it then; how many were still running.

    Args:
      begin: starts the run in the folder, or goes on with it.
      moments: what (a pattern) has just appeared in the folder, and how many seconds
        later the run is killed.
    """
    kills = 0
    for pattern, delay in moments:
        run = begin()
        while run.poll() is None and not any(folder.glob(pattern)):
            time.sleep(0.01)
        time.sleep(delay)
        kills += run.poll() is None
        run.kill()
        run.wait()
    return kills
