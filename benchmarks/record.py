"""Timing and recording: what all benchmarks share.

A claim is a ratio, and both of its sides run within one program, turn by turn. The
figure is the median of the ratios of the turns, so that what slows the machine for a
while slows both sides of a turn.
"""

import argparse
import contextlib
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("jax", "flax", "optax", "numpy", "scann", "torch", "transformers")


def main(name: str, measure: Callable[[bool], dict[str, Any]]) -> None:
    """The command line of a benchmark: measure, print, store.

    Args:
      name: of the module, and of the file of figures.
      measure: quick -> figures; quick ones come from sizes that only show that the
        program works, and are stored beside the runs instead of among the results.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--out", type=Path, help="folder of the figures")
    arguments = parser.parse_args()
    load_before = os.getloadavg()
    figures = measure(arguments.quick)
    default = ROOT / "runs" / "benchmarks" if arguments.quick else RESULTS
    path = (arguments.out or default) / f"{name}.json"
    command = " ".join([f"python -m benchmarks.{name}", *sys.argv[1:]])
    result = {"command": command, **surroundings(), "load_before": load_before}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result | figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1), flush=True)


def with_options(
    name: str,
    parser: argparse.ArgumentParser,
    measure: Callable[[bool, argparse.Namespace], dict[str, Any]],
    *,
    told: Sequence[str],
    needs: str = "",
) -> None:
    """`main` of a benchmark that has options of its own.

    Args:
      name: as of `main`.
      parser: of these options, without help.
      measure: (quick, options) -> figures.
      told: what the stored command repeats of them, where it is given; of a path the
        last name, for the folders say something of this machine alone.
      needs: the option without which only the quick sizes can be measured.
    """
    options, others = parser.parse_known_args()
    if needs and not getattr(options, needs) and "--quick" not in others:
        print(f"{name}: skipped, give --{needs}.")
        return
    command = [f"python -m benchmarks.{name}", *({"--quick"} & set(others))]
    for option in told:
        if value := getattr(options, option):
            kind, colon, path = str(value).rpartition(":")
            command.append(
                f"--{option.replace('_', '-')} {kind}{colon}{Path(path).name}"
            )
    sys.argv[1:] = others
    main(
        name,
        lambda quick: {**measure(quick, options), "command": " ".join(command)},
    )


def surroundings() -> dict[str, Any]:
    """Date, device, versions and commit: what a figure depends on beside the code."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": f"{_processor()}, {num_cores()} cores, {platform.machine()}",
        "versions": versions,
        "commit": _git("rev-parse", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--", "*.py")),
        "load_average": os.getloadavg(),
    }


def num_cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0))


def interleaved(
    sides: Mapping[str, Callable[[], tuple[float, float]]], rounds: int
) -> dict[str, Any]:
    """Times two sides turn by turn; the ratio is the first's over the second's.

    Args:
      sides: two functions that do their work once and return the (wall-clock,
        processor) seconds it took; `timed` makes one. Compilation must be over.
      rounds: turns; every other one runs the second side first.

    Returns:
      Median seconds of each side, and the median and quartiles of the ratios: of
      wall-clock seconds, and of processor seconds, which other programs disturb less.
    """
    first, second = sides
    turns: list[dict[str, tuple[float, float]]] = []
    for i in range(rounds):
        order = (first, second) if i % 2 == 0 else (second, first)
        turns.append({name: sides[name]() for name in order})

    def ratios(clock):
        return _spread(turn[first][clock] / turn[second][clock] for turn in turns)

    def seconds(clock):
        return {
            name: round(statistics.median(turn[name][clock] for turn in turns), 5)
            for name in sides
        }

    return {
        "rounds": rounds,
        "seconds": seconds(0),
        "cpu_seconds": seconds(1),
        "ratio": ratios(0),
        "cpu_ratio": ratios(1),
    }


def timed(work: Callable[[], object]) -> Callable[[], tuple[float, float]]:
    """The function, waiting for its arrays, as (wall-clock, processor) seconds."""
    import jax

    def run():
        wall, processor = time.perf_counter(), time.process_time()
        jax.block_until_ready(work())
        return time.perf_counter() - wall, time.process_time() - processor

    return run


def claim(value: float, *, at_most: float = 0, at_least: float = 0) -> dict[str, Any]:
    """A figure beside what was promised of it."""
    if at_most:
        bound = {"at_most": at_most, "met": value <= at_most}
    else:
        bound = {"at_least": at_least, "met": value >= at_least}
    return {"value": float(f"{value:.4g}"), **bound}


def start_of_memory() -> float:
    """Forgets this process's peak so far; resident megabytes from which to count.

    What the allocator holds in reserve is given back first, since work that follows
    would reuse it unseen. Linux only; where the system keeps the peak of the process's
    whole life, that is what `added_memory` tells: an upper bound.
    """
    ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def added_memory(start: float) -> float:
    """Megabytes by which the resident memory has peaked since `start_of_memory`.

    Use both in a fresh process, once inputs exist and programs are compiled.
    """
    return max(_resident("VmHWM") - start, 0.0)


def in_fresh_process(module: str, function: str, *arguments: Any) -> Any:
    """``module.function(*arguments)`` in a Python of its own; all of it is JSON."""
    code = (
        f"import json, {module} as m; "
        f"print(json.dumps(m.{function}(*json.loads({json.dumps(arguments)!r}))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, cwd=ROOT
    )
    return json.loads(done.stdout.splitlines()[-1])


def _resident(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status has no {field}; measure on Linux")


def _spread(values: Iterable[float]) -> dict[str, Any]:
    some = sorted(values)
    low, middle, high = statistics.quantiles(some, n=4) if some[1:] else some * 3
    return {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, cwd=ROOT
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
