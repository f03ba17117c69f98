"""What is told on the terminal while a run goes on: lines and progress bars."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import tqdm

T = TypeVar("T")


def say(text: str) -> None:
    """A line on stderr that does not tear the progress bar."""
    tqdm.tqdm.write(text, file=sys.stderr)


def bar(description: str, unit: str) -> Callable[[Iterable[T]], Iterable[T]]:
    """A progress bar to put around an iterable."""

    def wrap(iterable: Iterable[T]) -> Iterable[T]:
        return tqdm.tqdm(iterable, desc=description, unit=unit, dynamic_ncols=True)

    return wrap


@contextlib.contextmanager
def counter(
    description: str, total: int, *, disable: bool = False
) -> Iterator[Callable[[int], object]]:
    """A progress bar that is told how many more are done."""
    with tqdm.tqdm(
        total=total, desc=description, dynamic_ncols=True, disable=disable
    ) as shown:
        yield shown.update


def asked() -> Iterator[str]:
    """Questions from the terminal or from a pipe, until an empty line or the end."""
    prompt = sys.stdin.isatty()
    while True:
        if prompt:
            sys.stdout.write("? ")
            sys.stdout.flush()
        line = sys.stdin.readline()
        question = line.strip()
        if not question:
            return
        yield question
