"""A process beside the trainer that encodes snapshots: the trainer's end of it.

`rlm_jax.retrievers.encode_snapshot` is the other end. A process of its own can be given
cores or a device of its own, and shares no thread pool with the training.
"""

import dataclasses
import os
import pathlib
import subprocess
import sys
import time

from rlm_jax import characters, terminal
from rlm_jax.errors import UserError

_PACKAGE = pathlib.Path(__file__).resolve().parents[2]  # the folder around rlm_jax

_LOOK = 0.2  # seconds between two looks for an index

# Of the trainer's processes, which the worker is none of.
_NOT_INHERITED = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@dataclasses.dataclass
class WorkerConfig:
    """Where the worker runs; no result depends on it but by rounding."""

    cores: tuple[int, ...] = ()  # of the CPU; none: any
    # NAME=VALUE, such as CUDA_VISIBLE_DEVICES=1 or JAX_PLATFORMS=cpu
    environment: tuple[str, ...] = ()


class Worker:
    """At most one process, which encodes one snapshot."""

    def __init__(self, config: WorkerConfig):
        """Nothing is started yet.

        Raises:
          UserError: a variable without a value.
        """
        for variable in config.environment:
            if "=" not in variable:
                raise UserError(
                    f"worker.environment has {variable!r}; give NAME=VALUE."
                )
        self.config = config
        self._process: subprocess.Popen | None = None
        self._partial: pathlib.Path | None = None

    def start(self, partial: pathlib.Path) -> None:
        """Begins with a snapshot, unless it has; another one is left as it is."""
        if self._process is not None and self._partial == partial:
            return
        self.close()
        paths = [str(_PACKAGE), os.environ.get("PYTHONPATH", "")]
        environment = {
            **{k: x for k, x in os.environ.items() if k not in _NOT_INHERITED},
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            **dict(x.split("=", 1) for x in self.config.environment),
        }
        with self._log(partial).open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rlm_jax.retrievers.encode_snapshot", partial],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
            )
        self._partial = partial

    def wait(self) -> None:
        """Returns when the index is whole.

        Raises:
          UserError: it failed, and why.
        """
        if self._process is None or self._partial is None:
            return
        status = self._process.wait()
        log, name = self._log(self._partial), self._partial.stem
        self.close()
        if status:
            said = characters.lines(log.read_bytes().decode("utf-8", "replace").strip())
            why = said[-1].removeprefix("error: ") if said else "it said nothing"
            if status < 0:
                why = f"it was ended by signal {-status}"
            raise UserError(
                f"The worker failed to encode {name} "
                f"({why.rstrip('.')}); {log} has all that it said; start the run "
                "again, which goes on from what is encoded."
            )

    def close(self) -> None:
        """Ends the process, if there is one; what it has encoded stays."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process = self._partial = None

    @staticmethod
    def _log(partial: pathlib.Path) -> pathlib.Path:
        return partial.with_name("worker.log")


class Elsewhere:
    """A process that somebody else starts, perhaps on another machine.

    ``python -m experiments.watch`` is one: it finds the snapshot, and the index has its
    name when it is whole.
    """

    def __init__(self, config: WorkerConfig):
        """Nothing is waited for yet; ``cores`` are told to that process."""
        self.config = config
        self._partial: pathlib.Path | None = None

    def start(self, partial: pathlib.Path) -> None:
        """Leaves a snapshot to be found."""
        self._partial = partial

    def wait(self) -> None:
        """Returns when its index is whole."""
        if self._partial is None:
            return
        folder, told = self._partial.parent, False
        while not self._partial.with_suffix("").exists():
            if not told:
                terminal.say(
                    f"waiting for {self._partial.stem}, which another process makes; "
                    f"start one by python -m experiments.watch --workdir {folder}"
                )
            told = True
            time.sleep(_LOOK)

    def close(self) -> None:
        """The other process goes on; it is not ours."""
        self._partial = None
