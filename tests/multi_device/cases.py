"""Methods with their batches, whose gradients must not depend on the devices.

Each case is a function that returns ``(method, batch)``: 8 rows, unevenly masked. Add
one to `CASES` and it is tried on 4 devices and on 2 processes of 2 devices.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlm_jax.method import Method
from rlm_jax.ops import collectives
from tests.methods import systems
from tests.train import toy

ROWS = 8


def language_model() -> tuple[Method, dict[str, np.ndarray]]:
    """Every device has another number of targets; the third has none."""
    method, batch = toy.method(), toy.batch_at(0, ROWS)

    def init(key):
        params = method.init(key)
        params["out"]["kernel"] = jax.random.normal(key, (toy.DIM, toy.VOCAB))
        return params

    batch["mask"][4:6] = 0
    return method._replace(init=init), batch


def in_batch_memory() -> tuple[Method, dict[str, np.ndarray]]:
    """Every row is to find its own key among the keys of all devices."""

    def init(key):
        shapes = {"query": (5, 3), "key": (5, 3)}
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(k, shape)
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def loss(params, batch, key, *, axis=None):
        queries, keys = (batch[name] @ params[name] for name in ("query", "key"))
        memory = collectives.gather(keys, axis, remote_gradients=True)
        scores = jax.nn.log_softmax(queries @ memory.T)
        rows = len(queries) * collectives.rank(axis) + jnp.arange(len(queries))
        nll = -jnp.take_along_axis(scores, rows[:, None], axis=1)[:, 0]
        return {"loss": (jnp.sum(nll * batch["mask"]), jnp.sum(batch["mask"]))}

    random = np.random.default_rng(0)
    batch = {
        "query": random.normal(size=(ROWS, 5)).astype(np.float32),
        "key": random.normal(size=(ROWS, 5)).astype(np.float32),
        "mask": np.array([1, 1, 1, 0, 0, 0, 0, 1], np.float32),
    }
    return Method(init, loss, loss), batch


def system(name: str) -> tuple[Method, dict[str, np.ndarray]]:
    """A method of the registry; groups of rows reach over devices and processes."""
    method, batch = systems.method(name), systems.batch(name, rows=ROWS)
    if "group" in batch:
        batch["group"] = np.array([0] * 5 + [1] * 3, np.int32)
    batch[systems.weight_of(batch)][2:4] = 0  # all of one device's

    def init(key):
        # Larger than the initial weights, so that the memory has a say.
        random = np.random.default_rng(0)
        return jax.tree.map(
            lambda x: x + 0.5 * random.normal(size=x.shape).astype(np.float32),
            method.init(key),
        )

    return method._replace(init=init), batch


CASES: dict[str, Callable[[], tuple[Method, dict[str, np.ndarray]]]] = {
    "language_model": language_model,
    "in_batch_memory": in_batch_memory,
    "trime_local": partial(system, "trime_local"),
    "trime_long": partial(system, "trime_long"),
    "trime_external": partial(system, "trime_external"),
    "trime_external_off": partial(system, "trime_external_off"),
    "retro": partial(system, "retro"),
    "dpr": partial(system, "dpr"),
    "dpr_distinct": partial(system, "dpr_distinct"),
    "contriever": partial(system, "contriever"),
    "contriever_in_batch": partial(system, "contriever_in_batch"),
    "replug": partial(system, "replug"),
    "replug_lsr": partial(system, "replug_lsr"),
    "reranker": partial(system, "reranker"),
}


def assert_close(found: np.ndarray, wanted: np.ndarray, name: str) -> None:
    """Gradients and what moves to 1e-5; sums, of up to hundreds, to four roundings.

    At 129 neighbouring float32 numbers are 1.5e-5 apart, and in what order devices add
    is not theirs to say.
    """
    is_sum = "/sums/" in name or "/evaluated/" in name
    rtol = float(4 * np.finfo(np.float32).eps) if is_sum else 1e-7
    np.testing.assert_allclose(found, wanted, rtol=rtol, atol=1e-5, err_msg=name)
