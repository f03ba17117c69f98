"""Contriever against the released code's arrays over steps, and its moving state."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlm_jax.errors import UserError
from rlm_jax.methods import contriever
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.train import step
from tests.methods import systems


def linear(params, batch, *, key=None):
    return batch["ids"] @ params


def identity(params, batch, *, key=None):
    return batch["ids"]


def test_released_moco(golden):
    """Steps of SGD: loss, gradient, both encoders and the queue after each."""
    z = golden("contriever_moco")
    rows, size = z["x_k"].shape[1], z["queue0"].shape[1]
    config = contriever.ContrieverConfig(
        EncoderConfig(),
        queue_size=size,
        momentum=float(z["momentum"]),
        temperature=float(z["temperature"]),
        label_smoothing=float(z["label_smoothing"]),
    )
    query_params = jnp.asarray(z["w_q0"], jnp.float32)
    width = query_params.shape[-1]
    method = contriever.moco(config, lambda key: query_params, linear, width)
    learning_rate = float(z["lr"])
    sgd = optax.sgd(learning_rate)
    state = step.init(query_params, sgd, moving=method.moving)
    assert state.moving["queue"].shape == z["queue0"].T.shape
    moving = {
        "params": jnp.asarray(z["w_k0"], jnp.float32),
        "queue": jnp.asarray(z["queue0"].T, jnp.float32),
        "next": jnp.int32((z["queue_ptr"][0] - rows) % size),
    }
    state = state._replace(moving=moving)
    train = jax.jit(
        functools.partial(step.train_step, method=method, optimizer=sgd, seed=0)
    )
    for number in range(len(z["loss"])):
        before = state.params
        state, sums = train(state, plain_batch(z["x_q"][number], z["x_k"][number]))
        assert_close(sums["loss"][0] / sums["loss"][1], z["loss"][number])
        gradient = (before - state.params) / learning_rate
        assert_close(gradient, z["grad_w_q"][number], 1e-4)
        assert_close(state.params, z["w_q"][number])
        assert_close(state.moving["params"], z["w_k"][number])
        assert_close(state.moving["queue"], z["queue"][number].T)
        assert state.moving["next"] == z["queue_ptr"][number]


@pytest.mark.parametrize("kind", ["raw", "norm"])
def test_released_in_batch(golden, kind):
    z = golden("contriever_inbatch")
    config = contriever.InBatchConfig(
        EncoderConfig(),
        temperature=float(z["temperature"]),
        label_smoothing=float(z["label_smoothing"]),
    )
    method = contriever.in_batch(config, lambda key: jnp.float32(0), identity)

    def loss(queries, keys):
        if kind == "norm":
            queries, keys = (
                x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (queries, keys)
            )
        total, weight = method.evaluate(None, plain_batch(queries, keys))["loss"]
        return total / weight

    value, gradient = jax.value_and_grad(loss, (0, 1))(
        *(jnp.asarray(z[f"{kind}_{side}"], jnp.float32) for side in "qk")
    )
    assert_close(value, z[f"{kind}_loss"])
    if kind == "raw":
        for side, found in zip("qk", gradient, strict=True):
            assert_close(found, z[f"raw_grad_{side}"])


def plain_batch(queries, keys):
    """Vectors in place of texts, all of weight 1."""
    queries, keys = (jnp.asarray(x, jnp.float32) for x in (queries, keys))
    return {
        "query_ids": queries,
        "query_mask": queries,
        "key_ids": keys,
        "key_mask": keys,
        "weight": jnp.ones(len(queries)),
    }


@pytest.mark.parametrize("size", [8, 10])
def test_the_queue_is_a_ring(size):
    """Each step the oldest keys go, also where batches do not divide the queue."""
    config = contriever.ContrieverConfig(EncoderConfig(), queue_size=size, momentum=1.0)
    method = contriever.moco(config, lambda key: jnp.eye(2), linear, 2)
    assert method.moving is not None
    state = method.moving.init(jnp.eye(2), jax.random.key(0))
    np.testing.assert_allclose(np.linalg.norm(state["queue"], axis=1), 1, rtol=1e-5)
    update = jax.jit(method.moving.update)
    for number in range(6):
        keys = np.full((4, 2), number) + np.arange(4)[:, None] / 10
        before = state["queue"]
        batch = plain_batch(keys, keys)
        state, given = update(jnp.eye(2), state, batch, jax.random.key(0))
        np.testing.assert_array_equal(given["queue"], before)
        np.testing.assert_array_equal(given["keys"], np.float32(keys))
    held = sorted(state["queue"][:, 0].tolist())
    every = [n + i / 10 for n in range(6) for i in range(4)]
    np.testing.assert_allclose(held, every[-size:], rtol=1e-6)


@functools.cache
def initial():
    return jax.jit(systems.method("contriever").init)(jax.random.key(0))


def test_micro_batches_move_the_state_one_after_another():
    """Two micro-batches in a step: the queue holds both, as after two steps."""
    method = systems.method("contriever")
    sgd = optax.sgd(1.0)
    params = initial()
    state = step.init(params, sgd, moving=method.moving)
    train = functools.partial(step.train_step, method=method, optimizer=sgd, seed=0)
    batch = systems.batch("contriever")
    together, _ = jax.jit(functools.partial(train, accumulate=2))(state, batch)
    one = jax.jit(train)
    halves = [
        {k: x[rows] for k, x in batch.items()} for rows in (slice(2), slice(2, 4))
    ]
    after, first = one(state, halves[0])
    # The second half with the parameters before the step, as within one step.
    back = after._replace(params=params, step=state.step)
    apart, second = one(back, halves[1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        together.moving,
        apart.moving,
    )
    assert together.moving["next"] == 4
    weights = [float(sums["loss"][1]) for sums in (first, second)]

    def mean(start, one, two):
        of_one, of_two = start - one, start - two
        return start - (weights[0] * of_one + weights[1] * of_two) / sum(weights)

    wanted = jax.tree.map(mean, params, after.params, apart.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        together.params,
        wanted,
    )


def test_the_queue_moves_without_a_gradient():
    """The loss does not reach the keys: only the query's encoder learns."""
    method = systems.method("contriever")
    params = initial()
    batch = systems.prepared(method, params, systems.batch("contriever"))
    loss = jax.jit(lambda p, b: method.loss(p, b, jax.random.key(0))["loss"][0])
    other = {**batch, "key_ids": batch["key_ids"] * 0}
    assert loss(params, batch) == loss(params, other)
    assert loss(params, batch) != loss(params, {**batch, "queue": -batch["queue"]})


def test_evaluation_is_the_in_batch_loss():
    method = systems.method("contriever")
    config = systems.config("contriever")
    other = contriever.contriever_in_batch(
        contriever.InBatchConfig(
            config.encoder, config.temperature, config.label_smoothing
        )
    )
    params, batch = initial(), systems.batch("contriever")
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.jit(method.evaluate)(params, batch),
        jax.jit(other.evaluate)(params, batch),
    )


def test_a_queue_smaller_than_a_batch():
    config = dataclasses.replace(systems.config("contriever"), queue_size=3)
    method = contriever.contriever(config)
    with pytest.raises(UserError, match="queue of 3 keys cannot take the 4"):
        systems.prepared(method, initial(), systems.batch("contriever"))


def assert_close(ours, theirs, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance)
