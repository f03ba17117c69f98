"""kNN-LM's two equations against NumPy loops, and the language model under them."""

import jax
import numpy as np
import pytest

from rlm_jax.methods import knn_lm
from rlm_jax.methods.knn_lm import KnnLMConfig
from rlm_jax.models.decoder import modern
from tests.methods import systems

N, K, WIDTH, VOCAB = 12, 5, 4, 6


@pytest.fixture
def neighbours():
    """Similarities, nearest first, and values; some neighbours are absent."""
    random = np.random.default_rng(0)
    similarities = -np.sort(5 * random.random((N, K)).astype(np.float32))
    values = random.integers(0, VOCAB, (N, K)).astype(np.int32)
    similarities[0], similarities[1, 2:] = -np.inf, -np.inf
    values[np.isneginf(similarities)] = -1
    return similarities, values, random.integers(0, VOCAB, N).astype(np.int32)


@pytest.mark.parametrize(
    ("k", "temperature", "weight"), [(K, 1.0, 0.25), (3, 2.0, 0.6), (1, 0.5, 0.1)]
)
def test_equations_against_a_loop(neighbours, k, temperature, weight):
    similarities, values, targets = neighbours
    log_p = np.log(np.random.default_rng(1).random(N)).astype(np.float32)
    knn = knn_lm.neighbour_log_probs(
        similarities, values, targets, k=k, temperature=temperature
    )
    mixed = knn_lm.mix(log_p, knn, weight)
    p_knn = np.zeros(N)
    for n in range(N):
        shares = [np.exp(np.float64(s) / temperature) for s in similarities[n, :k]]
        hits = [x for x, v in zip(shares, values[n], strict=False) if v == targets[n]]
        p_knn[n] = sum(hits) / (sum(shares) or 1.0)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(knn, np.log(p_knn), rtol=1e-5, atol=1e-6)
    p = weight * p_knn + (1 - weight) * np.exp(np.float64(log_p))
    np.testing.assert_allclose(mixed, np.log(p), rtol=1e-5, atol=1e-6)
    assert np.isneginf(knn[0]) and (p_knn > 0).any()


@pytest.mark.parametrize("metric", knn_lm.SIMILARITIES)
def test_similarities(metric):
    random = np.random.default_rng(2)
    queries = random.normal(size=(N, WIDTH)).astype(np.float32)
    keys = random.normal(size=(N, K, WIDTH)).astype(np.float32)
    got = knn_lm.SIMILARITIES[metric](queries, keys)
    for n, k in np.ndindex(N, K):
        q, key = np.float64(queries[n]), np.float64(keys[n, k])
        wanted = -np.square(q - key).sum() if metric == "l2" else np.dot(q, key)
        assert got[n, k] == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_the_method_is_the_plain_language_model():
    method = knn_lm.knn_lm(KnnLMConfig(modern(**systems.SIZES)))
    plain, batch = systems.method("lm"), systems.batch()
    params = jax.jit(method.init)(jax.random.key(0))
    jax.tree.map(
        np.testing.assert_array_equal, params, jax.jit(plain.init)(jax.random.key(0))
    )
    for name in ("loss", "evaluate", "score"):
        options = () if name == "score" else (jax.random.key(0),)
        ours, theirs = (
            jax.jit(getattr(m, name))(params, batch, *options) for m in (method, plain)
        )
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
