"""A checkpoint's folder: its names, its files, and the thread that writes it."""

import contextlib
import functools
import gc
import logging
import os
import pathlib
import shutil
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rlm_jax.errors import UserError
from rlm_jax.storage import atomic, cache, checked_files

FORMAT = "rlm_jax checkpoint 1"

_WRITING = ".writing"

LOG = "checkpoints.log"
"""What the libraries below say while they write, beside the folder of checkpoints."""

_LOGGERS = ("absl", "asyncio", "orbax", "jax")

_LONGEST = 128
"""Characters that a checkpoint's files may add to the path of the folder of steps."""


def check_length(directory: pathlib.Path) -> None:
    """Whether every file of a checkpoint can have its name in a folder of steps.

    Raises:
      UserError: If the folder's path is too long for that.
    """
    longest = os.pathconf(directory, "PC_PATH_MAX") - 1 - _LONGEST
    length = len(os.fsencode(directory))
    if length > longest:
        raise UserError(
            f"The folder of checkpoints {str(directory)[:60]}... has a path of "
            f"{length:,} bytes, and the file system permits {longest:,} where "
            "checkpoints are written; name a shorter one."
        )


def unfinished(folder: pathlib.Path) -> pathlib.Path:
    """Another name for a step's folder, empty, until it is whole."""
    written = folder.with_name(folder.name + _WRITING)
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir()
    return written


def remove_unfinished(directory: pathlib.Path) -> None:
    """Removes what was being written or removed when its process was killed."""
    for path in directory.iterdir():
        step, dot, _ = path.name.partition(".")
        if step.isdigit() and dot:
            shutil.rmtree(path)


def list_files(folder: pathlib.Path, fields: Mapping[str, Any]) -> None:
    """Writes a manifest of all files of a folder, whose names are on the disk then.

    Args:
      fields: what else the manifest tells.
    """
    files = cache.checksums(folder, "**/*")
    manifest = {"format": FORMAT, "files": files, **fields}
    checked_files.write_manifest(folder, manifest)
    for path in folder.rglob("*"):
        if path.is_dir():
            atomic.sync(path)


def verify(folder: pathlib.Path) -> None:
    """Compares the files of a folder with its manifest, if it is new enough for one.

    Raises:
      ValueError: a file is missing or another.
    """
    if not (folder / checked_files.MANIFEST).exists():
        return
    try:
        files = checked_files.read_manifest(folder, FORMAT)["files"]
    except UserError as error:
        raise ValueError("its manifest is damaged") from error
    for name, told in files.items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"the file {name} is missing")
        if path.stat().st_size != told["size"] or atomic.crc32(path) != told["crc32"]:
            raise ValueError(f"the checksum of the file {name} is wrong")


@contextlib.contextmanager
def logged(directory: pathlib.Path) -> Iterator[None]:
    """Meanwhile what libraries log goes into a file, if there is any, not to stderr.

    Orbax logs each array that it cannot write with a traceback; the user gets one
    sentence.
    """
    handler = _Handler(directory.with_name(LOG), encoding="utf-8", delay=True)
    handler.setLevel(logging.WARNING)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.propagate, list(logger.handlers)) for logger in loggers]
    hooks = sys.unraisablehook, sys.excepthook
    late = functools.partial(_tell_unraisable, sys.unraisablehook)
    sys.unraisablehook = late
    sys.excepthook = functools.partial(_tell, sys.excepthook)
    for logger in loggers:
        logger.propagate, logger.handlers = False, [handler]
    try:
        yield
    except Exception as error:
        # What was half made complains when it goes, which is now.
        sys.unraisablehook = lambda _: None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _forget(error)
        sys.unraisablehook = late
        raise
    else:
        sys.unraisablehook, sys.excepthook = hooks
    finally:
        for logger, (propagate, handlers) in zip(loggers, before, strict=True):
            logger.propagate, logger.handlers = propagate, handlers
        handler.close()


def _tell(before: Callable[..., None], kind: type, error: Any, trace: Any) -> None:
    """What ``sys.excepthook`` told before, but for TensorStore's late answers.

    Orbax closes its event loop at the first array that cannot be written, and answers
    for the others find none, perhaps some time after it has failed.
    """
    if not _is_late(kind, error):
        before(kind, error, trace)


def _tell_unraisable(before: Callable[..., None], told: Any) -> None:
    """The same of ``sys.unraisablehook``, by which a thread of C++ tells."""
    if not _is_late(told.exc_type, told.exc_value):
        before(told)


def _is_late(kind: type, error: Any) -> bool:
    return kind is RuntimeError and str(error) == "Event loop is closed"


def _forget(error: BaseException | None) -> None:
    """Empties the frames that an error, and what it came from, holds on to."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


class _Handler(logging.FileHandler):
    """A log that cannot be written is none: what failed is told anyway."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        del record


class Background:
    """At most one piece of work in a thread, whose failure is told to who waits for it.

    The thread does not outlive the program: what it writes has no name until it is
    whole.
    """

    def __init__(self):
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begins with ``work``, once what was begun before has ended."""
        self.wait()

        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoints", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when the work is done; raises once what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error
