"""Kills, damages and starves every trained system, and counts what is lost.

    python -m tests.faults --seed 0

``make test-faults`` does the same. Every try is noted when it has ended, in a folder of
its own (``--folder``), and a campaign that was stopped goes on. The folders of tries
that did not hold stay. A whole campaign writes its figures into docs/reliability.md and
benchmarks/results/faults.json.
"""

import argparse
import json
import pathlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from tests.faults import figures, kinds, tries
from tests.faults.names import KINDS, SEVERAL, SYSTEMS
from tests.faults.server import Server

TRIES = {
    "kill": 20, "terminate": 4, "damage": 20, "full": 3, "read_only": 2, "handles": 2,
    "memory": 2, "processes": 4,
}  # fmt: skip
"""How often each kind of fault is tried on each system in a whole campaign."""


def campaign(
    folder: pathlib.Path,
    *,
    seed: int,
    systems: Sequence[str] = SYSTEMS,
    faults: Sequence[str] = tuple(KINDS),
    number: int = 0,
) -> list[dict[str, Any]]:
    """Does what is left to do of a campaign; all its tries.

    Args:
      folder: keeps ``tries.jsonl`` and the folders of tries that did not hold.
      number: of tries of each kind on each system; 0: those of `TRIES`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, noted = folder / "data", folder / "tries.jsonl"
    done: list[dict[str, Any]] = []
    if noted.exists():
        done = [json.loads(x) for x in noted.read_text().splitlines()]
    known = {(x["kind"], x["system"], x["number"], x["seed"]) for x in done}
    wanted = [
        (kind, system, at)
        for system in systems
        for kind in faults
        for at in range(number or TRIES[kind])
        if kind != "processes" or system in SEVERAL
    ]
    environment = {
        "JAX_PLATFORMS": "cpu",
        "NPROC": "16",
        # Every program is kept, so that a run takes no time to compile.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    with Server(data, environment) as server:
        for kind, system, at in wanted:
            if (kind, system, at, seed) in known:
                continue
            several = 2 if kind == "processes" else 1
            straight = tries.straight(
                server, system, folder / f"{system}_{several}", several
            )
            there = folder / f"{kind}-{system}-{at}-{seed}"
            shutil.rmtree(there, ignore_errors=True)
            there.mkdir()
            chance = random.Random(f"{seed} {kind} {system} {at}")
            began = time.monotonic()
            told = kinds.FAULTS[kind](
                tries.Try(server, system, straight, there, chance)
            )
            ended = {
                "kind": kind,
                "system": system,
                "number": at,
                "seed": seed,
                "told": told,
                "seconds": round(time.monotonic() - began, 2),
            }
            done.append(ended)
            with noted.open("a") as file:
                file.write(json.dumps(ended) + "\n")
            print(f"{kind} {system} {at}: {told or 'held'}", flush=True)
            if not told:
                shutil.rmtree(there)
    chosen = set(wanted)
    return [
        x
        for x in done
        if x["seed"] == seed and (x["kind"], x["system"], x["number"]) in chosen
    ]


def main() -> int:
    """The program; its status is 1 where something was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tries", type=int, default=0, help="of each kind on each system"
    )
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--folder", type=pathlib.Path, help="where tries are kept")
    parser.add_argument(
        "--write", action="store_true", help="the figures of a part, too"
    )
    options = parser.parse_args()
    folder = options.folder or pathlib.Path(tempfile.gettempdir()) / "rlm_jax_faults"
    done = campaign(
        folder.absolute(),
        seed=options.seed,
        systems=options.systems,
        faults=options.kinds,
        number=options.tries,
    )
    found = figures.figures(done, options.seed)
    print(figures.table(found))
    whole = not options.tries and {*options.systems} == {*SYSTEMS}
    if options.write or (whole and {*options.kinds} == {*KINDS}):
        figures.write(found, figures.PAGE, figures.RESULTS)
    return int(any(x["told"] for x in done))


if __name__ == "__main__":
    sys.exit(main())
