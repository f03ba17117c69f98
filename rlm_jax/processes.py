"""The processes of a run, and this process's own devices.

Several processes join through `jax.distributed`. What one of them alone may do (write a
report, find neighbours) goes through `by_first`; `wait` is a barrier. A pass that needs
no collective, such as encoding, spreads its rows over this process's devices: a jitted
function of arrays placed so is partitioned by the compiler, and with one device it is
the function as it is. Training over all devices is `rlm_jax.train.parallel`'s.
"""

import os
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlm_jax import peers
from rlm_jax.errors import UserError

Tree = TypeVar("Tree")
Result = TypeVar("Result")


def initialise(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins this process to the others; does nothing where there is only one.

    Call it before anything touches a device. What is not given comes from the
    environment: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Args:
      coordinator: "host:port" of process 0, or "auto" where JAX can find out for itself
        (Cloud TPU, Slurm, Open MPI).
      num_processes: How many processes there are, each with equally many devices.
      process_id: This process's number, from 0.

    Raises:
      UserError: If only some of the three are known.
    """
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator == "auto":
        jax.distributed.initialize()
        return
    if num_processes is None:
        num_processes = _integer_from_environment("JAX_NUM_PROCESSES")
    if process_id is None:
        process_id = _integer_from_environment("JAX_PROCESS_ID")
    known = [x is not None for x in (coordinator, num_processes, process_id)]
    if not any(known):
        return
    if not all(known):
        raise UserError(
            "Training in several processes needs the coordinator's host:port, the "
            "number of processes and this process's number; give all three or none."
        )
    jax.distributed.initialize(coordinator, num_processes, process_id)
    if several() and coordinator is not None:
        _connect(coordinator.rpartition(":")[0])


def _connect(host: str) -> None:
    """From now on a process ends soon after any other that fails or is killed."""
    connections = peers.peers()
    server, token = connections.listen() if is_first() else (None, bytes(16))
    port = server.getsockname()[1] if server else 0
    told = np.frombuffer(token + port.to_bytes(4), np.uint8)
    told = bytes(np.asarray(multihost_utils.broadcast_one_to_all(told)))
    if server:
        connections.accept(server, token, jax.process_count() - 1)
    else:
        connections.call(host, int.from_bytes(told[16:]), told[:16])


def is_first() -> bool:
    """Whether this process is the one that writes logs and shows progress."""
    return jax.process_index() == 0


def by_first(work: Callable[[], Result], purpose: str) -> Result | None:
    """What the first process makes while the others wait; None in those.

    Args:
      work: what it does.
      purpose: completes "The first process cannot ..." for the others.

    Raises:
      UserError: it raised one, in all processes: none waits for ever.
    """
    result, error = None, None
    if is_first():
        try:
            result = work()
        except UserError as found:
            error = found
    if several():
        failed = multihost_utils.broadcast_one_to_all(np.int32(error is not None))
        if failed and error is None:
            error = UserError(f"The first process cannot {purpose}, and tells why.")
    if error is not None:
        raise error
    return result


def several() -> bool:
    """Whether the run has more than one process, and this one has not left them."""
    return jax.process_count() > 1 and not peers.peers().parted


def wait(name: str) -> None:
    """Returns when all processes have come here; ``name`` is equal in all of them."""
    if several():
        multihost_utils.sync_global_devices(name)


def leave() -> None:
    """Parts this process from the others; it uses its own devices alone from then on.

    All processes call it, since one that ends before the others takes them along.
    """
    if several():
        peers.peers().part()
        jax.distributed.shutdown()


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


def _integer_from_environment(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdigit():
        raise UserError(f"{name}={text!r} is not a number; set it to one or unset it.")
    return int(text)
