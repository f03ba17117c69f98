"""What is told on the terminal while a run goes on: lines and progress bars.

Whatever its encoding is, nothing that is told ends the run: characters that it lacks
are written otherwise. Nothing that is told commands it: escape sequences and marks of
direction, which a text may hold, are shown (`characters.visible`).
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, TypeVar

import tqdm

from rlm_jax import characters

T = TypeVar("T")

_PIPE_CLOSED = 128 + 13  # as of a program that SIGPIPE ends

_PLAIN = str.maketrans(
    {"…": "...", "·": "-", "×": "x", "─": "-", "–": "-", "→": "->", "’": "'"}
)


def say(text: str) -> None:
    """A line on stderr that does not tear the progress bar."""
    tqdm.tqdm.write(_fitting(text, sys.stderr), file=sys.stderr)


def write(text: str) -> None:
    """A result, on stdout."""
    try:
        sys.stdout.write(_fitting(text, sys.stdout))
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has enough, as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_PIPE_CLOSED)


def write_json(value: Any) -> None:
    """A result as a line of JSON, on stdout; all terminals and pipes can hold it."""
    line = json.dumps(value, ensure_ascii=False)
    if _fitting(line, sys.stdout) != line:
        line = json.dumps(value)
    write(f"{line}\n")


def bar(description: str, unit: str) -> Callable[[Iterable[T]], Iterable[T]]:
    """A progress bar to put around an iterable."""

    def wrap(iterable: Iterable[T]) -> Iterable[T]:
        shown = _fitting(description, sys.stderr)
        return tqdm.tqdm(iterable, desc=shown, unit=unit, dynamic_ncols=True)

    return wrap


@contextlib.contextmanager
def counter(
    description: str, total: int, *, disable: bool = False
) -> Iterator[Callable[[int], object]]:
    """A progress bar that is told how many more are done."""
    with tqdm.tqdm(
        total=total,
        desc=_fitting(description, sys.stderr),
        dynamic_ncols=True,
        disable=disable,
    ) as shown:
        yield shown.update


def given(text: str, what: str) -> str:
    """A question or a prompt as it was typed, piped or given by flag.

    Its blanks stay. Bytes that are no text are replaced, which is told.
    """
    text, changed = characters.repaired(text)
    if changed:
        say(f"note: {what} has bytes that are not UTF-8; they are read as \ufffd")
    return text


def asks() -> bool:
    """Whether somebody types at a terminal; else lines come through a pipe."""
    return sys.stdin is not None and sys.stdin.isatty()


def asked(what: str = "a question") -> Iterator[str]:
    """Lines from the terminal or from a pipe, until an empty line or the end.

    Only the end of a line is cut off. What a pipe holds after an empty line is told.
    """
    prompt, first = asks(), True
    while True:
        if prompt:
            write("? ")
        line = _line()
        if first:
            line, first = line.removeprefix(characters.MARK), False
        if not line.strip():
            break
        yield given(line.removesuffix("\n").removesuffix("\r"), what)
    if line and not prompt:
        rest = sum(bool(more.strip()) for more in iter(_line, ""))
        if rest:
            say(f"note: an empty line ended the input; {rest:,} lines after it are not "
                "read")  # fmt: skip


def _line() -> str:
    """A line of stdin; bytes that its encoding does not know are kept as halves."""
    if sys.stdin is None:  # closed by who started it
        return ""
    if not hasattr(sys.stdin, "buffer"):
        return sys.stdin.readline()
    encoding = sys.stdin.encoding or "utf-8"
    return sys.stdin.buffer.readline().decode(encoding, "surrogateescape")


def _fitting(text: str, stream: TextIO) -> str:
    """The text in characters that a stream can write."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = characters.visible(characters.shown(text))
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        plain = text.translate(_PLAIN)
        return plain.encode(encoding, "backslashreplace").decode(encoding)
