"""The training loop: resume, step, log, evaluate, save."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import optax

from rlm_jax import processes, terminal
from rlm_jax.errors import UserError
from rlm_jax.method import Batch, Method, Params
from rlm_jax.train import metrics, parallel, progress
from rlm_jax.train import step as step_lib
from rlm_jax.train.checkpoint import Checkpoints
from rlm_jax.train.optim import Schedule
from rlm_jax.train.step import State


@dataclasses.dataclass
class TrainConfig:
    """How long to train and how often to look; 0 as an interval means only at the end.

    ``keep`` is the number of checkpoints that stay, ``accumulate`` the number of
    micro-batches of a step (`step.train_step`).
    """

    steps: int = 1000
    log_every: int = 20
    eval_every: int = 0
    checkpoint_every: int = 500
    keep: int = 2
    seed: int = 0
    accumulate: int = 1
    tensorboard: bool = False


def train(
    method: Method,
    optimizer: optax.GradientTransformation,
    batch_at: Callable[[int], Batch],
    *,
    config: TrainConfig,
    workdir: str | pathlib.Path,
    schedule: Schedule | None = None,
    initial_params: Params | None = None,
    evaluate: Callable[[Params, int], Mapping[str, float]] | None = None,
    hooks: Sequence[Callable[[Params, int], None]] = (),
) -> State:
    """Trains to ``config.steps`` steps, resuming from the workdir's last checkpoint.

    Each step s (from 0) takes the batch made one step earlier, calls the hooks, asks a
    background thread for batch s + 1, starts step s, and only then waits for the
    metrics of step s - 1. At the end of an interval it waits for its own, and then
    logs, evaluates and saves, in this order and before the next batch is taken: a
    checkpoint of step s holds no trace of batch s, every line of ``metrics.jsonl`` up
    to s is written before it, and no state is saved whose metrics are not finite.

    Args:
      method: Its ``init`` (unless ``initial_params``), ``loss`` and ``moving`` are
        used.
      optimizer: An optax transformation.
      batch_at: Number of steps done -> this process's rows as NumPy arrays; a pure
        function, so that resuming needs the number alone. Called from one background
        thread, never while a hook runs.
      config: See `TrainConfig`.
      workdir: Gets ``checkpoints/``, ``metrics.jsonl`` and ``tensorboard/``.
      schedule: The learning rate, only to be logged.
      initial_params: Start from these in place of ``method.init``, if there is no
        checkpoint.
      evaluate: (parameters, steps done) -> figures; after ``eval_every`` steps and at
        the end. It must not keep the parameters: the next step overwrites them.
      hooks: Called as hook(parameters, steps done) before each step.

    Returns:
      The state after the last step, replicated over this process's devices.

    Raises:
      UserError: If a metric is not finite, a checkpoint cannot be written or read,
        the workdir is past ``config.steps``, or ``initial_params`` do not fit.
      SystemExit: With status 143 after SIGTERM; the state is saved.
    """
    workdir = pathlib.Path(workdir)
    _check(config)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.keep)
    state, start = _start(method, optimizer, checkpoints, config, initial_params)
    first = processes.is_first()
    if first:
        if start:
            terminal.say(f"resuming after {start} of {config.steps} steps")
        else:
            terminal.say(progress.parameter_table(state.params))
    run = parallel.parallelise(
        functools.partial(
            step_lib.train_step,
            method=method,
            optimizer=optimizer,
            seed=config.seed,
            accumulate=config.accumulate,
        ),
        accumulate=config.accumulate,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(checkpoints.close)
        writer = None
        if first:
            writer = metrics.Writer(
                workdir, start=start, tensorboard=config.tensorboard
            )
            stack.callback(writer.close)
        bar = progress.Bar(start=start, steps=config.steps, show=first)
        stack.callback(bar.close)
        log = _Log(writer, bar, schedule)
        told_to_stop = stack.enter_context(_sigterm())
        batches = concurrent.futures.ThreadPoolExecutor(1, "batches")
        stack.callback(batches.shutdown, wait=True, cancel_futures=True)

        if start < config.steps:
            coming = batches.submit(batch_at, start)
        for done in range(start, config.steps):
            batch = coming.result()  # pyright: ignore[reportPossiblyUnboundVariable]
            for hook in hooks:
                hook(state.params, done)
            if done + 1 < config.steps:
                coming = batches.submit(batch_at, done + 1)
            state, sums = run(state, batch)
            log.collect()
            log.pend(done + 1, sums)

            stopping = told_to_stop(done + 1)
            last = done + 1 == config.steps
            if last or _due(config.log_every, done + 1):
                log.write()
            if evaluate is not None and (last or _due(config.eval_every, done + 1)):
                log.evaluate(evaluate, state.params, done + 1)
            if last or stopping or _due(config.checkpoint_every, done + 1):
                log.collect()
                checkpoints.save(done + 1, state)
            if stopping and not last:
                checkpoints.wait()
                if first:
                    terminal.say(f"stopped by SIGTERM; step {done + 1} is saved")
                raise SystemExit(128 + signal.SIGTERM)
    return state


def _check(config: TrainConfig) -> None:
    for name in ("steps", "log_every", "eval_every", "checkpoint_every"):
        if getattr(config, name) < 0:
            raise UserError(f"{name} cannot be negative; choose 0 or more.")
    if config.accumulate < 1:
        raise UserError(
            f"accumulate={config.accumulate} leaves no micro-batch; choose 1 or more."
        )


def _start(
    method: Method,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
    config: TrainConfig,
    initial_params: Params | None,
) -> tuple[State, int]:
    """The state to go on from, on the devices, and the number of its steps."""

    if initial_params is not None:
        _check_params(initial_params, jax.eval_shape(method.init, jax.random.key(0)))

    def initial(params):
        if params is None:
            params = method.init(jax.random.key(config.seed))
        return step_lib.init(params, optimizer, moving=method.moving, seed=config.seed)

    start = checkpoints.latest()
    if start is None:
        return parallel.replicate(jax.jit(initial)(initial_params)), 0
    if start > config.steps:
        raise UserError(
            f"{checkpoints.directory} already holds step {start}, beyond the "
            f"{config.steps} steps asked for; raise steps or choose another workdir."
        )
    abstract = jax.eval_shape(initial, initial_params)
    return parallel.replicate(checkpoints.restore(abstract)), start


def _check_params(given: Params, wanted: Params) -> None:
    shapes = [
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
            for path, x in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (given, wanted)
    ]
    for path in sorted(shapes[0].keys() | shapes[1].keys()):
        found, needed = (s.get(path, "absent") for s in shapes)
        if found != needed:
            raise UserError(
                f"The parameters to start from do not fit this model: {path!r} is "
                f"{found} there and {needed} here; start from a run with the same "
                "model configuration."
            )


def _due(every: int, done: int) -> bool:
    return every > 0 and done % every == 0


class _Log:
    """Fetches metrics one step behind, adds them up and writes them out.

    Fetching waits for the device. One step behind, the device has its next step to work
    on meanwhile, and there are never two steps under way beyond that.
    """

    def __init__(self, writer, bar, schedule):
        self._writer, self._bar, self._schedule = writer, bar, schedule
        self._pending: tuple[int, Any] | None = None
        self._sums: metrics.HostSums = {}
        self._step = 0
        self._compiled = False
        self._rate = progress.Rate()

    def pend(self, step: int, sums) -> None:
        """Keeps the sums of a step that may still be running."""
        self._pending = (step, sums)

    def collect(self) -> None:
        """Waits for the pending sums, if any, and adds them to the interval's."""
        if self._pending is None:
            return
        self._step, sums = self._pending[0], metrics.to_host(self._pending[1])
        self._pending = None
        metrics.check_finite(sums, self._step)
        self._sums = metrics.add(self._sums, sums)
        if self._compiled:
            self._rate.add(sums["loss"][1])
        else:
            # The first step compiles: neither its time nor its targets tell the speed.
            self._rate.read()
            self._compiled = True
        self._bar.update()

    def write(self) -> None:
        """The means over the interval that ends here."""
        self.collect()
        figures = metrics.means(self._sums)
        self._sums = {}
        figures["targets_per_second"] = self._rate.read()
        if self._schedule is not None:
            # Of the step just done: schedules count the steps before it.
            figures["learning_rate"] = float(self._schedule(self._step - 1))
        shown = {"loss": "loss", "tokens/s": "targets_per_second"}
        self._bar.show({k: figures[v] for k, v in shown.items() if v in figures})
        if self._writer is not None:
            self._writer.write(self._step, figures, split="train")

    def evaluate(self, evaluate, params: Params, step: int) -> None:
        """Evaluates and writes the figures; its time does not count as training."""
        self.collect()
        began = time.perf_counter()
        figures = evaluate(params, step)
        self._rate.skip(time.perf_counter() - began)
        if self._writer is not None:
            self._writer.write(step, figures, split="validation")
            text = ", ".join(f"{name} {value:,.4g}" for name, value in figures.items())
            terminal.say(f"step {step}: {text}")


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[int], bool]]:
    """Gives a function that says, after each step, whether SIGTERM has come.

    Several processes must stop at the same step, which JAX's runtime arranges: it
    catches the signal itself. Outside the main thread Python lets nobody catch it.
    """
    if jax.process_count() > 1:
        yield parallel.preemption_reached
        return
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: came.is_set()
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.set())
    try:
        yield lambda step: came.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
