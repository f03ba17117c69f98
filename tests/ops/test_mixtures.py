"""kNN distributions and mixtures against float64 loops, and at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.ops import mixtures

N, K, WIDTH, VOCAB = 5, 6, 3, 4


@pytest.fixture
def case():
    random = np.random.default_rng(0)
    return (
        random.normal(size=(N, WIDTH)).astype(np.float32),
        random.normal(size=(N, K, WIDTH)).astype(np.float32),
        random.integers(0, VOCAB, (N, K)).astype(np.int32),
        random.integers(0, VOCAB, N).astype(np.int32),
    )


def expected_probability(similarities, values, target, temperature):
    hit = whole = 0.0
    for s, v in zip(similarities, values, strict=True):
        weight = np.exp(float(s) / temperature)
        whole += weight
        hit += weight * (v == target)
    return hit / whole


def test_similarities(case):
    queries, keys, *_ = case
    l2 = mixtures.negative_squared_l2(queries, keys)
    product = mixtures.inner_product(queries, keys)
    for i, j in np.ndindex(N, K):
        q, k = queries[i].astype(np.float64), keys[i, j].astype(np.float64)
        assert l2[i, j] == pytest.approx(-sum((q - k) ** 2), rel=1e-5)
        assert product[i, j] == pytest.approx(q @ k, rel=1e-4, abs=1e-6)


def test_near_neighbours_of_long_vectors_keep_their_distance():
    query = np.full((1, 8), 1000.0, np.float32)
    key = query[:, None] + np.array([0.25] + [0] * 7, np.float32)
    assert mixtures.negative_squared_l2(query, key)[0, 0] == -0.0625


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_log_probs_and_distribution(case, temperature):
    queries, keys, values, targets = case
    similarities = mixtures.negative_squared_l2(queries, keys)
    log_p = mixtures.knn_log_probs(
        similarities, values, targets, temperature=temperature
    )
    whole = mixtures.knn_distribution(
        similarities, values, VOCAB, temperature=temperature
    )
    for i in range(N):
        for y in range(VOCAB):
            wanted = expected_probability(similarities[i], values[i], y, temperature)
            assert whole[i, y] == pytest.approx(wanted, rel=1e-5)
        wanted = expected_probability(
            similarities[i], values[i], targets[i], temperature
        )
        assert np.exp(log_p[i]) == pytest.approx(wanted, rel=1e-5)


def test_absent_neighbours_count_for_nothing(case):
    queries, keys, values, targets = case
    similarities = np.array(mixtures.negative_squared_l2(queries, keys))
    without = mixtures.knn_log_probs(similarities[:, :4], values[:, :4], targets)
    similarities[:, 4:], values[:, 4:] = -np.inf, -1
    log_p = mixtures.knn_log_probs(similarities, values, targets)
    np.testing.assert_allclose(log_p, without, rtol=1e-6)
    whole = mixtures.knn_distribution(similarities, values, VOCAB)
    np.testing.assert_allclose(whole.sum(-1), 1.0, rtol=1e-6)


def test_no_neighbour_at_all(case):
    """Probability 0, not 0 / 0."""
    _, _, values, targets = case
    none = np.full((N, K), -np.inf, np.float32)
    log_p = mixtures.knn_log_probs(none, np.full_like(values, -1), targets)
    assert np.isneginf(log_p).all()
    whole = mixtures.knn_distribution(none, np.full_like(values, -1), VOCAB)
    np.testing.assert_array_equal(whole, np.zeros((N, VOCAB)))
    mixed = mixtures.interpolate(np.full(N, -2, np.float32), log_p, 0.25)
    np.testing.assert_allclose(mixed, -2 + np.log(0.75), rtol=1e-6)


def test_values_above_int16():
    values = np.array([[267_743, 267_743 - 65_536]], np.int32)
    log_p = mixtures.knn_log_probs(
        np.zeros((1, 2), np.float32), values, np.array([267_743], np.int32)
    )
    assert log_p[0] == pytest.approx(np.log(0.5))


def test_gradients_are_finite_and_right(case):
    queries, keys, values, targets = case
    values[0], values[1] = VOCAB, targets[1]  # without a hit; with nothing else

    @jax.jit
    def total(queries, weights):
        s = mixtures.negative_squared_l2(queries, keys)
        s = s.at[2, 3:].set(-jnp.inf).at[3].set(-jnp.inf)  # some absent, all absent
        knn = mixtures.knn_log_probs(s, values, targets)
        return mixtures.interpolate(weights, knn, 0.25).sum()

    log_p = np.full(N, -2, np.float32)
    d_queries, d_log_p = jax.grad(total, (0, 1))(queries, log_p)
    assert np.isfinite(d_queries).all() and np.isfinite(d_log_p).all()
    assert (np.asarray(d_queries)[[0, 3]] == 0).all()
    np.testing.assert_allclose(np.asarray(d_log_p)[[0, 3]], 1.0, rtol=1e-6)
    step = 1e-2
    for i, j in np.ndindex(N, WIDTH):
        up, down = queries.copy(), queries.copy()
        up[i, j] += step
        down[i, j] -= step
        slope = (total(up, log_p) - total(down, log_p)) / (2 * step)
        assert d_queries[i, j] == pytest.approx(float(slope), abs=5e-3)


def test_interpolate():
    p, q = np.array([[0.5, 0.001, 0.3], [0.25, 0.9, 1e-30]], np.float32)
    for weight in (0.1, 0.25, 0.9):
        got = np.exp(mixtures.interpolate(np.log(p), np.log(q), weight))
        np.testing.assert_allclose(got, (1 - weight) * p + weight * q, rtol=1e-5)


@pytest.mark.parametrize("other", [-3.0, -np.inf])
def test_interpolate_at_the_ends_is_exact(other):
    log_p, log_q = np.array([[-1.7, -40.3], [other, other]], np.float32)
    np.testing.assert_array_equal(mixtures.interpolate(log_p, log_q, 0.0), log_p)
    np.testing.assert_array_equal(mixtures.interpolate(log_q, log_p, 1.0), log_p)
    slopes = jax.grad(lambda p, q: mixtures.interpolate(p, q, 0.0).sum(), (0, 1))
    np.testing.assert_array_equal(slopes(log_p, log_q), [[1, 1], [0, 0]])


def expected_ensemble(weights, log_probs):
    """Loops over the documents and tokens, in probabilities."""
    mixed = np.zeros(log_probs.shape[-1])
    for weight, row in zip(weights, log_probs, strict=True):
        for t, log_p in enumerate(row):
            mixed[t] += weight * np.exp(float(log_p))
    return np.log(mixed)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_ensemble(temperature):
    random = np.random.default_rng(1)
    scores = random.normal(size=(2, 3, K)).astype(np.float32)
    log_probs = -random.exponential(2, (2, 3, K, 4)).astype(np.float32)
    present = random.random((2, 3, K)) < 0.7
    assert not present.all() and present.any(-1).all()
    scores = np.where(present, scores, np.nan)  # of the absent ones nothing is asked
    log_probs = np.where(present[..., None], log_probs, np.nan)
    log_w = mixtures.log_weights(scores, present, temperature=temperature)
    got = mixtures.ensemble(log_w, log_probs)
    for i in np.ndindex(2, 3):
        kept = np.exp(scores[i][present[i]].astype(np.float64) / temperature)
        wanted = expected_ensemble(kept / kept.sum(), log_probs[i][present[i]])
        np.testing.assert_allclose(got[i], wanted, rtol=1e-5)
        np.testing.assert_allclose(
            np.exp(log_w[i])[present[i]], kept / kept.sum(), 1e-5
        )
        assert np.isneginf(log_w[i])[~present[i]].all()


def test_one_document_is_the_model_itself():
    log_probs = np.array([[-3.25, -700.5], [-1, -1]], np.float32)
    log_w = mixtures.log_weights(np.array([5, 9], np.float32), np.array([True, False]))
    np.testing.assert_array_equal(mixtures.ensemble(log_w, log_probs), log_probs[0])


def test_ensemble_of_nothing_has_probability_zero():
    def total(scores, log_probs, present):
        log_w = mixtures.log_weights(scores, present)
        mixed = mixtures.ensemble(log_w, log_probs)
        return jnp.where(present.any(-1)[:, None], mixed, 0.0).sum(), mixed

    scores = np.full((2, K), -np.inf, np.float32)
    scores[1, 0] = 2
    log_probs = np.full((2, K, 3), -2, np.float32)
    present = np.isfinite(scores)
    gradient = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    (d_scores, d_log_probs), mixed = gradient(scores, log_probs, present)
    np.testing.assert_array_equal(mixed, [[-np.inf] * 3, [-2] * 3])
    np.testing.assert_array_equal(d_scores, np.zeros_like(scores))
    np.testing.assert_array_equal(
        d_log_probs, np.where(present[..., None], 1, 0) + 0 * log_probs
    )
