"""Sums become figures, and figures become lines of ``metrics.jsonl``."""

import json
import math
import pathlib
import zlib
from collections.abc import Mapping

import jax

from rlm_jax import characters, terminal
from rlm_jax.errors import UserError
from rlm_jax.storage import atomic, sealed
from rlm_jax.train.tensorboard import Events

HostSums = dict[str, tuple[float, float]]
"""`Sums` on the host, in float64."""

_LINE = {"step": int, "split": str}


def to_host(sums: Mapping[str, tuple]) -> HostSums:
    """Waits for the sums and copies them."""
    fetched = jax.device_get(dict(sums))
    return {name: (float(s), float(w)) for name, (s, w) in fetched.items()}


def add(total: HostSums, sums: HostSums) -> HostSums:
    """Both together, so that the mean over them is weighted rightly."""
    names = total.keys() | sums.keys()
    pairs = {n: (total.get(n, (0.0, 0.0)), sums.get(n, (0.0, 0.0))) for n in names}
    return {n: (a[0] + b[0], a[1] + b[1]) for n, (a, b) in pairs.items()}


def means(sums: HostSums) -> dict[str, float]:
    """Sum / weight of everything that has a weight, by name in order."""
    return {n: s / w for n, (s, w) in sorted(sums.items()) if w != 0}


def check_finite(sums: HostSums, step: int) -> None:
    """Stops training at the first step whose metrics are not numbers.

    Raises:
      UserError: If a sum or a weight is infinite or not a number.
    """
    for name, pair in sorted(sums.items()):
        if not all(math.isfinite(x) for x in pair):
            raise UserError(
                f"The metric {name!r} is {pair[0]} / {pair[1]} at step {step}; lower "
                "the learning rate or lengthen the warm-up and start again, which "
                "resumes from the last checkpoint, where all was still finite."
            )


class Writer:
    """Appends one JSON object a line; optionally the same to TensorBoard.

    ``step`` in a line is the number of steps done when it was written. On resuming
    after ``start`` steps the lines of later steps are dropped: they will come again.

    Attributes:
      written: the number of lines and the CRC-32 of all of them, for a checkpoint.
    """

    def __init__(
        self,
        workdir: str | pathlib.Path,
        *,
        start: int,
        tensorboard: bool = False,
        written: Mapping[str, int] = {},
    ):
        """Opens ``workdir/metrics.jsonl``.

        Args:
          workdir: of the run.
          start: the number of steps done.
          tensorboard: whether to write its files, too.
          written: what the file held after ``start`` steps. Where it holds something
            else, that is told, and the run goes on.

        Raises:
          UserError: If TensorBoard is asked for and tensorboardX is not installed, or
            the file cannot be written.
        """
        path = pathlib.Path(workdir) / "metrics.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.written = _drop_after(path, start)
            _tell_lost(path, start, written, self.written)
            # Line buffering: a kill loses no line that was written.
            self._file = path.open("a", buffering=1, encoding="utf-8")
            self._tensorboard = None
            if tensorboard:
                self._tensorboard = Events(path.parent / "tensorboard", start=start)
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}); choose another workdir."
            ) from error

    def write(self, step: int, figures: Mapping[str, float], *, split: str) -> None:
        """One line: step, split ("train", "validation"), and the figures."""
        figures = {name: float(x) for name, x in figures.items()}
        # JSON has no NaN: a figure that is not a number becomes null.
        finite = {n: x if math.isfinite(x) else None for n, x in figures.items()}
        line = json.dumps({"step": step, "split": split, **finite})
        self.written = _with_line(self.written, line)
        try:
            self._file.write(line + "\n")
            if self._tensorboard is not None:
                told = {f"{split}/{name}": x for name, x in figures.items()}
                self._tensorboard.write(step, told)
        except OSError as error:
            raise UserError(
                f"{self._file.name} cannot be written ({error.strerror}); make room "
                "there and start again, which resumes from the last checkpoint."
            ) from error

    def close(self) -> None:
        """Flushes and closes."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read(workdir: str | pathlib.Path) -> list[dict]:
    """The lines of a run's ``metrics.jsonl``, without one that a kill cut short.

    Raises:
      UserError: another line is none that `Writer.write` writes.
    """
    path = pathlib.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return []
    lines = characters.lines(path.read_bytes().decode("utf-8", "replace"))
    parsed = [_parse(line) for line in lines]
    for number, record in enumerate(parsed, 1):
        # The last line alone may be cut short, and then it is no JSON.
        wrong = sealed.misfit(record, _LINE) or _no_figure(record or {})
        if wrong and not (record is None and number == len(parsed)):
            raise UserError(
                f"Line {number} of {path} is no record of a step ({wrong}); remove "
                "that line."
            )
    return [record for record in parsed if record is not None]


def _drop_after(path: pathlib.Path, start: int) -> dict[str, int]:
    """Drops the lines of later steps; what stays, as `Writer.written`."""
    written = {"lines": 0, "crc32": 0}
    if not path.exists():
        return written
    kept = [json.dumps(x) for x in read(path.parent) if x["step"] <= start]
    for line in kept:
        written = _with_line(written, line)
    atomic.write_bytes(path, "".join(line + "\n" for line in kept).encode())
    return written


def _with_line(written: Mapping[str, int], line: str) -> dict[str, int]:
    """`Writer.written` after one more line."""
    summed = zlib.crc32(line.encode(), written["crc32"])
    return {"lines": written["lines"] + 1, "crc32": summed}


def _tell_lost(
    path: pathlib.Path, start: int, wanted: Mapping[str, int], found: Mapping[str, int]
) -> None:
    """Says where a log is not what it was: a curve does not decide a run."""
    if wanted and wanted != found:
        terminal.say(
            f"warning: {path} is damaged: it has {found['lines']} lines of the first "
            f"{start} steps, not the {wanted.get('lines')} that the run wrote; "
            "training goes on, and its curve is not whole"
        )


def _parse(line: str) -> dict | None:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _no_figure(record: dict) -> str | None:
    """Where a line holds what is no figure; null is one that was not finite."""
    figures = {n: x for n, x in record.items() if n not in _LINE and x is not None}
    return sealed.misfit(figures, dict.fromkeys(figures, float))
