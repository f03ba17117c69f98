"""Training over all devices of all processes.

A step written for one device takes ``axis``, the name of the mapped axis. `parallelise`
maps it with `jax.pmap`: the batch is split over the devices, the state is replicated,
and a reduction inside the step makes the result equal everywhere.

pmap is ``jit(shard_map(..., check_vma=False))`` inside, which decides what a gradient
means: with ``check_vma=False`` the gradient of a device's loss is that device's own,
and the step adds them up itself. A model too large for one device takes a second
mapping here: ``jit`` over global arrays, each with its `NamedSharding`, ``axis=None``.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlm_jax.errors import UserError

AXIS = "batch"

Tree = TypeVar("Tree")


def local_rows(global_batch_size: int, *, accumulate: int = 1) -> np.ndarray:
    """The rows of the global batch that this process reads, int64 [B].

    A micro-batch is a run of consecutive rows of the global batch, over all processes
    and devices, so that rows of one group stay together: of each run a process reads
    its share. With one process this is every row, in order.

    Raises:
      UserError: If the batch does not divide over all devices and micro-batches.
    """
    parts = jax.device_count() * accumulate
    if global_batch_size <= 0 or global_batch_size % parts:
        raise UserError(
            f"A batch of {global_batch_size} rows does not divide over "
            f"{jax.device_count()} devices and {accumulate} micro-batches; choose a "
            f"multiple of {parts}."
        )
    rows = np.arange(global_batch_size)
    return rows.reshape(accumulate, jax.process_count(), -1)[
        :, jax.process_index()
    ].reshape(-1)


def replicate(tree: Tree) -> Tree:
    """A copy of every array on each of this process's devices, not stacked.

    This is the very sharding that `parallelise` returns its state in. pmap would accept
    any other, but then it copies the whole state on the first call and compiles a
    second time on the next (and warns, with several processes).

    The arrays pass through host memory, since a step donates its state: an alias of
    the caller's arrays would die with the first step.
    """
    sharding = NamedSharding(_local_mesh(), PartitionSpec())
    return jax.tree.map(lambda x: jax.device_put(np.array(x), sharding), tree)


def parallelise(
    step: Callable[..., Any], *, donate: bool = True, accumulate: int = 1
) -> Callable[[Any, Mapping[str, Any]], Any]:
    """The step over all devices: ``(state, this process's rows) -> result``.

    Args:
      step: ``step(state, batch, *, axis)``, whose result is equal on every device:
        `train_step` or `eval_step` with everything else bound.
      donate: Whether the state's buffers are given to the result; the caller's state is
        dead after the call. For `eval_step` pass False.
      accumulate: The step's number of micro-batches, which decides the rows a device
        gets: its share of each, one micro-batch after another.

    Returns:
      A function of the state (from `replicate` or an earlier call) and a batch of NumPy
      arrays [B, ...], B rows of this process. Its result is replicated. It returns at
      once, as any JAX computation does: wait for each call's result before the next but
      one, since many in flight can starve each other on a CPU of few cores, and hang.

    Raises:
      UserError: If B does not divide over this process's devices.
    """
    # On one device XLA keeps a reduction as a copy of every gradient (a third of the
    # update's time, measured with Adam on a CPU), so the step is told there is none.
    axis = AXIS if jax.device_count() > 1 else None
    mapped = jax.pmap(
        functools.partial(step, axis=axis),
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,  # type: ignore[arg-type]
        donate_argnums=(0,) if donate else (),
    )

    def call(state, batch):
        split = _split(batch, jax.local_device_count(), accumulate)
        # Put there by name: a guard against unasked transfers then finds the others.
        sharding = NamedSharding(_local_mesh(), PartitionSpec(AXIS))
        return mapped(state, jax.device_put(split, sharding))

    return call


def preemption_reached(step: int) -> bool:
    """Whether all processes have agreed to stop after this step, as one was told to.

    Only for several processes: the distributed runtime catches SIGTERM itself and picks
    a step that no process has passed.
    """
    return multihost_utils.reached_preemption_sync_point(step)


def _local_mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))


def _split(
    batch: Mapping[str, Any], num_devices: int, accumulate: int
) -> dict[str, Any]:
    """[B, ...] -> [devices, B / devices, ...] on the host, micro-batches kept whole."""

    def split(name, x):
        if x.shape[0] % (num_devices * accumulate):
            raise UserError(
                f"{x.shape[0]} rows of {name!r} do not divide over {num_devices} "
                f"devices and {accumulate} micro-batches; choose a batch size that is "
                f"a multiple of {num_devices * accumulate}."
            )
        parts = x.reshape(accumulate, num_devices, -1, *x.shape[1:])
        return parts.swapaxes(0, 1).reshape(num_devices, -1, *x.shape[1:])

    return {name: split(name, x) for name, x in batch.items()}
