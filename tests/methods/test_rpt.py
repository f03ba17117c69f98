"""RPT's method: where it starts, what it is given while it trains, window by window."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.methods import lm, rpt, rpt_reading
from rlm_jax.methods.rpt import SamplingConfig
from rlm_jax.ops import self_retrieval
from rlm_jax.ops.ranking import Candidates
from tests.methods import systems
from tests.methods.batches import CHUNK, WINDOW


@functools.cache
def initial():
    return jax.device_get(jax.jit(systems.method("rpt").init)(jax.random.key(0)))


@functools.cache
def randomised():
    random = np.random.default_rng(3)
    return jax.tree.map(
        lambda x: (x + 0.4 * random.normal(size=x.shape)).astype(np.float32), initial()
    )


def config(**changes):
    return dataclasses.replace(systems.config("rpt"), **changes)


def loss(settings, batch, key=1):
    run = jax.jit(rpt.rpt(settings).loss)
    return run(randomised(), batch, jax.random.key(key))


def test_it_starts_as_the_language_model_of_the_same_key():
    plain = lm.lm(lm.LMConfig(systems.config("rpt").decoder))
    params, batch = jax.jit(plain.init)(jax.random.key(0)), systems.batch("rpt")
    jax.tree.map(np.testing.assert_array_equal, initial()["decoder"], params)
    wanted = jax.jit(plain.evaluate)(params, batch)["loss"]
    found = jax.jit(systems.method("rpt").evaluate)(initial(), batch)["loss"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    none = rpt.rpt(config(neighbours="none"))
    alone = jax.jit(none.loss)(randomised(), batch, jax.random.key(1))
    params = randomised()["decoder"]
    wanted = jax.jit(plain.evaluate)(params, batch)["loss"]
    np.testing.assert_allclose(alone["loss"], wanted, rtol=1e-4)


def test_sampling_gives_targets_or_what_is_predicted():
    """With probability 0 the best targets, with 1 the best scores."""
    batch = systems.batch("rpt")
    visible = self_retrieval.allowed("previous_windows", 8, 0, 2, 8)
    visible = np.broadcast_to(visible, (len(batch["mask"]), 8, 8))
    told, free = (
        loss(config(sampling=SamplingConfig(p, p, 1)), batch)["lm_loss"] for p in (0, 1)
    )
    evaluated = jax.jit(systems.method("rpt").evaluate)(randomised(), batch)["loss"]
    np.testing.assert_allclose(free, evaluated, rtol=1e-5)
    assert abs(told[0] - free[0]) > 1e-3
    # The same neighbours, given by hand.
    at = self_retrieval.at_distances(batch["candidates"], visible)
    some = np.any(batch["mask"].reshape(len(visible), 8, -1), -1, keepdims=True)
    best = rpt.best_targets(
        Candidates(at.places, batch["targets_of_candidates"], at.present & some),
        visible,
        2,
    )
    by_hand = self_retrieval.to_distances(best, 8)
    # Where nobody scored anything a chunk reads what it predicts.
    scored = (np.asarray(at.present) & some).any(-1, keepdims=True)
    predicted = predictions(batch)
    given = {**batch, "neighbours": np.where(scored, by_hand, predicted)}
    wanted = jax.jit(systems.method("rpt").evaluate)(randomised(), given)["loss"]
    np.testing.assert_allclose(told, wanted, rtol=1e-5)


@functools.cache
def readers():
    return rpt_reading.reader(systems.config("rpt"), 8)


def windows(batch, **more):
    """What `rpt_reading` says of the batch's rows, window by window."""
    state, out = readers().empty(len(batch["tokens"])), []
    per_window = WINDOW // CHUNK
    for at in range(0, batch["tokens"].shape[1], WINDOW):
        part = {x: batch[x][:, at : at + WINDOW] for x in ("tokens", "targets")}
        first = at // CHUNK
        for name, x in more.items():
            part[name] = x[:, first : first + per_window]
        window, state = readers().read(randomised(), part, state)
        out.append(window)
    return out


def predictions(batch):
    return np.concatenate([x.neighbours for x in windows(batch)], axis=1)


def test_windows_say_what_the_row_says():
    batch = systems.batch("rpt")
    score = systems.method("rpt").score
    assert score is not None
    wanted = jax.jit(score)(randomised(), batch)
    found = np.concatenate([x.log_probs for x in windows(batch)], axis=1)
    log_probs = wanted.target_score - wanted.log_normaliser
    np.testing.assert_allclose(found, log_probs, rtol=1e-4, atol=1e-4)

    # Neighbours that are given are those that are read.
    given = np.zeros((len(found), 8, 2), np.int32)
    given[:, 4:, 0] = 4
    wanted = jax.jit(score)(randomised(), {**batch, "neighbours": given})
    log_probs = wanted.target_score - wanted.log_normaliser
    read = windows(batch, neighbours=given)
    found = np.concatenate([x.log_probs for x in read], axis=1)
    np.testing.assert_allclose(found, log_probs, rtol=1e-4, atol=1e-4)
    shown = np.concatenate([x.neighbours for x in read], axis=1)
    np.testing.assert_array_equal(shown, given)


def test_what_follows_a_position_is_predicted_without_what_stands_after_it():
    batch, last = systems.batch("rpt"), 2
    row = batch["tokens"][:1, :WINDOW].copy()
    state = readers().empty(1)
    log_probs, _, _ = readers().predict(randomised(), row, np.int32(last), state)
    row[:, last + 1 :] = 0
    again, _, _ = readers().predict(randomised(), row, np.int32(last), state)
    np.testing.assert_array_equal(log_probs, again)
    np.testing.assert_allclose(np.exp(log_probs).sum(), 1, rtol=1e-4)


@pytest.mark.slow
def test_rematerialisation_and_bfloat16():
    batch = systems.batch("rpt")

    def gradient(**model):
        method = systems.method("rpt", dropout=0.3, **model)

        def total(params):
            return method.loss(params, batch, jax.random.key(1))["loss"][0]

        return jax.jit(jax.grad(total))(randomised())

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        gradient(remat=True),
        gradient(),
    )
    score = systems.method("rpt", dtype="bfloat16").score
    assert score is not None
    half = jax.jit(score)(randomised(), batch)
    assert {x.dtype for x in half} == {np.dtype("float32")}


def test_a_warm_start_reads_as_it_attends():
    """The cross-attention is the layer's own attention; the augmentation adds 0."""
    settings = config()
    params = rpt.warm_started(settings, randomised())
    decoder = params["decoder"]["block_1"]
    cross = params["cross_block_1"]["attention"]
    width = settings.decoder.width
    qkv = decoder["attention"]["qkv"]["kernel"]
    np.testing.assert_array_equal(cross["query"]["kernel"], qkv[:, :width])
    scale = decoder["attention_norm"]["scale"][:, None]
    keys = scale * qkv[:, width:]
    np.testing.assert_allclose(cross["key_value"]["kernel"], keys, rtol=1e-6)
    for name in ("self_attention", "cross_attention"):
        assert not np.any(params["augmenter"][name]["out"]["kernel"])
    assert (params["augmenter"]["gate"]["bias"] == rpt.OPEN_GATE * width).all()
    with pytest.raises(UserError, match="set method.reader_heads"):
        rpt.warm_started(config(reader_heads=1, reader_head_width=2), randomised())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neighbours": "some"}, "neighbours is 'some'"),
        ({"retrieval_window": "later"}, "retrieval_window is 'later'"),
        ({"lower_layers": 2}, "2 of 2 layers"),
        ({"sampling": SamplingConfig(0.5, 1.5, 10)}, "max_probability is 1.5"),
        (
            {"auxiliary": rpt.AuxiliaryConfig(warmup_steps=0)},
            "warmup_steps is 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        rpt.rpt(config(**changes))


def test_given_neighbours_have_to_be_given():
    with pytest.raises(UserError, match="neighbours are given and the batch has none"):
        loss(config(neighbours="given"), systems.batch("rpt"))
