"""Locks between processes of one machine; each ends with the process that holds it."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the file ``path`` alone; who has to wait for it calls ``waits()`` first.

    Raises:
      OSError: the file cannot be opened, or its file system has no locks.
    """
    # The kernel drops the lock when its holder dies: no stale locks, no process ids.
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waits()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(path: Path) -> int | None:
    """The descriptor of the file ``path``, held alone until it is closed.

    None where another process holds it. Where the file system has no locks it is open
    and not held, so that a run goes on there.

    Raises:
      OSError: the file cannot be opened.
    """
    held = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    except OSError:
        pass
    return held
