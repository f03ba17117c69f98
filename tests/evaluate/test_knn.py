"""Looking neighbours up, mixing them in, and tuning the mixture."""

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.evaluate import knn
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import exact

N, M, WIDTH, K, VOCAB = 70, 40, 4, 5, 6


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(0)
    queries, keys = (random.normal(size=(s, WIDTH)).astype("f") for s in (N, M))
    return queries, keys, random.integers(0, 300_000, M).astype(np.int32)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_recomputed_similarities_are_the_index_scores(arrays, metric):
    queries, keys, values = arrays
    index = exact.build(keys, metric=metric)
    scored = knn.look_up(index.search, queries, K, values=values, chunk=32)
    again = knn.look_up(
        index.search, queries, K, values=values, chunk=32,
        gather_keys=lambda ids: keys[ids], metric=metric,
    )  # fmt: skip
    np.testing.assert_allclose(
        again.similarities, scored.similarities, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_array_equal(again.values, scored.values)
    ids = index.search(queries, K).ids
    np.testing.assert_array_equal(scored.values, values[ids])
    assert scored.values.max() > 2**15


def test_absent_neighbours_stay_absent(arrays):
    queries, keys, values = arrays

    def search(queries, k):
        ids = np.zeros((len(queries), k), np.int32)
        ids[:, 2:] = -1
        return Neighbours(np.where(ids < 0, -np.inf, 1).astype(np.float32), ids)

    for gather in (None, lambda ids: keys[ids]):
        got = knn.look_up(search, queries, K, values=values, gather_keys=gather)
        assert np.isneginf(got.similarities[:, 2:]).all()
        assert np.isfinite(got.similarities[:, :2]).all()
        assert (got.values[:, 2:] == -1).all()
        assert (got.values[:, :2] == values[0]).all()
        assert got.values.dtype == np.int32


def test_log_probs_use_the_first_k_and_any_chunk():
    random = np.random.default_rng(1)
    found = knn.NeighbourValues(
        random.normal(size=(N, K)).astype(np.float32),
        random.integers(0, VOCAB, (N, K)).astype(np.int32),
    )
    targets = random.integers(0, VOCAB, N).astype(np.int32)
    got = knn.knn_log_probs(found, targets, k=3, temperature=2.0, chunk=35)
    for i in range(N):
        weights = np.exp(np.float64(found.similarities[i, :3]) / 2)
        hit = weights[found.values[i, :3] == targets[i]].sum() / weights.sum()
        assert np.exp(got[i]) == pytest.approx(hit, rel=1e-5)


def planted(weight, temperature):
    """Targets drawn from the mixture itself, whose own parameters are then best."""
    random = np.random.default_rng(2)
    n, k = 20_000, 4
    similarities = 6 * random.normal(size=(n, k))
    values = np.tile(np.arange(k, dtype=np.int32), (n, 1))
    shares = np.exp(similarities / temperature)
    shares /= shares.sum(1, keepdims=True)
    lm = np.full((n, k), 0.25)
    mixed = (1 - weight) * lm + weight * shares
    targets = (random.random((n, 1)) > mixed.cumsum(1)[:, :-1]).sum(1)
    found = knn.NeighbourValues(similarities.astype(np.float32), values)
    return np.full(n, np.log(0.25), np.float32), found, targets.astype(np.int32)


def test_tuning_finds_what_was_planted():
    log_probs, found, targets = planted(weight=0.4, temperature=3.0)
    got = knn.tune(
        log_probs, found, targets,
        ks=[2, 4], temperatures=[1.0, 3.0, 9.0], weights=[0.0, 0.2, 0.4, 0.6, 1.0],
    )  # fmt: skip
    assert got == knn.Mixture(k=4, temperature=3.0, weight=0.4)


def test_tuning_leaves_useless_neighbours_out():
    log_probs, found, targets = planted(weight=0.0, temperature=1.0)
    got = knn.tune(
        log_probs, found, targets, ks=[4], temperatures=[1.0], weights=[0.0, 0.3]
    )
    assert got.weight == 0.0


def test_an_empty_grid_is_named():
    log_probs, found, targets = planted(0.1, 1.0)
    with pytest.raises(UserError, match="grid .* is empty"):
        knn.tune(log_probs, found, targets, ks=[], temperatures=[1.0], weights=[0.1])


def test_weights_are_the_softmax_of_the_similarities():
    similarities = np.random.default_rng(3).normal(size=(N, K)).astype(np.float32)
    similarities[0, 2:] = -np.inf
    neighbours = knn.NeighbourValues(similarities, np.zeros((N, K), np.int32))
    weights = knn.neighbour_weights(neighbours, 0.5)
    for row, values in zip(weights, similarities.astype(np.float64), strict=True):
        powers = [np.exp(value / 0.5) for value in values]
        np.testing.assert_allclose(row, np.array(powers) / sum(powers), rtol=1e-5)
