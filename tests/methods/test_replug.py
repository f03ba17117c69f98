"""REPLUG against the language model run on each document's text by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.methods import lm, replug
from rlm_jax.models.decoder import modern
from tests.methods import batches, systems

ROWS, DOCUMENTS, LENGTH, NEW = 3, 4, 7, 3


def example(seed=0):
    """Texts of unequal lengths; some documents are absent, some tokens not scored."""
    random = np.random.default_rng(seed)
    shape = ROWS, DOCUMENTS
    tokens = random.integers(0, systems.VOCAB, (*shape, LENGTH)).astype(np.int32)
    scores = random.normal(size=shape).astype(np.float32)
    scores[0, 1] = scores[1, 2:] = -np.inf
    mask = np.ones((ROWS, NEW), np.float32)
    mask[1, 0] = 0
    return {
        "tokens": tokens,
        "targets": random.integers(0, systems.VOCAB, (ROWS, NEW)).astype(np.int32),
        "mask": mask,
        "scores": scores,
        "start": random.integers(0, LENGTH - NEW + 1, shape).astype(np.int32),
    }


def decoder(**changes):
    return modern(**systems.SIZES | changes)


def parameters(config, seed=0):
    method = lm.lm(lm.LMConfig(config))
    init = jax.jit(lambda key: jax.tree.map(lambda x: 5 * x, method.init(key)))
    return init(jax.random.key(seed))


def evaluated(config, params, batch, **changes):
    method = replug.replug(replug.REPLUGConfig(config, **changes))
    sums = jax.jit(method.evaluate)(params, batch)
    return {name: float(total) for name, (total, _) in sums.items()}, sums


def separately(config, params, batch):
    """log p of the continuations, float64 [B, K, N], one text at a time."""
    score = lm.lm(lm.LMConfig(config)).score
    assert score is not None
    score = jax.jit(score)
    out = np.zeros((ROWS, DOCUMENTS, NEW))
    for row, document in np.ndindex(ROWS, DOCUMENTS):
        here = batch["start"][row, document] + np.arange(NEW)
        text = batch["tokens"][row, document]
        targets = np.zeros_like(text)
        targets[here] = batch["targets"][row]
        scores = score(params, {"tokens": text[None], "targets": targets[None]})
        log_p = scores.target_score - scores.log_normaliser
        out[row, document] = np.asarray(log_p)[0, here]
    return out


def expected(log_p, scores, mask, temperature=1.0):
    """The sum of -log sum_i w_i p_i over the scored tokens, in loops."""
    total = 0.0
    for row in range(ROWS):
        present = np.flatnonzero(scores[row] > -np.inf)
        weights = np.exp(scores[row, present].astype(np.float64) / temperature)
        weights /= weights.sum()
        for n in np.flatnonzero(mask[row]):
            total -= np.log((weights * np.exp(log_p[row, present, n])).sum())
    return total


@pytest.mark.parametrize(
    ("changes", "temperature"),
    [
        pytest.param({}, 1.0, id="full"),
        pytest.param({}, 0.25, id="temperature"),
        pytest.param({"cutoffs": (4, 8)}, 1.0, id="adaptive"),
        pytest.param({"positions": "learned", "max_length": LENGTH}, 1.0, id="learned"),
    ],
)
def test_each_document_by_itself(changes, temperature):
    config, batch = decoder(**changes), example()
    params = parameters(config)
    log_p = separately(config, params, batch)
    got, sums = evaluated(config, params, batch, temperature=temperature)
    scores, mask = batch["scores"], batch["mask"]
    first = np.where(scores == scores.max(1, keepdims=True), 0, -np.inf)
    equal = np.where(scores > -np.inf, 0, -np.inf)
    wanted = {
        "loss": expected(log_p, scores, mask, temperature),
        "first_loss": expected(log_p, first, mask),
        "uniform_loss": expected(log_p, equal, mask),
    }
    assert got == pytest.approx(wanted, rel=1e-5)
    assert len({round(x, 3) for x in wanted.values()}) == 3
    assert all(weight == mask.sum() for _, weight in sums.values())


def test_what_follows_or_is_absent_is_never_seen():
    config, batch = decoder(), example()
    params = parameters(config)
    other = {name: x.copy() for name, x in batch.items()}
    behind = np.arange(LENGTH) >= batch["start"][..., None] + NEW
    other["tokens"] = np.where(behind, 0, batch["tokens"])
    other["tokens"][0, 1] = 5  # absent
    assert (other["tokens"] != batch["tokens"]).any()
    assert evaluated(config, params, other)[0] == evaluated(config, params, batch)[0]


def test_without_a_start_the_continuation_comes_last():
    config, batch = decoder(), example()
    batch["start"][:] = LENGTH - NEW
    without = {name: x for name, x in batch.items() if name != "start"}
    params = parameters(config)
    assert evaluated(config, params, without)[0] == evaluated(config, params, batch)[0]


def test_one_document_is_the_language_model():
    config, batch = decoder(), example()
    batch["scores"][:, 1:] = -np.inf
    batch["scores"][:, 0] = [1, -7, 30]
    params = parameters(config)
    got, _ = evaluated(config, params, batch)
    log_p = separately(config, params, batch)[:, 0]
    wanted = pytest.approx(-(log_p * batch["mask"]).sum(), rel=1e-5)
    assert got == {name: wanted for name in ("loss", "first_loss", "uniform_loss")}


@pytest.mark.parametrize(
    ("scores", "wanted"),
    [pytest.param(-np.inf, np.inf, id="none"), pytest.param(np.nan, np.nan, id="nan")],
)
def test_what_cannot_be_weighed_shows_in_the_loss(scores, wanted):
    """And is nothing where the tokens do not count."""
    config, batch = decoder(), example()
    params = parameters(config)
    batch["scores"][2] = scores
    np.testing.assert_equal(evaluated(config, params, batch)[0]["loss"], wanted)
    batch["mask"][2] = 0
    assert np.isfinite(evaluated(config, params, batch)[0]["loss"])


def test_parameters_and_scores_are_the_language_models():
    config = decoder()
    ours, plain = replug.replug(replug.REPLUGConfig(config)), lm.lm(lm.LMConfig(config))
    params, wanted = (jax.jit(m.init)(jax.random.key(3)) for m in (ours, plain))
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    assert ours.score is not None and plain.score is not None
    batch = batches.tokens(0, 2)
    jax.tree.map(
        np.testing.assert_array_equal,
        jax.jit(ours.score)(params, batch),
        jax.jit(plain.score)(params, batch),
    )


def test_any_language_models_probabilities_are_mixed():
    """The ensemble of given log-probabilities, in NumPy, is that of the method."""
    config, batch = decoder(), example()
    params = parameters(config)
    log_p = separately(config, params, batch).astype(np.float32)
    log_p[0, 1] = np.nan  # absent
    mixed = replug.ensemble(batch["scores"], log_p, temperature=0.25)
    wanted = expected(log_p, batch["scores"], batch["mask"], temperature=0.25)
    got = -(np.asarray(mixed) * batch["mask"]).sum()
    assert got == pytest.approx(wanted, rel=1e-5)
    loss = evaluated(config, params, batch, temperature=0.25)[0]["loss"]
    assert got == pytest.approx(loss, rel=1e-5)
    weights = np.exp(replug.log_weights(batch["scores"], temperature=0.25))
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(weights == 0, np.isneginf(batch["scores"]))


def test_continuations_by_the_batch_and_one_by_one():
    config, batch = decoder(), example()
    params = parameters(config)
    got = replug.continuation_log_probs(config)(
        params, jax.tree.map(jnp.asarray, batch)
    )
    assert got.shape == (ROWS, DOCUMENTS, NEW) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, separately(config, params, batch), rtol=1e-5)


def test_a_continuation_longer_than_the_text():
    batch = example() | {"targets": np.zeros((ROWS, LENGTH + 1), np.int32)}
    config = decoder()
    method = replug.replug(replug.REPLUGConfig(config))
    with pytest.raises(UserError, match="8 tokens are to be predicted in texts of 7"):
        jax.eval_shape(method.evaluate, parameters(config), batch)
