"""Rows of a batch over this process's devices, for passes that need no collective.

A jitted function of arrays placed so is partitioned by the compiler; with one device it
is the function as it is.
"""

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


def whole_rows(num_rows: int) -> int:
    """The next number of rows that divides over the devices."""
    return -(-num_rows // jax.local_device_count()) * jax.local_device_count()


def replicated(tree: Tree) -> Tree:
    """Every array on each device."""
    return jax.device_put(tree, _sharding(PartitionSpec()))


def spread(batch: Tree) -> Tree:
    """Every array [`whole_rows`, ...] cut along its rows, a part on each device."""
    return jax.device_put(batch, _sharding(PartitionSpec("rows")))


def _sharding(spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.local_devices()), ("rows",)), spec)
