"""How a program tells that it failed: one sentence for all that a user can mend."""

import contextlib
import errno
import os
import resource
import sys
from collections.abc import Iterator
from typing import NoReturn

from rlm_jax import peers, terminal
from rlm_jax.errors import UserError

_OUTSIDE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EMFILE, errno.ENFILE, errno.EIO),
)
"""What the system refuses, whatever the program is; all else is a bug."""

_NO_MEMORY = (
    *("RESOURCE_EXHAUSTED", "not enough memory", "Out of memory", "bad_alloc"),
    # Of a library that is loaded, and of a thread.
    *("failed to map segment", "cannot allocate memory", "can't start new thread"),
    os.strerror(errno.ENOMEM),
)

_LITTLE = (
    "There is too little memory; free some, or choose smaller batches, and start "
    "again, which goes on from what is whole."
)


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """What the user can mend is told in one line; all else keeps its traceback."""
    try:
        yield
    except UserError as error:
        _end(str(error))
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            why = "is too long for its file system"
            if error.errno == errno.ELOOP:
                why = "is a link that leads to itself"
            _end(f"The path {error.filename} {why}; name another.")
        if error.errno == errno.ENOMEM:
            _end(_LITTLE)
        if error.errno not in _OUTSIDE:
            raise
        _refused(error.errno, error.filename)
    except KeyboardInterrupt:
        terminal.say("interrupted; start again to go on from the last checkpoint")
        sys.exit(130)
    except Exception as error:
        # Libraries in C++ have the reason in their messages alone.
        said = str(error)
        if _is_short(error) or any(x in said for x in _NO_MEMORY):
            _end(_LITTLE)
        for number in _OUTSIDE:
            if os.strerror(number) in said:
                _refused(number, None)
        peers.give_way()
        raise


def _is_short(error: Exception) -> bool:
    """Whether Python itself got no memory, which its parts in C may forget to tell."""
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    forgotten = isinstance(error, SystemError) and "without exception set" in str(error)
    return isinstance(error, MemoryError) or (limited and forgotten)


def _refused(number: int, name: str | None) -> NoReturn:
    """Tells what the system refused."""
    if number in (errno.ENOSPC, errno.EDQUOT):
        told = f"The disk is full{f' while writing {name}' if name else ''}; make room"
    else:
        told = f"{name or 'A file'}: {os.strerror(number)}; mend that"
    _end(f"{told} and start again, which goes on from what is whole.")


def _end(told: str) -> NoReturn:
    """Tells why, and ends with status 1."""
    if peers.peers().several:
        # At once: JAX would wait at its exit for processes that wait for this one.
        peers.peers().fail()
        peers.end(told=told)
    terminal.say(f"error: {told}")
    sys.exit(1)
