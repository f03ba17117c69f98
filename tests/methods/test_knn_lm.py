"""kNN-LM: attaching neighbours and evaluating, against NumPy."""

import jax
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.methods.knn_lm import KnnLMConfig, attach, knn_lm
from rlm_jax.models.decoder import modern
from tests.methods import systems

K, TEMPERATURE, WEIGHT = 3, 2.0, 0.25


def build(**changes):
    decoder = modern(**systems.SIZES | changes)
    return knn_lm(KnnLMConfig(decoder, K, "l2", TEMPERATURE, WEIGHT))


@pytest.fixture
def found():
    random = np.random.default_rng(0)
    shape = systems.ROWS * systems.LENGTH, K
    ids = random.integers(0, 40, shape).astype(np.int32)
    ids[0], ids[1, 2:], ids[5, 1:] = -1, -1, -1
    scores = -random.random(shape).astype(np.float32) * 5
    return Neighbours(np.where(ids < 0, -np.inf, scores), ids)


def test_attach_and_evaluate(found):
    values = np.random.default_rng(1).integers(0, systems.VOCAB, 40).astype(np.int32)
    method, batch = build(), systems.batch()
    assert method.retrieval is not None and method.score is not None
    assert method.retrieval.k == K
    params = jax.jit(method.init)(jax.random.key(0))
    sums = jax.jit(method.evaluate)(params, attach(batch, found, values))
    scores = jax.jit(method.score)(params, batch)
    log_p = np.asarray(scores.target_score - scores.log_normaliser, np.float64)
    mixed = plain = 0.0
    for b, t in np.ndindex(batch["targets"].shape):
        row = b * systems.LENGTH + t
        hit = whole = 0.0
        for i, s in zip(found.ids[row], found.scores[row], strict=True):
            if i >= 0:
                weight = np.exp(s / TEMPERATURE)
                whole += weight
                hit += weight * (values[i] == batch["targets"][b, t])
        knn = hit / whole if whole else 0.0
        p = (1 - WEIGHT) * np.exp(log_p[b, t]) + WEIGHT * knn
        mixed -= batch["mask"][b, t] * np.log(p)
        plain -= batch["mask"][b, t] * log_p[b, t]
    assert float(sums["loss"][0]) == pytest.approx(mixed, rel=1e-5)
    assert float(sums["vocabulary_loss"][0]) == pytest.approx(plain, rel=1e-5)
    assert abs(mixed - plain) > 0.1


def test_values_above_int16_and_absent_ids(found):
    values = np.full(40, 267_743, np.int32)
    values[:2] = 32_768, 65_536
    batch = systems.batch()
    attached = attach(batch, found, values)
    shape = (systems.ROWS, systems.LENGTH, K)
    assert attached["neighbour_values"].dtype == np.int32
    assert attached["neighbour_similarities"].dtype == np.float32
    got = attached["neighbour_values"]
    assert got.shape == attached["neighbour_similarities"].shape == shape
    absent = found.ids.reshape(shape) < 0
    assert absent.sum() == 6
    assert (got[absent] == -1).all()
    assert np.isneginf(attached["neighbour_similarities"][absent]).all()
    np.testing.assert_array_equal(got[~absent], values[found.ids[found.ids >= 0]])
    assert set(batch) < set(attached)


def test_training_is_the_plain_language_model():
    method = build()
    batch = systems.batch()
    params = jax.jit(method.init)(jax.random.key(0))
    plain = systems.method("lm")
    key = jax.random.key(0)
    ours, theirs = (
        jax.jit(m.loss)(params, batch, key)["loss"] for m in (method, plain)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_queries_and_keys_are_the_scored_keys():
    method, batch = build(), systems.batch()
    assert method.retrieval is not None and method.score is not None
    params = jax.jit(method.init)(jax.random.key(0))
    wanted = jax.jit(method.score)(params, batch).keys
    retrieval = method.retrieval
    for part, encode in (
        (retrieval.query_params, retrieval.encode_queries),
        (retrieval.passage_params, retrieval.encode_keys),
    ):
        got = jax.jit(encode)(part(params), batch)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("changes", [{"weight": 1.2}, {"temperature": 0.0}])
def test_numbers_that_make_no_distribution_are_refused(changes):
    with pytest.raises(UserError, match="a weight from 0 to 1"):
        knn_lm(KnnLMConfig(**changes))
