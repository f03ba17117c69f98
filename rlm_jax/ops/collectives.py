"""Gather, total and rank over the mapped axis; the identity on one device.

``axis`` is None (one device) or the name that `jax.pmap`, `jax.shard_map` or `jax.vmap`
gave to the mapped axis. Methods use these three and nothing else, so
``jax.vmap(step, axis_name=...)`` on one device exercises every collective.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Int32, PRNGKeyArray

Tree = TypeVar("Tree")


def rank(axis: str | None) -> Int32[jax.Array, ""]:
    """The device's position along the axis; 0 on one device."""
    return jnp.int32(0) if axis is None else jax.lax.axis_index(axis)


def total(tree: Tree, axis: str | None) -> Tree:
    """Every array summed over the devices of the axis."""
    return tree if axis is None else jax.lax.psum(tree, axis)


def gather(tree: Tree, axis: str | None, *, remote_gradients: bool = True) -> Tree:
    """Every array [N, ...] of all devices, one after another: [W * N, ...].

    With ``remote_gradients`` the gradient of what other devices do with our rows flows
    back to us (NPM, and the exact gradient of the global loss). Without it the rows of
    other devices are constants, and only our own carry a gradient: what a plain
    ``torch.distributed.all_gather`` gives, hence the released TRIME and DPR.
    """
    if axis is None:
        return tree

    def gather_one(x):
        if remote_gradients or not jnp.issubdtype(x.dtype, jnp.floating):
            return jax.lax.all_gather(x, axis, tiled=True)
        remote = jax.lax.all_gather(jax.lax.stop_gradient(x), axis, tiled=True)
        start = (jax.lax.axis_index(axis) * x.shape[0],) + (0,) * (x.ndim - 1)
        return jax.lax.dynamic_update_slice(remote, x, start)

    return jax.tree.map(gather_one, tree)


def fold_rank(key: PRNGKeyArray, axis: str | None) -> PRNGKeyArray:
    """The key of this device, for noise that must differ from device to device.

    On one device the key itself.
    """
    return key if axis is None else jax.random.fold_in(key, rank(axis))
