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

from benchmarks import record
from tests.faults import figures, kinds, tries
from tests.faults.names import KINDS, SEVERAL, SYSTEMS
from tests.faults.server import Server

TRIES = {
    "kill": 5, "terminate": 2, "damage": 4, "judged": 10, "full": 1, "read_only": 1,
    "handles": 1, "memory": 2, "processes": 3,
}  # fmt: skip
"""How often each kind of fault is tried on each system in a whole campaign.

A try of ``kill`` has `kinds.KILLS` moments, 20 in all.
"""


def environment(folder: pathlib.Path) -> dict[str, str]:
    """In which runs begin."""
    return {
        "JAX_PLATFORMS": "cpu",
        "NPROC": "16",
        # Every program is kept, so that a run takes no time to compile.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        # The first run compiles without LLVM's expensive passes.
        "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true",
    }


def campaign(
    folder: pathlib.Path,
    *,
    seed: int,
    systems: Sequence[str] = SYSTEMS,
    faults: Sequence[str] = tuple(KINDS),
    number: int = 0,
) -> list[dict[str, Any]]:
    """Does what is left to do of a campaign; all its tries, and more done before.

    Args:
      folder: keeps ``tries.jsonl`` and the folders of tries that did not hold.
      number: of tries of each kind on each system; 0: those of `TRIES`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    noted = folder / "tries.jsonl"
    known: dict[tuple[str, str, int, int], dict[str, Any]] = {}
    if noted.exists():
        for line in noted.read_text().splitlines():
            told = json.loads(line)
            known[told["kind"], told["system"], told["number"], told["seed"]] = told
    commit = record.surroundings()["commit"]
    done = []
    with Server(folder / "data", environment(folder)) as server:
        for system in systems:
            for kind in faults:
                if kind == "processes" and system not in SEVERAL:
                    continue
                several = 2 if kind == "processes" else 1
                straight = tries.straight(
                    server, system, folder / f"{system}_{several}", several
                )
                tried = number or TRIES[kind]
                more = {
                    x[2] for x in known if (x[0], x[1], x[3]) == (kind, system, seed)
                }
                for at in sorted(more.union(range(tried))):
                    told = known.get((kind, system, at, seed))
                    if told is None:
                        there = folder / f"{kind}-{system}-{at}-{seed}"
                        told = attempt(server, kind, system, at, seed, straight, there)
                        told["commit"] = commit
                        with noted.open("a") as file:
                            file.write(json.dumps(told) + "\n")
                        state = told["told"] or "held"
                        print(f"{kind} {system} {at}: {state}", flush=True)
                    done.append(told)
    return done


def attempt(
    server: Server,
    kind: str,
    system: str,
    at: int,
    seed: int,
    straight: tries.Straight,
    there: pathlib.Path,
) -> dict[str, Any]:
    """One try, in a folder of its own, which goes where nothing was lost."""
    shutil.rmtree(there, ignore_errors=True)
    there.mkdir()
    chance = random.Random(f"{seed} {kind} {system} {at}")
    trial = tries.Try(server, system, straight, there, chance, at, [])
    began, before = time.monotonic(), server.processor
    told = kinds.FAULTS[kind](trial)
    if not told:
        shutil.rmtree(there, ignore_errors=True)
    return {
        "kind": kind,
        "system": system,
        "number": at,
        "seed": seed,
        "told": told,
        "faults": trial.did,
        "seconds": round(time.monotonic() - began, 2),
        "processor": round(server.processor - before, 2),
    }


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
