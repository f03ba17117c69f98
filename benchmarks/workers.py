"""Two sides of a comparison in processes of their own, working turn by turn.

Two thread pools in one process would fight for the cores, and so would two processes
that work at once: each sleeps while the other has its turn.
"""

import contextlib
import importlib
import json
import operator
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from benchmarks import record
from rlm_jax import allocator

NUM_THREADS = min(2, record.num_cores())
"""Where there are fewer cores, threads that wait for each other would spin."""

Turn = Callable[[], tuple[float, float]]
"""One turn's work -> its (wall-clock, processor) seconds."""


def compared(
    module: str, sides: Iterable[str], argument: Any, rounds: int
) -> tuple[dict[str, list], dict[str, Any]]:
    """(side -> what its first two turns gave, `record.interleaved` of the sides)."""
    with contextlib.ExitStack() as stack:
        told = {
            side: stack.enter_context(worker(module, side, argument)) for side in sides
        }
        time = record.interleaved({s: turn for s, (_, turn) in told.items()}, rounds)
    return {side: first for side, (first, _) in told.items()}, time


def decoding(
    module: str,
    sides: Iterable[str],
    save_model: Callable[[dict, str], None],
    cases: Mapping[str, dict],
    rounds: int,
) -> dict[str, Any]:
    """Tokens a second of two sides that continue the same rows with one model.

    Args:
      save_model: (case, folder) -> the model of both sides is in the folder.
      cases: by name, each with ``batch_size`` and ``new_tokens``.
    """
    compared_cases = {}
    for name, case in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            save_model(case, folder)
            first, time = compared(module, sides, case | {"folder": folder}, rounds)
        num_tokens = case["batch_size"] * case["new_tokens"]
        one, other = (turns[0] for turns in first.values())
        compared_cases[name] = {
            "case": case,
            "tokens_per_second": {
                side: round(num_tokens / seconds)
                for side, seconds in time["seconds"].items()
            },
            "equal_tokens": sum(map(operator.eq, one, other)) / len(one),
            "time": time,
        }
    return {
        "claims": {
            f"tokens/s, ours / Transformers: {name}": record.claim(
                figures["time"]["ratio"]["median"], at_least=1.5
            )
            for name, figures in compared_cases.items()
        },
        "cases": compared_cases,
    }


def serve(module: str, side: str, argument: Any) -> None:
    """Does a turn's work for each line of the input; answers with its seconds.

    ``SIDES[side](argument)`` of the module is the work, () -> a number. It is done
    twice at first, which compiles, and fills the allocator's pools. Ours keeps freed
    memory, as in a launcher.
    """
    if side == "rlm_jax":
        allocator.keep_freed_memory()
    work = importlib.import_module(module).SIDES[side](argument)
    print(json.dumps([work(), work()]), flush=True)
    for _ in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        work()
        spent = time.perf_counter() - wall, time.process_time() - processor
        print(json.dumps(spent), flush=True)


@contextlib.contextmanager
def worker(module: str, side: str, argument: Any) -> Iterator[tuple[list, Turn]]:
    """([what the first two turns gave], one more turn) of a side in another process.

    It has `NUM_THREADS` cores and threads.
    """
    cores = sorted(os.sched_getaffinity(0))[:NUM_THREADS]
    code = (
        f"import os; os.sched_setaffinity(0, {cores}); "
        "from benchmarks import workers; "
        f"workers.serve({module!r}, {side!r}, {argument!r})"
    )
    environment = os.environ | {
        "OMP_NUM_THREADS": str(NUM_THREADS), "JAX_PLATFORMS": "cpu",
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, cwd=record.ROOT, env=environment,
    ) as process:  # fmt: skip
        assert process.stdin and process.stdout
        to, answers = process.stdin, process.stdout

        def turn() -> tuple[float, float]:
            to.write("turn\n")
            to.flush()
            wall, processor = json.loads(answers.readline())
            return wall, processor

        yield json.loads(answers.readline()), turn
        to.close()
