"""One step of training or evaluation, as a pure function of state and batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlm_jax.errors import UserError
from rlm_jax.method import Batch, Method, MovingState, Params, Sums
from rlm_jax.ops import collectives


class State(NamedTuple):
    """What training carries from one step to the next, and a checkpoint holds."""

    step: jax.Array  # int32 [], the number of steps done
    params: Params
    opt_state: Any  # what the optimiser keeps
    moving: Any = ()  # what the method moves without a gradient, where it does


def init(
    params: Params,
    optimizer: optax.GradientTransformation,
    step: int = 0,
    *,
    moving: MovingState | None = None,
    seed: int = 0,
) -> State:
    """The state before the first step (or after ``step`` steps, with fresh moments).

    Args:
      params: The parameters.
      optimizer: Gives the moments.
      step: The number of steps done.
      moving: The method's, which begins with these parameters.
      seed: What ``moving.init`` draws comes from it.
    """
    moved = ()
    if moving is not None:
        # A number that no step has: parameters come from the key itself, and the keys
        # of steps are folded with theirs.
        key = jax.random.fold_in(jax.random.key(seed), np.uint32(2**32 - 1))
        moved = moving.init(params, key)
    return State(jnp.int32(step), params, optimizer.init(params), moved)


def train_step(
    state: State,
    batch: Batch,
    *,
    method: Method,
    optimizer: optax.GradientTransformation,
    seed: int,
    accumulate: int = 1,
    axis: str | None = None,
) -> tuple[State, Sums]:
    """One update by the gradient of the batch's mean loss.

    ``g = (sum of the gradients of the loss sums) / (sum of the loss weights)``, both
    over all micro-batches and devices, with one division at the end: this is the
    gradient of the mean over all targets, however unevenly the devices are masked.

    Args:
      state: The state; equal on every device.
      batch: This device's rows, [B, ...].
      method: Whose ``loss`` is optimised. Its ``moving.update`` comes before each
        micro-batch's gradient, so A micro-batches move that state A times a step, each
        with the parameters before the step.
      optimizer: Sees the divided gradient and the parameters.
      seed: The key of a micro-batch is folded from (seed, step, micro-batch).
      accumulate: The number A of micro-batches: contiguous slices of B / A rows, so
        that rows of one group stay together. An in-batch memory sees its micro-batch
        alone.
      axis: The name of the mapped axis of devices, or None.

    Returns:
      The next state, and the method's sums over all micro-batches and devices, with
      ``"gradient_norm"`` (the global norm before clipping, 1).

    Raises:
      UserError: If the rows do not divide into micro-batches.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def gradient_of(moving, micro_batch, index):
        micro_key = jax.random.fold_in(key, index)
        if method.moving is not None:
            micro_key, update_key = jax.random.split(micro_key)
            moving, micro_batch = method.moving.update(
                state.params, moving, micro_batch, update_key, axis=axis
            )

        def loss(params):
            sums = method.loss(params, micro_batch, micro_key, axis=axis)
            return sums["loss"][0], sums

        return moving, jax.grad(loss, has_aux=True)(state.params)

    if accumulate == 1:
        moving, (gradient, sums) = gradient_of(state.moving, batch, 0)
    else:
        moving, (gradient, sums) = _accumulated(
            gradient_of, state.moving, batch, accumulate
        )
    gradient, sums = collectives.total((gradient, sums), axis)

    weight = sums["loss"][1]
    # A batch without targets moves nothing by gradient; 0 / 0 would poison the state.
    scale = jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0)
    gradient = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradient)
    norm = optax.tree.norm(gradient)

    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    sums = {**sums, "gradient_norm": (norm, jnp.float32(1))}
    return State(state.step + 1, params, opt_state, moving), sums


def eval_step(
    params: Params, batch: Batch, *, method: Method, axis: str | None = None
) -> Sums:
    """The method's sums over one batch, over all devices, without an update."""
    sums = method.evaluate(params, batch, jax.random.key(0), axis=axis)
    return collectives.total(sums, axis)


def _accumulated(gradient_of, moving, batch, accumulate):
    """The last moving state; gradients and sums, added up over the micro-batches."""

    def split(x):
        if x.shape[0] % accumulate:
            raise UserError(
                f"{x.shape[0]} rows per device do not divide into accumulate="
                f"{accumulate} micro-batches; choose a batch size that does."
            )
        return x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:])

    micro_batches = jax.tree.map(split, dict(batch))
    first = jax.tree.map(lambda x: x[0], micro_batches)
    shapes = jax.eval_shape(gradient_of, moving, first, 0)[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def add(carry, inputs):
        moving, added = carry
        moving, new = gradient_of(moving, *inputs)
        return (moving, jax.tree.map(jnp.add, added, new)), None

    indices = jnp.arange(accumulate)
    return jax.lax.scan(add, (moving, zeros), (micro_batches, indices))[0]
