"""Runs of systems in processes that begin with everything imported.

``python -m tests.faults.server DATA`` imports the package and then forks a process for
each line of JSON on its standard input, before JAX has started a thread. A fork ends as
a program does, so that what hangs there hangs here. `Server` is the other end.
"""

import contextlib
import ctypes
import gc
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Ended(NamedTuple):
    """How a process ended: its status, negative for a signal, and what it said.

    ``status`` is None where it had to be killed, since it did not end.
    """

    status: int | None
    said: str


class Watch:
    """Seconds since it was made, without those in which this program was stopped.

    A campaign may be stopped and continued with all its runs, none of which hangs then.
    """

    def __init__(self):
        self._passed, self._before = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Right if it is asked every second."""
        now = time.monotonic()
        self._passed += min(now - self._before, 1.0)
        self._before = now
        return self._passed


class Process:
    """A run in a process of its own."""

    def __init__(self, server: "Server", pid: int, said: pathlib.Path):
        self._server, self.pid, self._said = server, pid, said
        self.status: int | None = None

    def poll(self) -> int | None:
        """The status, or None while it runs."""
        if self.status is None:
            answer = self._server.ask({"poll": self.pid})
            self.status = answer["status"]
            self._server.processor += answer["processor"]
        return self.status

    def send(self, number: int) -> bool:
        """Sends a signal; whether the process was still running."""
        if self.poll() is not None:
            return False
        os.kill(self.pid, number)
        return True

    def wait(self, seconds: float) -> Ended:
        """How it ended; after so many seconds it is killed."""
        watch = Watch()
        while self.poll() is None and watch.seconds < seconds:
            time.sleep(0.02)
        status = self.status
        if status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            while self.poll() is None:
                time.sleep(0.02)
        return Ended(status, self._said.read_bytes().decode("utf-8", "replace"))


class Server:
    """The process that forks, which ends with this object's ``with``."""

    def __init__(self, data: pathlib.Path, environment: Mapping[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server", str(data)],
            cwd=ROOT,
            env=os.environ | dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.processor = 0.0  # seconds of all runs that have ended

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What the server answers."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        system: str,
        workdir: pathlib.Path,
        cache: pathlib.Path,
        *,
        environment: Mapping[str, str] = {},
        limits: Mapping[str, int] = {},
        said: str = "said.txt",
    ) -> Process:
        """Begins or goes on with a run of a system.

        Args:
          environment: more variables.
          limits: name of a limit in `resource`, without RLIMIT_ -> its value.
          said: the file beside the workdir for what the process says.
        """
        out = workdir.parent / said
        pid = self.ask(
            {
                "system": system,
                "workdir": str(workdir),
                "said": str(out),
                "environment": {"RLM_CACHE": str(cache), **environment},
                "limits": dict(limits),
            }
        )["pid"]
        return Process(self, pid, out)


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    pid, status, used = os.wait4(request["poll"], os.WNOHANG)
    return {
        "status": os.waitstatus_to_exitcode(status) if pid else None,
        "processor": used.ru_utime + used.ru_stime if pid else 0.0,
    }


def _become(request: Mapping[str, Any]) -> None:
    """In the fork: its own files, variables and limits."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # with the server
    said = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for new, old in ((nothing, 0), (said, 1), (said, 2)):
        os.dup2(new, old)
    os.environ.update(request["environment"])
    for name, value in request["limits"].items():
        limit = getattr(resource, f"RLIMIT_{name}")
        if name == "AS":  # beyond what is mapped already
            pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
            value += pages * resource.getpagesize()
        resource.setrlimit(limit, (value, value))


def main(data: pathlib.Path) -> None:
    """Forks until the standard input ends."""
    import array_record  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import tensorflow_datasets  # noqa: F401

    from rlm_jax import processes
    from rlm_jax.failures import one_line
    from tests.faults import systems

    if not data.exists():
        partial = data.with_name(f"{data.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        systems.write_data(partial)
        partial.rename(data)
    # What all forks share is garbage in none of them: looking for it took a quarter of
    # the time of a run.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "poll" in request:
            print(json.dumps(_answer(request)), flush=True)
            continue
        pid = os.fork()
        if pid:
            print(json.dumps({"pid": pid}), flush=True)
            continue
        _become(request)
        with one_line():
            processes.initialise()
            system = systems.SYSTEMS[request["system"]]
            system.run(system.config(data), pathlib.Path(request["workdir"]))
        return


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
