"""The one exception for bad input: its message is what the user reads."""

from typing import Any


class UserError(Exception):
    """Bad input from outside: a path, a file, a flag, a checkpoint, a number.

    The message is one sentence that names the offending thing and the remedy. Launchers
    print it without a traceback and exit with status 1; everything else is a bug and
    keeps its traceback.
    """


def told(value: Any) -> str:
    """A value as a message shows it, shortened where it is long."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length():,} bits"
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # Python spells no number of 5,000 digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."
