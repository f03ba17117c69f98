"""What every method of the registry must do."""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlm_jax.methods import METHODS
from rlm_jax.train import step
from tests.methods import systems
from tests.methods.systems import SYSTEMS

every = pytest.mark.parametrize("name", SYSTEMS)


def all_but(slow):
    marked = {name: [pytest.mark.slow] for name in slow}
    named = [pytest.param(name, marks=marked.get(name, [])) for name in SYSTEMS]
    return pytest.mark.parametrize("name", named)


in_full = all_but(systems.VARIANTS)
# Two compilations of their own, of several seconds.
in_full_if_small = all_but((*systems.VARIANTS, *systems.JOINT, "retro", "rpt"))

initial = functools.cache(systems.parameters)


@functools.cache
def init(name):
    """key -> parameters; compiled once."""
    return jax.jit(systems.method(name).init)


ADAM = optax.adam(0.03)


@functools.cache
def train_step(name):
    """(state, batch) -> (state, sums), and a list with an entry for each tracing.

    All ask it for batches `beside_nothing` of one size, so that it is compiled once.
    """
    method, traces = systems.method(name), []

    def loss(*args, **options):
        traces.append(None)
        return method.loss(*args, **options)

    of = {"method": method._replace(loss=loss), "optimizer": ADAM, "seed": 0}
    return jax.jit(functools.partial(step.train_step, **of)), traces


def first_state(name, params):
    return step.init(params, ADAM, moving=systems.method(name).moving)


def gradient_step(name, params, batch):
    """(gradient of the summed loss, sums): Adam's first moment after one step."""
    run, _ = train_step(name)
    state, sums = run(first_state(name, params), batch)
    sums = {key: x for key, x in sums.items() if key != "gradient_norm"}
    scale = float(sums["loss"][1]) / (1 - 0.9)
    return jax.tree.map(lambda x: scale * np.asarray(x), state.opt_state[0].mu), sums


def batch_of(name):
    return systems.batch(name, rows=len(jax.tree.leaves(systems.learnable(name, 0))[0]))


def beside_nothing(name, batch, places, seed):
    """A batch with two more rows, of weight zero, before the rows at ``places``.

    They are another batch's, and of a group of their own and of another's.
    """
    junk = systems.batch(name, seed=seed)
    padded = {k: np.insert(x, places, junk[k][:2], axis=0) for k, x in batch.items()}
    added = [places[0], places[1] + 1]
    padded[systems.weight_of(batch)][added] = 0
    if "group" in batch:
        padded["segment"][added] = [100, 50]
        padded["group"][added] = [7, 1]
    return padded


def behind(name, batch):
    """The batch, and behind it the rows of weight zero."""
    end = len(batch[systems.weight_of(batch)])
    return beside_nothing(name, batch, [end, end], seed=8)


@in_full
def test_init_is_deterministic(name):
    first, second, other = (init(name)(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert {x.dtype for x in jax.tree.leaves(first)} == {np.dtype("float32")}
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), first, other)
    assert any(jax.tree.leaves(differs))


@every
def test_loss_and_gradient(name):
    """Sums of the right weight; finite; the gradient reaches every parameter."""
    batch = behind(name, batch_of(name))
    gradient, sums = gradient_step(name, initial(name), batch)
    assert sums["loss"][1] == systems.counted(batch)
    # Beside a loss over tokens there may be figures of questions.
    counts = systems.counted(batch), batch[systems.weight_of(batch)].sum()
    for total, weight in sums.values():
        assert total.shape == weight.shape == ()
        assert total.dtype == weight.dtype == jnp.float32
        assert np.isfinite(total) and float(weight) in counts
    for path, x in jax.tree_util.tree_leaves_with_path(gradient):
        nothing = systems.without_gradient(name, path)
        assert np.isfinite(x).all() and (np.abs(x).max() > 1e-5) != nothing, path


@in_full_if_small
def test_evaluate_is_deterministic(name):
    method = systems.method(name, dropout=0.5)
    params = initial(name)
    batch = systems.batch(name)
    evaluate, loss = jax.jit(method.evaluate), jax.jit(method.loss)
    keys = jax.random.key(0), jax.random.key(1)
    first, second = (evaluate(params, batch, key) for key in keys)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert np.isfinite(jax.tree.leaves(first)).all()
    assert first["loss"][1] == systems.counted(batch)
    batch = systems.prepared(method, params, batch)
    noisy, other = (loss(params, batch, key)["loss"][0] for key in keys)
    assert noisy != other


@every
def test_rows_of_weight_zero_change_nothing(name):
    """In the middle and in front, as behind, whatever they hold."""
    params, batch = initial(name), batch_of(name)
    wanted = gradient_step(name, params, behind(name, batch))
    beside = beside_nothing(name, batch, [0, 2], seed=9)
    got = gradient_step(name, params, beside)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, wanted
    )


@every
def test_loss_falls_in_one_compilation(name):
    method = systems.method(name)
    train, traces = train_step(name)
    state = first_state(name, init(name)(jax.random.key(0)))
    # A queue that fills up makes the loss harder: the in-batch loss tells instead.
    evaluate = jax.jit(method.evaluate)
    means = []
    for number in range(30):
        batch = behind(name, systems.learnable(name, seed=number))
        before, (state, sums) = state.params, train(state, batch)
        if method.moving is not None:
            sums = evaluate(before, batch)
        means.append(float(sums["loss"][0] / sums["loss"][1]))
    assert np.mean(means[-5:]) < 0.6 * np.mean(means[:3])
    assert len(traces) == 1


@every
def test_configuration_through_json(name):
    assert {entry for entry, _ in SYSTEMS.values()} == set(METHODS)  # none forgotten
    with_decoder = hasattr(systems.config(name), "decoder")
    changes = {"cutoffs": (3, 5)} if with_decoder else {}
    config = systems.config(name, **changes)
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    assert systems.rebuilt(type(config), fields) == config


def assert_one_device_equals_several(name):
    """By vmap, for what is not in `SYSTEMS`; tests/multi_device has real devices.

    SGD(1.0) moves the parameters by the gradient itself.
    """
    method, params, batch = systems.method(name), initial(name), systems.batch(name)
    sgd = optax.sgd(1.0)

    def both(params, batch, axis=None):
        start = step.init(params, sgd, moving=method.moving)
        options: dict[str, Any] = {"method": method, "axis": axis}
        state, sums = step.train_step(start, batch, optimizer=sgd, seed=0, **options)
        evaluated = step.eval_step(params, batch, **options)
        return state.params, state.moving, sums, evaluated

    split = {k: x.reshape(2, -1, *x.shape[1:]) for k, x in batch.items()}
    mapped = jax.vmap(
        functools.partial(both, axis="device"), (None, 0), axis_name="device"
    )
    on_several, on_one = jax.jit(mapped)(params, split), jax.jit(both)(params, batch)
    for rank in range(2):
        jax.tree.map(
            lambda a, b, rank=rank: np.testing.assert_allclose(
                a[rank], b, atol=1e-5, rtol=1e-5
            ),
            on_several,
            on_one,
        )
