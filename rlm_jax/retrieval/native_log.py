"""The lines that a C++ library logs on its own, kept from the terminal."""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_STDERR = 2


def quietly(function: Callable[..., T], *arguments: Any) -> T:
    """What the function gives; meanwhile nothing reaches stderr.

    For calls that take seconds and say nothing. The library writes to the process's own
    stderr, which Python's does not change. An exception is told by Python, afterwards.
    """
    sys.stderr.flush()
    try:
        before = os.dup(_STDERR)
    except OSError:  # there is no stderr
        return function(*arguments)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDERR)
    try:
        return function(*arguments)
    finally:
        sys.stderr.flush()
        os.dup2(before, _STDERR)
        os.close(before)
        os.close(nowhere)
