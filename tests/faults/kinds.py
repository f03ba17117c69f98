"""The kinds of faults: each is a function of a try, and tells what was lost.

An answer is empty, where nothing was, or begins with what went wrong: ``hang``,
``traceback``, ``silent`` (a fault unnoticed, with other figures), or else is lost.
"""

import contextlib
import os
import pathlib
import random
import re
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator

from tests.faults import ended
from tests.faults.names import BELOW
from tests.faults.server import Ended
from tests.faults.tries import Try, begin

ABORTED = (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, 127)
"""How XLA ends the process that gets no memory for its threads, with its own words."""

KILLS = 4
"""Moments at which each try of `kill` kills a run that goes on in between."""

ATTEMPTS = 3
"""How often a moment is waited for; a run may end before its last ones are noticed."""


def kill(trial: Try) -> str:
    """Killed four times at moments of its phases drawn by chance, and goes on."""
    for at, moment in enumerate(trial.moments(KILLS)):
        for _ in range(ATTEMPTS):
            process = trial.begin()
            trial.at(process, moment)
            process.send(signal.SIGKILL)
            last = process.wait(10)
            if last.status == -signal.SIGKILL:
                trial.note("kill -9", moment)
                break
            if last.status != 0:
                return ended.complaint(last) or f"kill {at}: ended with {last.status}"
            # It was done before: once more, from the start, and sooner.
            if other := trial.compare():
                return other
            trial.clear()
            moment = moment._replace(delay=0.0)
    return trial.finish()


def terminate(trial: Try) -> str:
    """Told to stop at such a moment: it saves, or leaves nothing half, within 60 s."""
    process = trial.begin()
    (moment,) = trial.moments(1)
    trial.at(process, moment)
    if process.send(signal.SIGTERM):
        trial.note("SIGTERM", moment)
    last = process.wait(60)
    if last.status not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
        return ended.complaint(last) or f"status {last.status}"
    if "Traceback" in last.said:
        return ended.complaint(last)
    return trial.finish()


def damage(trial: Try) -> str:
    """A file of a run that was killed in the middle is flipped, cut short or deleted.

    The run then goes on to the same end, or fails with one sentence.
    """
    trial.copy(trial.straight.half)
    return _goes_on(trial, _spoil(trial))


def judged(trial: Try) -> str:
    """The same of a finished run, of which nothing but the report is made again."""
    trial.copy(trial.straight.folder)
    told = _spoil(trial)
    if "report.json" not in told:
        (trial.workdir / "report.json").unlink()
    return _goes_on(trial, told)


def _goes_on(trial: Try, told: str) -> str:
    """After damage, of which is told."""
    last = trial.run()
    if wrong := ended.complaint(last):
        return f"{wrong} ({told})"
    other = trial.compare(last.said) if last.status == 0 else ""
    return f"silent: {other} ({told})" if other else ""


def damageable(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """The files of a run and its cache, by kind of file."""
    kinds: dict[str, list[pathlib.Path]] = {}
    for path in sorted(
        x for name in ("run", "cache") for x in folder.glob(f"{name}/**/*")
    ):
        if path.is_file() and path.stat().st_size and not _only_shown(path):
            name = str(path.relative_to(folder))
            kind = re.sub(r"[0-9a-f]{8,}|\d+", "#", name)
            kind = re.sub(r"(checkpoints/#/(params|rest))/.*", r"\1", kind)
            kind = re.sub(r"\b(train|validation|test)\b", "SPLIT", kind)
            kinds.setdefault(kind, []).append(path)
    return kinds


def own_kinds(kinds: Iterable[str]) -> set[str]:
    """Those of which a plain language model has none."""
    common = r"cache/(corpora|tokens)/|run/(checkpoints|decoder)/|run/[a-z]+\.jsonl?$"
    return {kind for kind in kinds if not re.match(common, kind)}


def _spoil(trial: Try) -> str:
    """Damages a file: each try one of another kind of file; which, and how."""
    kinds = damageable(trial.folder)
    # Of all tries on a system in one order, drawn by chance, its own kinds first.
    names, own = sorted(kinds), own_kinds(kinds)
    random.Random(trial.system).shuffle(names)
    names.sort(key=lambda name: name not in own)
    path = trial.rng.choice(kinds[names[trial.number % len(names)]])
    data = bytearray(path.read_bytes())
    how = trial.rng.choice(("flipped", "cut short", "deleted"))
    if how == "deleted":
        path.unlink()
    elif how == "flipped":
        at = trial.rng.randrange(len(data))
        data[at] ^= 1 << trial.rng.randrange(8)
        path.write_bytes(data)
        how = f"flipped at {at}"
    else:
        length = trial.rng.randrange(len(data))
        path.write_bytes(data[:length])
        how = f"cut to {length} of {len(data)}"
    told = f"{path.relative_to(trial.folder)} {how}"
    trial.did.append(told)
    return told


def _only_shown(path: pathlib.Path) -> bool:
    """Files that nothing reads again: pictures, pages, logs and locks."""
    return path.suffix in (".png", ".html", ".log", ".lock") or path.name in (
        *(".lock", "said.txt", ".worker"),
    )


def full(trial: Try) -> str:
    """The disk fills up, or a file may grow no further; then there is room again."""
    needed = sum(
        x.stat().st_size for x in trial.straight.folder.rglob("*") if x.is_file()
    )
    if trial.rng.random() < 0.5 and _may_mount(trial.folder):
        size = trial.rng.randrange(1 << 16, max(needed, 1 << 17))
        with _mounted(trial.folder, f"size={size}") as remount:
            trial.did.append(f"a disk of {size} bytes")
            last = trial.run(said="../said.txt")
            if wrong := _refused_or_whole(trial, last):
                return wrong
            remount("size=1g")
            return trial.finish()
    largest = max(
        x.stat().st_size for x in trial.straight.folder.rglob("*") if x.is_file()
    )
    return _limited(trial, FSIZE=trial.rng.randrange(1 << 10, largest))


def handles(trial: Try) -> str:
    """Few files may be open at once."""
    return _limited(trial, NOFILE=trial.rng.randrange(8, 96))


def memory(trial: Try) -> str:
    """Little more memory may be mapped than what importing the package took."""
    return _limited(trial, AS=trial.rng.randrange(1 << 24, 1 << 31))


def _limited(trial: Try, **limits: int) -> str:
    ((name, value),) = limits.items()
    trial.did.append(f"RLIMIT_{name} {value}")
    last = trial.run(limits=limits)
    if name == "AS" and last.status in ABORTED and "Traceback" not in last.said:
        trial.did[-1] += f": {BELOW}"
    elif wrong := _refused_or_whole(trial, last):
        return f"{wrong} ({limits})"
    return trial.finish()


def _refused_or_whole(trial: Try, last: Ended) -> str:
    """A run under a fault ends with one sentence, or as the straight one."""
    return ended.complaint(last) or (trial.compare() if last.status == 0 else "")


def read_only(trial: Try) -> str:
    """The workdir and the cache can be read alone, from a moment on; then written."""
    process = trial.begin()
    (moment,) = trial.moments(1)
    trial.at(process, moment)
    process.send(signal.SIGKILL)
    process.wait(10)
    trial.workdir.mkdir(exist_ok=True)
    trial.cache.mkdir(exist_ok=True)
    trial.note("read only", moment)
    with _read_only(trial):
        # Its words go elsewhere, for the folder cannot be written.
        last = trial.run(said=f"../said-{trial.folder.name}.txt")
    if wrong := _refused_or_whole(trial, last):
        return wrong
    return trial.finish()


def processes(trial: Try) -> str:
    """One of two processes is killed: the other ends, and both go on together."""
    begun = begin(trial.server, trial.system, trial.folder, 2)
    (moment,) = trial.moments(1)
    trial.at(begun[0], moment)
    victim = trial.rng.randrange(2)
    killed = begun[victim].send(signal.SIGKILL)
    if killed:
        trial.note(f"kill -9 of process {victim}", moment)
    other = begun[1 - victim].wait(60 if killed else trial.straight.patience)
    begun[victim].wait(60)
    # What the first does alone, once they have parted, ends well.
    if other.status != 0 and (wrong := ended.complaint(other)):
        return wrong
    begun = begin(trial.server, trial.system, trial.folder, 2)
    for last in [x.wait(trial.straight.patience) for x in begun]:
        if last.status != 0:
            return f"does not go on: {ended.complaint(last) or last.said[-200:]}"
    return trial.compare()


@contextlib.contextmanager
def _mounted(folder: pathlib.Path, options: str) -> Iterator[Callable[[str], None]]:
    """A file system in memory at a folder, and how to change its options."""

    def mount(*arguments: str) -> None:
        subprocess.run(["mount", *arguments, folder], check=True, capture_output=True)

    mount("-t", "tmpfs", "-o", options, "tmpfs")
    try:
        yield lambda options: mount("-o", f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _may_mount(folder: pathlib.Path) -> bool:
    try:
        with _mounted(folder, "size=64k"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextlib.contextmanager
def _read_only(trial: Try) -> Iterator[None]:
    """By a mount for the superuser, whom modes do not stop; by modes for others."""
    folders = trial.workdir, trial.cache
    if os.geteuid() == 0 and _may_mount(trial.folder / "run"):
        for folder in folders:
            subprocess.run(["mount", "--bind", folder, folder], check=True)
            subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        try:
            yield
        finally:
            for folder in folders:
                subprocess.run(["umount", "-l", folder], check=True)
        return
    paths = [x for folder in folders for x in (folder, *folder.rglob("*"))]
    modes = [path.stat().st_mode for path in paths]
    for path, mode in zip(paths, modes, strict=True):
        path.chmod(mode & ~0o222)
    try:
        yield
    finally:
        for path, mode in zip(paths, modes, strict=True):
            path.chmod(mode)


FAULTS: dict[str, Callable[[Try], str]] = {
    "kill": kill,
    "terminate": terminate,
    "damage": damage,
    "judged": judged,
    "full": full,
    "read_only": read_only,
    "handles": handles,
    "memory": memory,
    "processes": processes,
}
