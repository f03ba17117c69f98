"""Figures for TensorBoard, written without a thread.

tensorboardX's own writer has one. Where it dies, as on a full disk, the training would
wait for ever for room in its queue.
"""

import pathlib
import time
from collections.abc import Mapping

from rlm_jax.errors import UserError


class Events:
    """One file of events in ``folder``."""

    def __init__(self, folder: pathlib.Path, *, start: int):
        """Opens the file; what was written of steps after ``start`` is hidden.

        Raises:
          UserError: If tensorboardX is not installed.
          OSError: If the file cannot be written.
        """
        try:
            from tensorboardX import event_file_writer, summary
            from tensorboardX.proto import event_pb2
        except ImportError as error:
            raise UserError(
                "TensorBoard output needs tensorboardX; install it or set tensorboard "
                "to false."
            ) from error
        self._events, self._summary = event_pb2, summary
        folder.mkdir(parents=True, exist_ok=True)
        self._file = event_file_writer.EventsWriter(str(folder / "events"))
        begun = self._events.SessionLog(status=self._events.SessionLog.START)
        self._write(step=start + 1, session_log=begun)
        self._file.flush()

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Scalars of a step; they are on the disk then."""
        for name, x in figures.items():
            self._write(step=step, summary=self._summary.scalar(name, x))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, **fields) -> None:
        self._file.write_event(self._events.Event(wall_time=time.time(), **fields))
