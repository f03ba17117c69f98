"""Training as recipes run it: batches, an optimiser with its schedule, validation."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rlm_jax.method import Batch, Batches, Method, Params
from rlm_jax.train import loop, metrics, optim, parallel, step
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig

Validation = Callable[[Params, int], Mapping[str, float]]
"""(parameters, steps done) -> figures."""


def train(
    method: Method,
    batch_at: loop.BatchAt | None,
    optimiser: OptimConfig,
    config: TrainConfig,
    workdir: pathlib.Path,
    *,
    stop: int | None = None,
    initial_params: Params | None = None,
    validation: Validation | None = None,
    trainable: Callable[..., Any] | None = None,
    parts: Mapping[str, OptimConfig] = {},
    boundaries: Mapping[int, loop.Enter] = {},
) -> Params:
    """Train, resuming from the workdir; the parameters, on the host.

    Args:
      batch_at: steps done -> this process's rows; see `loop.train`.
      stop: the step to end with, before ``config.steps``, for which the schedule is
        laid out; a further call goes on from there.
      trainable, parts: as for `optim.optimizer`.
      boundaries: as for `loop.train`.
    """
    steps = config.steps if stop is None else stop
    state = loop.train(
        method,
        optim.optimizer(optimiser, config.steps, trainable=trainable, parts=parts),
        batch_at,
        config=dataclasses.replace(config, steps=steps),
        workdir=workdir,
        schedule=optim.schedules(optimiser, config.steps, parts),
        initial_params=initial_params,
        evaluate=validation,
        boundaries=boundaries,
    )
    return jax.device_get(state.params)


def from_batches(
    batches: Batches, batch_size: int, config: TrainConfig
) -> Callable[[int], Batch]:
    """Steps done -> this process's rows of the next batch."""
    rows = parallel.local_rows(batch_size, accumulate=config.accumulate)
    return lambda done: batches.batch_at(config.seed, done, rows=rows)


def validation_of(
    method: Method, batches: Batches, batch_size: int, count: int
) -> Validation:
    """The means of the method's own evaluation on the first ``count`` batches."""
    run = parallel.parallelise(
        functools.partial(step.eval_step, method=method), donate=False
    )
    judge = figures_of(run, batches, batch_size, count)
    return lambda params, _: judge(params)


def figures_of(
    run: Callable[..., Any], batches: Batches, batch_size: int, count: int = 1 << 30
) -> Callable[[Params], Mapping[str, float]]:
    """parameters -> the means of an evaluation over the first ``count`` batches.

    Args:
      run: a parallelised `step.eval_step`, compiled once for several such functions.
    """
    rows = parallel.local_rows(batch_size)

    def evaluate(params: Params) -> Mapping[str, float]:
        sums: metrics.HostSums = {}
        for i in range(min(count, batches.num_batches)):
            batch = batches.batch_at(0, i, rows=rows)
            sums = metrics.add(sums, metrics.to_host(run(params, batch)))
        return metrics.means(sums)

    return evaluate


def train_on_batches(
    method: Method,
    batches: Batches,
    validation: Batches | None,
    config: Any,
    workdir: pathlib.Path,
    *,
    initial_params: Params | None = None,
    validation_batches: int = 8,
) -> Params:
    """Train to ``config.train.steps``, resuming from the workdir; on the host.

    Args:
      config: has ``train``, ``optim`` and ``batch_size``.
      validation: what the method's own loss is told of while it trains.
    """
    judged = None
    if validation is not None:
        judged = validation_of(
            method, validation, config.batch_size, validation_batches
        )
    return train(
        method,
        from_batches(batches, config.batch_size, config.train),
        config.optim,
        config.train,
        workdir,
        initial_params=initial_params,
        validation=judged,
    )
