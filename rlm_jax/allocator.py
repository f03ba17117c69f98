"""What the C library does with memory that is freed.

XLA's CPU client asks for the temporaries of a program anew at each of its runs. glibc
maps a block of more than 32 MB from the kernel and gives it back when it is freed, so
at each run, such as a step of training, the kernel clears every page once more.
"""

import ctypes
import os
import sys

# mallopt(3), and malloc.h of glibc.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """From now on this process keeps what it frees, for its next allocations.

    Call it before the threads begin that allocate, so before anything touches a device;
    launchers do. The process then holds its peak of memory until it ends. Threads share
    one heap, since those of their own (arenas) cannot hold large blocks.

    Returns:
      Whether it does. It does not where the C library is not glibc, or where the
      environment says how to allocate (``MALLOC_*``, ``GLIBC_TUNABLES``).
    """
    said = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") for name in os.environ
    )
    if said or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(
        mallopt(option, value)
        for option, value in ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, -1))
    )
