"""The training loop: resume, step, log, evaluate, save."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import jax
import optax

from rlm_jax import processes, terminal
from rlm_jax.errors import UserError
from rlm_jax.method import Batch, Method, Params
from rlm_jax.train import beside, metrics, parallel, progress
from rlm_jax.train import step as step_lib
from rlm_jax.train.checkpoint import Checkpoints
from rlm_jax.train.optim import Schedule
from rlm_jax.train.step import State

T = TypeVar("T")

BatchAt = Callable[[int], Batch]
"""Number of steps done -> this process's rows of the next step's batch."""

Enter = Callable[[Params, int], BatchAt]
"""(parameters, steps done) -> where batches come from until the next boundary."""


@dataclasses.dataclass
class TrainConfig:
    """How long to train and how often to look; 0 as an interval means only at the end.

    ``keep`` is the number of checkpoints that stay, ``accumulate`` the number of
    micro-batches of a step (`step.train_step`).

    ``transfer_guard`` is what JAX does where a step copies between host and device
    unasked: allow, log or disallow. ``profile_steps`` is how many steps JAX's profiler
    records into ``profile/`` of the workdir, from the third of the call on.
    """

    steps: int = 1000  # of the optimiser
    log_every: int = 20  # steps
    eval_every: int = 0  # steps; 0: at the end alone
    checkpoint_every: int = 500  # steps; 0: at the end alone
    keep: int = 2
    seed: int = 0  # of parameters, batches and dropout
    accumulate: int = 1
    tensorboard: bool = False  # write its events too
    transfer_guard: Literal["allow", "log", "disallow"] = "allow"
    profile_steps: int = 0


def train(
    method: Method,
    optimizer: optax.GradientTransformation,
    batch_at: BatchAt | None,
    *,
    config: TrainConfig,
    workdir: str | pathlib.Path,
    schedule: Schedule | Mapping[str, Schedule] | None = None,
    initial_params: Params | None = None,
    evaluate: Callable[[Params, int], Mapping[str, float]] | None = None,
    boundaries: Mapping[int, Enter] = {},
) -> State:
    """Trains to ``config.steps`` steps, resuming from the workdir's last checkpoint.

    Each step s (from 0) takes the batch made one step earlier, asks a background thread
    for batch s + 1, starts step s, and only then waits for the metrics of step s - 1.
    At the end of an interval it waits for its own, and then logs, evaluates and saves,
    in this order and before the next batch is taken: a checkpoint of step s holds no
    trace of batch s, every line of ``metrics.jsonl`` up to s is written before it, and
    no state is saved whose metrics are not finite. A run of 0 steps saves what it
    starts from.

    Where step s is a boundary, step s - 1 is waited for and ``boundaries[s]`` called
    before batch s is made; the compiled step goes on.

    Args:
      method: Its ``init`` (unless ``initial_params``), ``loss`` and ``moving`` are
        used.
      optimizer: An optax transformation.
      batch_at: Number of steps done -> this process's rows as NumPy arrays; a pure
        function, so that resuming needs the number alone. Called from one background
        thread. None where there is a boundary at step 0.
      config: See `TrainConfig`.
      workdir: Gets ``checkpoints/``, ``metrics.jsonl`` and ``tensorboard/``.
      schedule: The learning rate, or that of each part by name, only to be logged.
      initial_params: Start from these in place of ``method.init``, if there is no
        checkpoint.
      evaluate: (parameters, steps done) -> figures; after ``eval_every`` steps and at
        the end. It must not keep the parameters: the next step overwrites them.
      boundaries: Step -> (parameters, steps done) -> the ``batch_at`` from there on. A
        run that resumes between two boundaries enters the earlier one, with the
        parameters it has: the number of steps done tells. It must not keep them.

    Returns:
      The state after the last step, replicated over this process's devices.

    Raises:
      UserError: If a metric is not finite, a checkpoint cannot be written or read,
        a file is gone that it was made with, the workdir is past ``config.steps``, or
        ``initial_params`` do not fit.
      SystemExit: With status 143 after SIGTERM and 130 after Ctrl-C; the state is
        saved.
    """
    workdir = pathlib.Path(workdir)
    _check(config)
    beside.require(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.keep)
    state, start = _start(method, optimizer, checkpoints, config, initial_params)
    # A run that resumes between two boundaries enters the earlier one.
    enters = {max(at, start): boundaries[at] for at in sorted(boundaries)}
    if batch_at is None and start < config.steps and start not in enters:
        raise ValueError("without batch_at there is a boundary at step 0")
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
                workdir,
                start=start,
                tensorboard=config.tensorboard,
                written=beside.logged_by(checkpoints.directory / str(start)),
            )
            stack.callback(writer.close)
        bar = progress.Bar(start=start, steps=config.steps, show=first)
        stack.callback(bar.close)
        log = _Log(writer, bar, schedule)
        told_to_stop = stack.enter_context(_signals())
        batches = concurrent.futures.ThreadPoolExecutor(1, "batches")
        stack.callback(batches.shutdown, wait=True, cancel_futures=True)
        profiler = stack.enter_context(_profiler(config, workdir, start))

        if config.steps == 0:
            checkpoints.save(0, state)
        coming = None
        for done in range(start, config.steps):
            if done in enters:
                batch_at = log.paused(enters[done], state.params, done)
            assert batch_at is not None
            coming = coming or batches.submit(batch_at, done)
            batch, coming = coming.result(), None
            if done + 1 < config.steps and done + 1 not in enters:
                coming = batches.submit(batch_at, done + 1)
            profiler(done, state)
            with jax.transfer_guard(config.transfer_guard):
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
                checkpoints.save(done + 1, state, writer.written if writer else {})
            if stopping and not last:
                checkpoints.wait()
                if first:
                    by = "Ctrl-C" if stopping == signal.SIGINT else "SIGTERM"
                    terminal.say(f"stopped by {by}; step {done + 1} is saved")
                raise SystemExit(128 + stopping)
        checkpoints.wait()
    return state


def _check(config: TrainConfig) -> None:
    names = ("steps", "log_every", "eval_every", "checkpoint_every", "profile_steps")
    for name in names:
        if getattr(config, name) < 0:
            raise UserError(f"{name} cannot be negative; choose 0 or more.")
    if config.accumulate < 1:
        raise UserError(
            f"accumulate={config.accumulate} leaves no micro-batch; choose 1 or more."
        )

    if config.transfer_guard not in ("allow", "log", "disallow"):
        raise UserError(
            f"transfer_guard is {config.transfer_guard!r}; choose allow, log or "
            "disallow."
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
        self._writer, self._bar = writer, bar
        rates = schedule if isinstance(schedule, Mapping) else {"": schedule}
        self._rates = {name: rate for name, rate in rates.items() if rate is not None}
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
        for part, rate in self._rates.items():
            # Of the step just done: schedules count the steps before it.
            name = f"learning_rate/{part}" if part else "learning_rate"
            figures[name] = float(rate(self._step - 1))
        shown = {"loss": "loss", "tokens/s": "targets_per_second"}
        self._bar.show({k: figures[v] for k, v in shown.items() if v in figures})
        if self._writer is not None:
            self._writer.write(self._step, figures, split="train")

    def paused(self, work: Callable[..., T], *arguments: Any) -> T:
        """What ``work`` gives; its time does not count as training."""
        self.collect()
        began = time.perf_counter()
        result = work(*arguments)
        self._rate.skip(time.perf_counter() - began)
        return result

    def evaluate(self, evaluate, params: Params, step: int) -> None:
        """Evaluates and writes the figures."""
        figures = self.paused(evaluate, params, step)
        if self._writer is not None:
            self._writer.write(step, figures, split="validation")
            told = (f"validation {name} {x:,.4g}" for name, x in figures.items())
            terminal.say(f"step {step}: {', '.join(told)}")


@contextlib.contextmanager
def _profiler(
    config: TrainConfig, workdir: pathlib.Path, start: int
) -> Iterator[Callable[[int, State], None]]:
    """Gives a function that, before a step, begins or ends the profiler's record."""
    # The first step compiles, and the second may wait for it.
    first, running = start + 2, False
    wanted = config.profile_steps if processes.is_first() else 0

    def before(done: int, state: State) -> None:
        nonlocal running
        if running and done == first + wanted:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            running = False
        elif wanted and done == first:
            jax.profiler.start_trace(workdir / "profile")
            running = True

    try:
        yield before
    finally:
        if running:
            jax.profiler.stop_trace()


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[int], int]]:
    """Gives a function that says, after each step, which signal to stop has come.

    0: none; else SIGTERM, or SIGINT, which is Ctrl-C. A second Ctrl-C stops at once.

    Several processes must stop at the same step, which JAX's runtime arranges: it
    catches SIGTERM itself. Outside the main thread Python lets nobody catch any.
    """
    if jax.process_count() > 1:
        yield lambda step: signal.SIGTERM * bool(parallel.preemption_reached(step))
        return
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: 0
        return

    def told(number: int, frame: Any) -> None:
        if number == signal.SIGINT and came:
            raise KeyboardInterrupt
        came.append(number)

    caught = signal.SIGTERM, signal.SIGINT
    before = [signal.signal(number, told) for number in caught]
    try:
        yield lambda step: came[0] if came else 0
    finally:
        for number, handler in zip(caught, before, strict=True):
            signal.signal(number, handler)
