"""The step: one division, whatever the masks, micro-batches and devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlm_jax.errors import UserError
from rlm_jax.train import step as step_lib
from tests.train import toy

SGD = optax.sgd(1.0)  # Adam would hide a wrong scale of the gradient.


def start():
    method = toy.method()
    params = method.init(jax.random.key(0))
    params["out"]["kernel"] = jax.random.normal(jax.random.key(1), (toy.DIM, toy.VOCAB))
    return method, step_lib.init(params, SGD)


def one_step(state, batch, method, **options):
    step = functools.partial(
        step_lib.train_step, method=method, optimizer=SGD, seed=0, **options
    )
    return jax.jit(step)(state, batch)


def test_update_is_the_gradient_of_the_mean_over_targets():
    method, state = start()
    batch = toy.batch_at(0)

    def mean(params):
        total, weight = method.loss(params, batch, jax.random.key(0))["loss"]
        return total / weight

    value, gradient = jax.value_and_grad(mean)(state.params)
    new, sums = one_step(state, batch, method)
    expected = jax.tree.map(jnp.subtract, state.params, gradient)
    chex.assert_trees_all_close(new.params, expected, atol=1e-6)
    assert sums["loss"][0] / sums["loss"][1] == pytest.approx(float(value), abs=1e-6)
    assert sums["gradient_norm"][0] == pytest.approx(
        float(optax.tree.norm(gradient)), abs=1e-5
    )
    assert new.step.dtype == jnp.int32 and int(new.step) == 1


def test_micro_batches_equal_the_whole_batch():
    method, state = start()
    whole, whole_sums = one_step(state, toy.batch_at(0), method)
    parts, parts_sums = one_step(state, toy.batch_at(0), method, accumulate=4)
    chex.assert_trees_all_close(parts, whole, atol=1e-6)
    chex.assert_trees_all_close(parts_sums, whole_sums, rtol=1e-6)


def test_micro_batches_are_contiguous_rows():
    def loss(params, batch, key, *, axis=None):
        # The first row of a micro-batch counts: rows 0 and 4 of 8 in two micro-batches.
        return {"loss": (params * batch["x"][0], jnp.float32(1))}

    method = toy.method()._replace(loss=loss)
    state = step_lib.init(jnp.float32(0), SGD)
    batch = {"x": np.arange(8, dtype=np.float32)}
    new, _ = one_step(state, batch, method, accumulate=2)
    assert new.params == -(0 + 4) / 2


def test_rows_that_do_not_divide():
    method, state = start()
    with pytest.raises(UserError, match="accumulate=3"):
        one_step(state, toy.batch_at(0), method, accumulate=3)


def test_rows_without_weight_change_nothing():
    method, state = start()
    batch = toy.batch_at(0)
    padded = {
        name: np.concatenate([x, toy.batch_at(1)[name][:3] * (name != "mask")])
        for name, x in batch.items()
    }
    chex.assert_trees_all_close(
        one_step(state, padded, method)[0], one_step(state, batch, method)[0], atol=1e-6
    )


def test_batch_without_targets_moves_nothing():
    method, state = start()
    batch = toy.batch_at(0)
    batch["mask"] = np.zeros_like(batch["mask"])
    new, sums = one_step(state, batch, method)
    chex.assert_trees_all_equal(new.params, state.params)
    assert sums["gradient_norm"][0] == 0 and sums["loss"][1] == 0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_mapped_axis_on_one_device_equals_no_axis(accumulate):
    method, state = start()
    batch = toy.batch_at(0)
    batch["mask"][:2] = 0  # The first of the four has no target at all.
    whole, whole_sums = one_step(state, batch, method)
    split = {name: x.reshape(4, 2, *x.shape[1:]) for name, x in batch.items()}
    step = functools.partial(
        step_lib.train_step,
        method=method,
        optimizer=SGD,
        seed=0,
        axis="batch",
        accumulate=accumulate,
    )
    mapped = jax.jit(
        jax.vmap(step, axis_name="batch", in_axes=(None, 0), out_axes=None)
    )
    new, sums = mapped(state, split)
    chex.assert_trees_all_close(new, whole, atol=1e-6)
    chex.assert_trees_all_close(sums, whole_sums, rtol=1e-6)


def test_every_step_and_micro_batch_has_its_own_key():
    def loss(params, batch, key, *, axis=None):
        drawn = jax.random.uniform(key)
        return {"loss": (0 * params, jnp.float32(1)), "drawn": (drawn, jnp.float32(1))}

    method = toy.method()._replace(loss=loss)
    state = step_lib.init(jnp.float32(0), SGD)
    batch = {"x": np.zeros(4, np.float32)}
    after, first = one_step(state, batch, method)
    _, second = one_step(after, batch, method)
    _, both = one_step(state, batch, method, accumulate=2)
    _, again = one_step(state, batch, method)
    drawn = [float(sums["drawn"][0]) for sums in (first, second, both, again)]
    assert drawn[0] == drawn[3] != drawn[1]
    assert drawn[2] != pytest.approx(2 * drawn[0])


def test_eval_step_adds_up_over_the_axis():
    method, state = start()
    batch = toy.batch_at(0)
    split = {name: x.reshape(4, 2, *x.shape[1:]) for name, x in batch.items()}
    whole = step_lib.eval_step(state.params, batch, method=method)
    evaluate = functools.partial(step_lib.eval_step, method=method, axis="batch")
    mapped = jax.vmap(evaluate, axis_name="batch", in_axes=(None, 0), out_axes=None)
    chex.assert_trees_all_close(mapped(state.params, split), whole, rtol=1e-6)


def moving_start():
    method = toy.moving_method()
    params = method.init(jax.random.key(0))
    params["out"]["bias"] = jnp.linspace(-1, 1, toy.VOCAB)
    return method, step_lib.init(params, SGD, moving=method.moving, seed=1)


def test_what_moves_does_so_before_the_gradient_and_without_one():
    method, state = moving_start()
    batch = toy.batch_at(0)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), 0)
    loss_key, update_key = jax.random.split(key)
    assert method.moving is not None
    moved, given = method.moving.update(state.params, state.moving, batch, update_key)

    def mean(params):
        total, weight = method.loss(params, given, loss_key)["loss"]
        return total / weight

    new, _ = one_step(state, batch, method)
    chex.assert_trees_all_close(new.moving, moved, atol=1e-6)
    expected = jax.tree.map(jnp.subtract, state.params, jax.grad(mean)(state.params))
    chex.assert_trees_all_close(new.params, expected, atol=1e-5)


def test_every_micro_batch_moves_the_state():
    method, state = moving_start()
    new, _ = one_step(state, toy.batch_at(0), method, accumulate=2)
    first = toy.batch_at(0)["tokens"][:, 0]
    assert new.moving["queue"].tolist()[1:] == [first[3], first[7]]
    assert new.moving["queue"][0] == state.moving["queue"][2]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_moves_is_equal_on_every_device(accumulate):
    """The four devices hold the rows of each micro-batch, one after another."""
    method, state = moving_start()
    batch = toy.batch_at(0)
    whole, _ = one_step(state, batch, method, accumulate=accumulate)
    split = {
        name: x.reshape(accumulate, 4, -1, *x.shape[1:])
        .swapaxes(0, 1)
        .reshape(4, -1, *x.shape[1:])
        for name, x in batch.items()
    }
    step = functools.partial(
        step_lib.train_step, method=method, optimizer=SGD, seed=0, axis="batch",
        accumulate=accumulate,
    )  # fmt: skip
    mapped = jax.vmap(step, axis_name="batch", in_axes=(None, 0), out_axes=0)
    on_several, _ = jax.jit(mapped)(state, split)
    for device in range(4):
        one = jax.tree.map(lambda x, device=device: x[device], on_several)
        chex.assert_trees_all_close(one, whole, atol=1e-5)


def test_a_method_that_moves_nothing_has_no_such_state():
    _, state = start()
    assert state.moving == () and len(jax.tree.leaves(state.moving)) == 0
