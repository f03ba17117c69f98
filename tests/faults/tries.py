"""What every try has: its folders, the straight run beside it, and its chance."""

import json
import pathlib
import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from tests.faults import ended
from tests.faults.server import Ended, Process, Server, Watch

HANG = 60.0
"""Seconds, beyond ten times those of the straight run, after which a run hangs."""

LONGEST = 600.0
"""Seconds that a straight run may take, compilation included."""

GROUPS = {
    "saving": r"run/(.*/)?checkpoints/\d+(\.writing)?$",
    "refreshing": r"run/.*(indexes|rounds|refreshes)",
    "building": r"cache/|run/.*(keys|store|memory|database|neighbours|targets|"
    r"retrieval|negatives|vectors|encoder|decoder|reader|runs|index|texts)",
    "training": r"run/(.*/)?metrics\.jsonl$",
}
"""What has just appeared (a pattern) when a run is in that phase."""


class Straight(NamedTuple):
    """A run that nothing stopped."""

    folder: pathlib.Path  # its run and its cache
    half: pathlib.Path  # those of one that was killed in the middle
    left: dict[str, str]  # as `ended.of`
    seconds: float
    appeared: list[tuple[float, str]]  # seconds after the start -> path in the folder

    @property
    def patience(self) -> float:
        """Seconds after which a run like it hangs."""
        return HANG + 10 * self.seconds


class Try(NamedTuple):
    """One try of one kind of fault on one system."""

    server: Server
    system: str
    straight: Straight
    folder: pathlib.Path
    rng: random.Random
    number: int  # of the try, from 0
    did: list[str]  # each fault, in words

    @property
    def workdir(self) -> pathlib.Path:
        return self.folder / "run"

    @property
    def cache(self) -> pathlib.Path:
        return self.folder / "cache"

    def clear(self) -> None:
        """Nothing has been run yet."""
        for folder in (self.workdir, self.cache):
            shutil.rmtree(folder, ignore_errors=True)

    def begin(self, **options) -> Process:
        """Begins or goes on with the run."""
        return self.server.start(self.system, self.workdir, self.cache, **options)

    def run(self, **options) -> Ended:
        """The same, to its end."""
        return self.begin(**options).wait(self.straight.patience)

    def finish(self) -> str:
        """Runs to the end with no fault; what is lost then, or nothing."""
        last = self.run()
        if last.status != 0:
            return f"does not go on: {ended.complaint(last) or _last_line(last)}"
        return self.compare()

    def compare(self, said: str = "") -> str:
        """How the finished run differs from the straight one.

        Args:
          said: by the last start; a file of which a warning told may differ.
        """
        try:
            found = ended.of(self.workdir)
        except (OSError, ValueError) as error:
            return f"left {error!r}"
        warned = [x for x in said.splitlines() if "warning: " in x and "damaged" in x]
        wanted = self.straight.left
        for name in {**found, **wanted}:
            if any(str(self.workdir / name) in line for line in warned):
                found.pop(name, None)
                wanted = {k: x for k, x in wanted.items() if k != name}
        other = ended.differences(found, wanted)
        return f"other {other}" if other else ""

    def moments(self, number: int) -> list["Moment"]:
        """So many moments of the run in their order; all tries share its phases."""
        phases = groups(self.straight)
        drawn = []
        for at in range(number * self.number, number * (self.number + 1)):
            group = phases[at % len(phases)]
            found = [x for x in self.straight.appeared if re.match(GROUPS[group], x[1])]
            seconds, path = self.rng.choice(found)
            delay = self.rng.random() * self.rng.choice((0.0, 0.01, 0.1, 0.5))
            drawn.append(Moment(seconds, group, path, delay))
        return sorted(drawn)

    def at(self, process: Process, moment: "Moment") -> None:
        """Returns at a moment, or when the process has ended."""
        watch, path = Watch(), self.folder / moment.path
        delay, there = moment.delay, path.exists()
        if there:
            # An earlier start came as far: some time after this one.
            delay = self.rng.uniform(0, self.straight.seconds / 2)
        looked = 0
        while not there and not path.exists():
            # The process is asked less often than the disk, which answers sooner.
            if looked % 10 == 0 and process.poll() is not None:
                return
            if watch.seconds > self.straight.patience:
                return
            looked += 1
            time.sleep(0.002)
        time.sleep(delay)

    def note(self, fault: str, moment: "Moment") -> None:
        """Writes down a fault that was done at a moment."""
        self.did.append(f"{fault}: {moment.phase}, {moment.path}")

    def copy(self, folder: pathlib.Path) -> None:
        """What another run has left is there."""
        for name in ("run", "cache"):
            shutil.copytree(folder / name, self.folder / name)


class Moment(NamedTuple):
    """Some time after a path has appeared."""

    seconds: float  # at which it appears in the straight run
    phase: str
    path: str
    delay: float


def groups(straight: Straight) -> list[str]:
    """The phases that a system has."""
    names = [path for _, path in straight.appeared]
    return [g for g, form in GROUPS.items() if any(re.match(form, n) for n in names)]


def begin(
    server: Server, system: str, folder: pathlib.Path, number: int
) -> list[Process]:
    """Begins or goes on with a run in so many processes."""
    if number == 1:
        return [server.start(system, folder / "run", folder / "cache")]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(number)}
    return [
        server.start(
            system,
            folder / "run",
            folder / "cache",
            environment={**shared, "JAX_PROCESS_ID": str(at)},
            said=f"said_{at}.txt",
        )
        for at in range(number)
    ]


def straight(
    server: Server, system: str, folder: pathlib.Path, number: int = 1
) -> Straight:
    """The uninterrupted run of a system in so many processes, made once and kept."""
    kept = folder / "straight.json"
    if not kept.exists():
        shutil.rmtree(folder, ignore_errors=True)
        # The first run compiles; the second shows how long one takes, and that two
        # runs leave the same.
        lefts = []
        for name in ("warm", "whole"):
            there = folder / name
            there.mkdir(parents=True)
            watch, appeared = Watch(), {}
            processes = begin(server, system, there, number)
            while any([process.poll() is None for process in processes]):
                now = watch.seconds
                for path in _paths(there):
                    appeared.setdefault(path, now)
                if now > LONGEST:
                    break
                time.sleep(0.01)
            for said in [process.wait(0) for process in processes]:
                if said.status != 0:
                    raise RuntimeError(f"{system} does not run: {said.said[-3000:]}")
            lefts.append(ended.of(there / "run"))
        if other := ended.differences(*lefts):
            raise RuntimeError(f"two runs of {system} differ in {other}")
        seconds = watch.seconds
        shutil.rmtree(folder / "warm")
        if number == 1:
            _make_half(server, system, folder / "half", list(appeared))
        whole = {
            "left": lefts[1],
            "seconds": seconds,
            "appeared": [(t, p) for p, t in appeared.items()],
        }
        kept.write_text(json.dumps(whole))
    read = json.loads(kept.read_text())
    appeared = [(t, p) for t, p in read["appeared"]]
    whole, half = folder / "whole", folder / "half"
    return Straight(whole, half, read["left"], read["seconds"], appeared)


def _make_half(
    server: Server, system: str, folder: pathlib.Path, paths: Sequence[str]
) -> None:
    """A run that is killed once it has saved half of its checkpoints."""
    saved = [x for x in paths if re.search(r"checkpoints/\d+$", x)]
    folder.mkdir()
    (process,) = begin(server, system, folder, 1)
    while not (folder / saved[(len(saved) - 1) // 2]).exists():
        if process.poll() is not None:
            raise RuntimeError(f"{system} does not run: {process.wait(0).said[-3000:]}")
        time.sleep(0.002)
    process.send(signal.SIGKILL)
    process.wait(10)


def _paths(folder: pathlib.Path) -> Iterator[str]:
    """Paths in a folder, without Orbax's own, whose names are drawn by chance."""
    stack = [folder]
    while stack:
        try:
            inside = list(stack.pop().iterdir())
        except OSError:
            continue
        for path in inside:
            name = str(path.relative_to(folder))
            if ".incomplete" in f".{path.name}":  # of TensorFlow Datasets, likewise
                continue
            yield name
            if "checkpoints/" not in name and path.is_dir():
                stack.append(path)


def _last_line(process: Ended) -> str:
    lines: Sequence[str] = process.said.strip().splitlines() or [""]
    return f"status {process.status}, {lines[-1][:200]}"
