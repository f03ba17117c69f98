"""What a dry run shows of training: sizes, shapes, and the memory of one step."""

import functools
from typing import Any

import jax
import numpy as np

from rlm_jax import terminal
from rlm_jax.method import Batches, Method
from rlm_jax.train import optim, progress, step

COMPILED = 50_000_000
"""Parameters up to which a dry run compiles the step."""


def describe(method: Method, batches: Batches, config: Any) -> None:
    """Parameters, shapes, and the memory of one training step.

    The step is compiled, which tells its exact memory, up to `COMPILED` parameters.

    Args:
      config: has ``train`` and ``optim``.
    """
    optimizer = optim.optimizer(config.optim, config.train.steps)
    batch = batches.batch_at(config.train.seed, 0)
    state = jax.eval_shape(
        lambda key: step.init(method.init(key), optimizer, moving=method.moving),
        jax.random.key(0),
    )
    terminal.say(progress.parameter_table(state.params))
    for name, x in batch.items():
        terminal.say(f"batch {name:<8} {x.dtype} {list(x.shape)}")
    for name, tree in (
        ("parameters", state.params),
        ("optimiser", state.opt_state),
        ("moving state", state.moving),
    ):
        if jax.tree.leaves(tree):
            terminal.say(f"{name}: {_mebibytes(tree):,.1f} MiB on each device")
    train_step = functools.partial(
        step.train_step,
        method=method,
        optimizer=optimizer,
        seed=config.train.seed,
        accumulate=config.train.accumulate,
    )
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    if parameters <= COMPILED:
        lowered = jax.jit(train_step, donate_argnums=0).lower(state, batch)
        memory = lowered.compile().memory_analysis()
        if memory is not None:
            terminal.say(
                f"one step of the whole batch on one device: "
                f"{memory.temp_size_in_bytes / 2**20:,.0f} MiB beside the state"
            )
    else:
        jax.eval_shape(train_step, state, batch)
        terminal.say(
            "activations of a step: not measured, as compiling a model of more than "
            f"{COMPILED:,} parameters takes long"
        )
    # Of a language model its targets are counted, of a retriever its questions.
    counted = batch["targets"].size if "targets" in batch else len(batch["weight"])
    noun = "targets" if "targets" in batch else "questions"
    terminal.say(
        f"{config.train.steps:,} steps of {counted:,} {noun}: "
        f"{config.train.steps / batches.num_batches:.1f} epochs"
    )


def _mebibytes(tree: Any) -> float:
    leaves = jax.tree.leaves(tree)
    return sum(x.size * np.dtype(x.dtype).itemsize for x in leaves) / 2**20
