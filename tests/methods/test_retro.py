"""RETRO-fitting: what moves and what stays; off; where it starts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.methods import lm, retro
from rlm_jax.models import layers
from rlm_jax.models.decoder import Block
from rlm_jax.models.neighbours import (
    ChunkedCrossAttention,
    NeighbourEncoder,
    NeighbourEncoderConfig,
    filled,
)
from rlm_jax.train import optim, step
from tests.methods import batches, systems


def fitted(**model):
    config = systems.config("retro", **model)
    config.trained = "retrieval"
    return config


@functools.cache
def initial():
    return jax.jit(systems.method("retro").init)(jax.random.key(0))


def scores(config, params, batch):
    method = retro.retro(config)
    assert method.score is not None
    return jax.jit(method.score)(params, batch)


def randomised():
    random = np.random.default_rng(3)
    return jax.tree.map(
        lambda x: (0.4 * random.normal(size=x.shape)).astype(np.float32), initial()
    )


def test_it_starts_as_the_language_model_of_the_same_key():
    config = systems.config("retro")
    plain = lm.lm(lm.LMConfig(config.decoder))
    params = jax.jit(plain.init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, initial()["decoder"], params)
    batch = systems.batch("retro")
    assert plain.score is not None
    found = scores(config, initial(), batch)
    wanted = jax.jit(plain.score)(params, batch)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_batch_without_neighbours_is_the_language_models():
    params, batch = randomised(), batches.tokens(0, systems.ROWS)
    config = systems.config("retro")
    plain = jax.jit(lm.lm(lm.LMConfig(config.decoder)).evaluate)
    off = jax.jit(retro.retro(config).evaluate)
    wanted = plain(params["decoder"], batch)
    jax.tree.map(np.testing.assert_array_equal, off(params, batch), wanted)
    batch = systems.batch("retro")
    batch["neighbour_mask"] = np.zeros_like(batch["neighbour_mask"])
    jax.tree.map(np.testing.assert_array_equal, off(params, batch), wanted)
    assert off(params, systems.batch("retro"))["loss"][0] != wanted["loss"][0]


def test_fitting_moves_the_retrieval_parts_and_nothing_else():
    """With weight decay, which would move what has no gradient."""
    config = fitted()
    method = retro.retro(config)
    adamw = optim.optimizer(
        optim.OptimConfig(learning_rate=0.03, schedule="constant", weight_decay=0.5),
        10,
        trainable=retro.TRAINED[config.trained],
    )
    train = jax.jit(
        functools.partial(step.train_step, method=method, optimizer=adamw, seed=0)
    )
    params, batch = randomised(), systems.batch("retro")
    state = step.init(params, adamw)
    means = []
    for _ in range(10):
        state, sums = train(state, batch)
        means.append(float(sums["loss"][0] / sums["loss"][1]))
    assert means[-1] < 0.95 * means[0]
    jax.tree.map(
        np.testing.assert_array_equal, state.params["decoder"], params["decoder"]
    )
    for name in params.keys() - {"decoder"}:
        for path, x in jax.tree_util.tree_leaves_with_path(params[name]):
            after = state.params[name]
            for part in path:
                after = after[part.key]
            assert np.abs(after - x).max() > 1e-4, (name, path)


def test_gradients_of_fitting_are_those_of_training():
    """For the parts that it trains; the rest has none."""
    params, batch = randomised(), systems.batch("retro")

    def gradient(config):
        def total(params):
            method = retro.retro(config)
            return method.loss(params, batch, jax.random.key(1))["loss"][0]

        return jax.jit(jax.grad(total))(params)

    found, wanted = gradient(fitted()), gradient(systems.config("retro"))
    assert not any(np.any(x) for x in jax.tree.leaves(found.pop("decoder")))
    wanted.pop("decoder")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found,
        wanted,
    )
    assert all(np.abs(x).max() > 1e-5 for x in jax.tree.leaves(found))


@pytest.mark.slow
def test_rematerialisation_changes_nothing():
    params, batch = randomised(), systems.batch("retro")

    def gradient(**model):
        method = systems.method("retro", dropout=0.3, **model)

        def total(params):
            return method.loss(params, batch, jax.random.key(1))["loss"][0]

        return jax.jit(jax.grad(total))(params)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient(remat=True),
        gradient(),
    )


def test_bfloat16_compute():
    params, batch = randomised(), systems.batch("retro")
    half = scores(systems.config("retro", dtype="bfloat16"), params, batch)
    full = scores(systems.config("retro"), params, batch)
    assert {x.dtype for x in half} == {np.dtype("float32")}
    for ours, theirs in zip(half, full, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.1)


def test_around_a_trained_decoder():
    params = initial()
    trained = jax.tree.map(lambda x: x + 1, params["decoder"])
    found = retro.around(trained, params)
    assert found["decoder"] is trained and found["encoder"] is params["encoder"]
    deeper = trained | {"block_1": trained["block_0"]}
    with pytest.raises(UserError, match="take the configuration that it was trained"):
        retro.around(deeper, params)


def warm(**model):
    config = systems.config("retro", **{"num_layers": 2} | model)
    config.cca_layers = (1, 2)
    config.encoder = NeighbourEncoderConfig(num_layers=1)
    return config


def warm_started(config):
    params = jax.jit(retro.retro(config).init)(jax.random.key(0))
    random = np.random.default_rng(4)
    trained = jax.tree.map(
        lambda x: (0.4 * random.normal(size=x.shape)).astype(np.float32),
        params["decoder"],
    )
    return retro.warm_started(config, retro.around(trained, params))


def applied(module, params, *args) -> np.ndarray:
    return np.asarray(module.apply({"params": params}, *args))


GROUPED = dict(num_heads=4, num_kv_heads=2, rotary_base=50.0)


def test_warm_started_cross_attention_is_the_layers_self_attention():
    """The last of a row's states attends to those before it, not to itself."""
    config = warm(**GROUPED)
    config.chunk_length = 4
    params = warm_started(config)
    decoder, sizes, m, _ = retro.model_sizes(config)
    layer, cross = params["decoder"]["block_1"], params["cross_block_1"]
    states = np.random.default_rng(5).normal(size=(1, 2 * m + 1, decoder.width))
    states = states.astype(np.float32)
    positions = np.append(np.arange(2 * m), m - 1)
    attention = layers.SelfAttention(
        num_heads=decoder.num_heads,
        num_kv_heads=decoder.num_kv_heads,
        bias=False,
        dtype="float32",
        causal=False,
        rotary=True,
        rotary_base=decoder.rotary_base,
    )
    # Nothing is worth as much as all slots of the same logit would be; then, none.
    even = np.log(config.k * 2 * m)
    np.testing.assert_allclose(cross["nothing"]["bias"], even, rtol=1e-6)
    assert not cross["nothing"]["kernel"].any()
    nothing = {**cross["nothing"], "bias": np.full_like(cross["nothing"]["bias"], -99)}
    norm, ones = layers.norm("rms", "float32"), {"scale": np.ones(decoder.width)}
    wanted = applied(
        attention,
        layer["attention"],
        applied(norm, layer["attention_norm"], states),
        positions,
        (np.arange(2 * m + 1) < 2 * m)[None],
    )
    found = applied(
        ChunkedCrossAttention(decoder, filled(sizes, decoder), m),
        {**cross, "nothing": nothing},
        np.repeat(states[:, -1:], m, axis=1),
        applied(norm, ones, states[:, None, : 2 * m]),
        np.ones((1, 1, 2 * m), np.int32),
        True,
    )
    np.testing.assert_allclose(found[0, -1], wanted[0, -1], rtol=1e-4, atol=1e-5)
    assert np.abs(wanted[0, -1]).max() > 0.1
    # What the encoder's one layer has left behind starts as without.
    assert not params["cross_block_0"]["attention"]["out"]["kernel"].any()


def test_a_warm_started_encoder_is_the_decoders_layer():
    """At the last token, which sees all others either way; blind to its chunk."""
    config = warm(**GROUPED)
    params = warm_started(config)
    decoder, sizes, *_ = retro.model_sizes(config)
    blind = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if "'cross_attention'" in str(path) else x,
        params["encoder"],
    )
    x = np.random.default_rng(6).normal(size=(3, 5, decoder.width)).astype(np.float32)
    found = applied(
        NeighbourEncoder(decoder, filled(sizes, decoder)),
        blind,
        x[:, None],
        np.ones((3, 1, 5), np.int32),
        x,
        True,
    )
    block = Block(decoder).bind({"params": params["decoder"]["block_0"]})
    wanted, _ = block(jnp.asarray(x), jnp.arange(5), True)
    norm = layers.norm("rms", "float32")
    wanted = applied(norm, {"scale": np.ones(decoder.width)}, wanted)
    np.testing.assert_allclose(found[:, 0, -1], wanted[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "encoder", "message"),
    [
        ({}, dict(width=4), "width has to be the decoder's, 8, and is 4"),
        ({}, dict(num_heads=1), "set encoder.num_heads to 0"),
        ({}, dict(num_layers=2), "encoder's 2 layers .* cross-attention, 2; lower"),
        (dict(positions="learned"), {}, "positions are learned"),
        (dict(head_width=2), {}, "heads of 2 do not make up its width of 8"),
        (dict(norm="layer"), {}, "norm is 'layer' and its bias False"),
        (dict(bias=True), {}, "its bias True, and cross-attention has no biases"),
    ],
    ids="width num_heads num_layers positions head_width norm bias".split(),
)
def test_layers_that_are_no_warm_start_are_refused(model, encoder, message):
    config = warm(**model)
    config.encoder = NeighbourEncoderConfig(**{"num_layers": 1, **encoder})
    with pytest.raises(UserError, match=message):
        retro.check_warm_start(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(trained="encoder"), "trained is 'encoder'; choose one of all, retrieval"),
        (dict(cca_layers=()), "no layer of 1 has cross-attention"),
    ],
    ids=["trained", "cca_layers"],
)
def test_what_does_not_fit_is_refused(changes, message):
    config = systems.config("retro")
    for name, value in changes.items():
        setattr(config, name, value)
    with pytest.raises(UserError, match=message):
        retro.retro(config)
