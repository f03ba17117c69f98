"""Freed memory is kept for what comes next, where the environment leaves it to us."""

import os
import subprocess
import sys

import pytest

CODE = """
import resource, threading
from rlm_jax import allocator

def faults(number):
    def allocate():
        for _ in range(4):
            b"x" * number  # 64 MB; NumPy would ask for large pages
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = allocator.keep_freed_memory()
faults(2**26)
print(kept, faults(2**26) * resource.getpagesize() // 2**20)
"""


def kept(**environment: str) -> tuple[bool, int]:
    """(Whether memory is said to be kept, MB of pages that the kernel had to clear)."""
    ours = {n: x for n, x in os.environ.items() if "MALLOC" not in n}
    ours.pop("GLIBC_TUNABLES", None)
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=ours | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said, cleared = done.stdout.split()
    return said == "True", int(cleared)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_blocks_are_used_again_without_new_pages():
    said, cleared = kept()
    assert said and cleared < 8


@pytest.mark.parametrize(
    "environment",
    [
        {"MALLOC_ARENA_MAX": "2"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"},
    ],
)
def test_what_the_environment_says_stays(environment: dict[str, str]):
    said, cleared = kept(**environment)
    assert not said and cleared >= 200  # each of four blocks anew
