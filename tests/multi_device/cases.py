"""Methods with their batches, whose gradients must not depend on the devices.

Each case is a function that returns ``(method, parameters, batch)``: 8 rows, unevenly
masked. `MECHANISMS`, what a step does across devices, a case for each thing, are tried
on 2 processes of 2 devices: what a system computes does not know which process a device
belongs to (tests/test_architecture.py). They and `REACHING` are tried on 4 devices of
one process; `OTHERS`, whose losses leave all of it to the step, in the slow tests.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlm_jax.method import Batch, Method, Params
from rlm_jax.ops import collectives
from tests.methods import systems
from tests.train import toy

ROWS = 8

Case = Callable[[], tuple[Method, Params, Batch]]


def language_model() -> tuple[Method, Params, Batch]:
    """Every device has another number of targets; the third has none."""
    batch = toy.batch_at(0, ROWS)
    batch["mask"][4:6] = 0
    return toy.method(), toy_parameters(), batch


def moving_state() -> tuple[Method, Params, Batch]:
    """The newest of a queue is the last row of the last device."""
    return toy.moving_method(), toy_parameters(), toy.batch_at(0, ROWS)


def toy_parameters() -> Params:
    shapes = jax.eval_shape(toy.method().init, jax.random.key(0))
    random = np.random.default_rng(1)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype("f"), shapes)


def in_batch_memory() -> tuple[Method, Params, Batch]:
    """Every row is to find its own key among the keys of all devices."""

    def init(key):
        del key
        return {"query": jnp.zeros((5, 3)), "key": jnp.zeros((5, 3))}

    def loss(params, batch, key, *, axis=None):
        queries, keys = (batch[name] @ params[name] for name in ("query", "key"))
        memory = collectives.gather(keys, axis, remote_gradients=True)
        scores = jax.nn.log_softmax(queries @ memory.T)
        rows = len(queries) * collectives.rank(axis) + jnp.arange(len(queries))
        nll = -jnp.take_along_axis(scores, rows[:, None], axis=1)[:, 0]
        return {"loss": (jnp.sum(nll * batch["mask"]), jnp.sum(batch["mask"]))}

    random = np.random.default_rng(0)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    batch = {
        "query": normal(ROWS, 5),
        "key": normal(ROWS, 5),
        "mask": np.array([1, 1, 1, 0, 0, 0, 0, 1], np.float32),
    }
    params = {"query": normal(5, 3), "key": normal(5, 3)}
    return Method(init, loss, loss), params, batch


def system(name: str) -> tuple[Method, Params, Batch]:
    """A method of the registry; groups of rows reach over devices and processes."""
    batch = systems.batch(name, rows=ROWS)
    if "group" in batch:
        batch["group"] = np.array([0] * 5 + [1] * 3, np.int32)
    batch[systems.weight_of(batch)][2:4] = 0  # all of one device's

    def larger(path, x):
        # A gradient below the tolerance would be equal whatever it is, and where all is
        # copied nothing else has one.
        much = 0.1 if path[-1].key == "copy" else 1.25
        return np.float32(much) * x + np.float32(path[-1].key == "scale")

    params = jax.tree_util.tree_map_with_path(larger, systems.parameters(name, seed=0))
    return systems.method(name), params, batch


MECHANISMS: dict[str, Case] = {
    "language_model": language_model,
    "moving_state": moving_state,
    "in_batch_memory": in_batch_memory,
}
# Their losses reach over the devices, each in a way of its own.
REACHING: dict[str, Case] = {
    name: partial(system, name)
    for name in ("trime_long", "contriever", "dpr_distinct", "npm", "rpt")
}
OTHERS: dict[str, Case] = {
    name: partial(system, name)
    for name in systems.SYSTEMS
    if name not in MECHANISMS | REACHING
}


def assert_close(found: np.ndarray, wanted: np.ndarray, name: str) -> None:
    """Gradients and what moves to 1e-5; sums, of up to hundreds, to four roundings.

    At 129 neighbouring float32 numbers are 1.5e-5 apart, and in what order devices add
    is not theirs to say.
    """
    is_sum = "/sums/" in name or "/evaluated/" in name
    rtol = float(4 * np.finfo(np.float32).eps) if is_sum else 1e-7
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=1e-5, err_msg=name)
