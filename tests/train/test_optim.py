"""Optimisers and schedules against their formulas, written out in NumPy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlm_jax.errors import UserError
from rlm_jax.train import loop, metrics, optim
from rlm_jax.train.optim import OptimConfig, optimizer, schedule
from tests.train import toy

PARAMS = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([0.5])}
GRADIENTS = [
    {"kernel": jnp.array([[0.3, 0.1]]), "bias": jnp.array([-0.2])},
    {"kernel": jnp.array([[-0.4, 0.2]]), "bias": jnp.array([0.1])},
]


def after(config: OptimConfig) -> dict[str, np.ndarray]:
    transform, params = optimizer(config, 10), PARAMS
    state = transform.init(params)
    for gradient in GRADIENTS:
        updates, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return jax.tree.map(np.asarray, params)


def constant(**options) -> OptimConfig:
    defaults = {"learning_rate": 0.1, "schedule": "constant", "clip_norm": 0.0}
    return OptimConfig(**(defaults | options))


def expected(update) -> dict[str, np.ndarray]:
    result = {}
    for name, start in PARAMS.items():
        p, memory = np.asarray(start, np.float64), {}
        for t, gradient in enumerate(GRADIENTS):
            g = np.asarray(gradient[name], np.float64)
            p = p + update(p, g, t + 1, memory, p.ndim >= 2)
        result[name] = p
    return result


def adam_direction(g, t, memory, b1=0.9, b2=0.98, eps=1e-8):
    memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
    memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g * g
    return memory["m"] / (1 - b1**t) / (np.sqrt(memory["v"] / (1 - b2**t)) + eps)


def nesterov(p, g, t, memory, decays):
    # The form of Sutskever et al.: v' = mu v - lr g, and p moves by mu v' - lr g.
    memory["v"] = 0.9 * memory.get("v", 0) - 0.1 * g
    return 0.9 * memory["v"] - 0.1 * g


@pytest.mark.parametrize(
    ("config", "update"),
    [
        (
            constant(optimizer="adamw", weight_decay=0.5),
            lambda p, g, t, memory, decays: (
                -0.1 * (adam_direction(g, t, memory) + 0.5 * decays * p)
            ),
        ),
        (
            constant(optimizer="adam", weight_decay=0.5),
            lambda p, g, t, memory, decays: (
                -0.1 * adam_direction(g + 0.5 * decays * p, t, memory)
            ),
        ),
        (constant(optimizer="nag", momentum=0.9), nesterov),
        (
            constant(optimizer="sgd", weight_decay=0.5),
            lambda p, g, t, memory, decays: -0.1 * (g + 0.5 * decays * p),
        ),
    ],
    ids=["adamw", "adam", "nag", "sgd"],
)
def test_two_updates(config, update):
    found, wanted = after(config), expected(update)
    for name in PARAMS:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5)


def test_clipping_bounds_the_global_norm():
    found = after(constant(optimizer="sgd", clip_norm=0.01, learning_rate=1.0))
    norm = optax.tree.norm
    moved = sum(np.asarray(g["kernel"]) * 0.01 / norm(g) for g in GRADIENTS)
    np.testing.assert_allclose(found["kernel"], PARAMS["kernel"] - moved, rtol=1e-5)


def cosine(fraction):
    return 0.1 + 0.9 * (1 + math.cos(math.pi * fraction)) / 2


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("constant", {4: 1.0, 24: 1.0, 99: 1.0}),
        ("linear", {4: 1.0, 14: 0.55, 24: 0.1, 99: 0.1}),
        ("cosine", {4: 1.0, 9: cosine(0.25), 14: 0.55, 24: 0.1, 99: 0.1}),
        ("inverse_sqrt", {4: 1.0, 16: 0.5, 36: 1 / 3, 10_000: 0.1}),
        # Periods of 20, 40 and 80 steps begin after 4, 24 and 64 steps.
        (
            "cosine_restarts",
            {4: 1.0, 14: 0.55, 24: 0.5, 44: 0.55 / 2, 64: 0.25, 104: 0.55 / 4},
        ),
    ],
)
def test_schedule(name, steps):
    config = OptimConfig(
        learning_rate=1.0,
        schedule=name,
        warmup_steps=4,
        decay_steps=20,
        min_learning_rate=0.1,
        restart_shrink=0.5,
    )
    rate = schedule(config, 1000)
    warm = [float(rate(step)) for step in range(4)]
    np.testing.assert_allclose(warm, [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    for step, value in steps.items():
        assert float(jax.jit(rate)(step)) == pytest.approx(value, rel=1e-4), step


def test_decay_ends_with_training_unless_told_otherwise():
    rate = schedule(OptimConfig(learning_rate=1.0, warmup_steps=10), 110)
    assert float(rate(60)) == pytest.approx(0.5)
    assert float(rate(110)) == pytest.approx(0, abs=1e-6)


def test_restarts_of_equal_length():
    config = OptimConfig(
        learning_rate=1.0,
        schedule="cosine_restarts",
        decay_steps=7,
        restart_multiplier=1.0,
    )
    rate = schedule(config, 100)
    assert [float(rate(step)) for step in (0, 7, 70)] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "Unknown optimizer 'lion'"),
        ({"schedule": "step"}, "Unknown schedule 'step'"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"clip_norm": -1.0}, "clip_norm"),
    ],
)
def test_impossible_configs(options, message):
    with pytest.raises(UserError, match=message):
        optimizer(OptimConfig(**options), 10)


def test_what_is_not_trainable_does_not_decay():
    params = {"still": PARAMS["kernel"], "moves": PARAMS["kernel"]}
    transform = optimizer(
        constant(weight_decay=0.5),
        10,
        trainable=lambda params: {"still": False, "moves": True},
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates: Any = transform.update(zeros, transform.init(params), params)[0]
    assert (updates["still"] == 0).all()
    np.testing.assert_allclose(updates["moves"], -0.05 * params["moves"], rtol=1e-6)


PARTS = {"kernel": constant(optimizer="sgd", learning_rate=0.5)}


def moved(transform, steps=2) -> Any:
    """The parameters after some steps, and the tests' two gradients in turn."""
    params, state = PARAMS, transform.init(PARAMS)
    for gradient in (GRADIENTS * steps)[:steps]:
        updates, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_parts_move_as_each_would_alone():
    base = constant(weight_decay=0.5, clip_norm=0.01)
    both = moved(optimizer(base, 10, parts=PARTS))
    kernel = moved(optimizer(PARTS["kernel"], 10))["kernel"]
    np.testing.assert_array_equal(both["kernel"], kernel)
    # The rest is clipped by its own norm, not by that of all.
    bias: Any = {"bias": PARAMS["bias"]}
    transform = optimizer(base, 10)
    state = transform.init(bias)
    for gradient in GRADIENTS:
        own = {"bias": gradient["bias"]}
        updates, state = transform.update(own, state, bias)
        bias = optax.apply_updates(bias, updates)
    np.testing.assert_array_equal(both["bias"], bias["bias"])


def test_parts_by_a_function_and_frozen_ones():
    def part_of(params):
        return jax.tree.map(lambda x: "wide" if x.ndim > 1 else "narrow", params)

    frozen = {"wide": OptimConfig(optimizer="frozen")}
    found = moved(optimizer(constant(), 10, parts=frozen, part_of=part_of))
    np.testing.assert_array_equal(found["kernel"], PARAMS["kernel"])
    np.testing.assert_array_equal(
        found["bias"], moved(optimizer(constant(), 10))["bias"]
    )


def test_each_part_has_a_schedule_of_its_own():
    parts = {
        "kernel": constant(learning_rate=0.5),
        "bias": OptimConfig(optimizer="frozen"),
    }
    base = OptimConfig(learning_rate=1.0, schedule="linear")
    rates = optim.schedules(base, 10, parts)
    assert isinstance(rates, dict)
    values = {name: float(rate(5)) for name, rate in rates.items()}
    assert values == {"rest": 0.5, "kernel": 0.5}
    alone: Any = optim.schedules(base, 10)
    assert float(alone(5)) == 0.5


def test_a_part_without_parameters_is_refused():
    parts = {"retriever": constant()}
    with pytest.raises(UserError, match="called retriever; choose parts from bias, ke"):
        optimizer(constant(), 10, parts=parts).init(PARAMS)


def test_parts_are_trained_saved_and_logged(tmp_path):
    config = OptimConfig(learning_rate=0.1, schedule="constant")
    parts = {"embed": OptimConfig(optimizer="frozen"), "out": config}

    def run(workdir, *stops):
        for stop in stops:
            state = loop.train(
                toy.method(),
                optimizer(config, 6, parts=parts),
                toy.batch_at,
                config=loop.TrainConfig(steps=stop, checkpoint_every=2, log_every=3),
                workdir=workdir,
                schedule=optim.schedules(config, 6, {"out": config}),
            )
        return state.params

    whole, resumed = run(tmp_path / "a", 6), run(tmp_path / "b", 4, 6)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    fresh = jax.jit(toy.method().init)(jax.random.key(0))
    np.testing.assert_array_equal(whole["embed"], fresh["embed"])
    assert (whole["out"]["kernel"] != fresh["out"]["kernel"]).any()
    rows = metrics.read(tmp_path / "a")
    assert rows[0]["learning_rate/out"] == pytest.approx(0.1)
    assert rows[0]["learning_rate/rest"] == pytest.approx(0.1)
