"""Contrastive losses against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.ops import contrastive

N, M, D = 70, 130, 5  # more rows than are ranked at once
SCALE = 1.7


def present(query, slot):
    return slot["present"] > 0


def example():
    random = np.random.default_rng(0)
    queries, keys = random.normal(size=(N, D)), random.normal(size=(M, D))
    own = random.permutation(M)[:N]
    shown = (random.random(M) < 0.8) | np.isin(np.arange(M), own)
    return queries, keys, own, shown


def as_float32(*arrays):
    return tuple(jnp.asarray(x, jnp.float32) for x in arrays)


def test_in_batch():
    queries, keys, own, shown = example()

    def of(queries, keys):
        return contrastive.in_batch(
            queries,
            keys,
            {"slot": jnp.int32(own)},
            {"slot": jnp.arange(M), "present": jnp.int32(shown)},
            visible=present,
            scale=SCALE,
        )

    found = of(*as_float32(queries, keys))
    scores = SCALE * queries @ keys.T
    positive = scores[np.arange(N), own]
    weights = np.where(shown, np.exp(scores), 0)
    assert_close(found.nll, np.log(weights.sum(1)) - positive)
    assert_close(found.score, positive)
    above = (scores > positive[:, None]) & shown
    np.testing.assert_array_equal(found.rank, above.sum(1))

    gradient = jax.grad(lambda *x: of(*x).nll.sum(), (0, 1))(*as_float32(queries, keys))
    p = weights / weights.sum(1, keepdims=True)
    p[np.arange(N), own] -= 1
    assert_close(gradient[0], SCALE * p @ keys)
    assert_close(gradient[1], SCALE * p.T @ queries)


def test_equal_passages_do_not_outrank_each_other():
    vector = jnp.linspace(0.1, 1, 7)[None]
    found = contrastive.in_batch(
        vector,
        jnp.tile(vector, (3, 1)),
        {"slot": jnp.zeros(1, jnp.int32)},
        {"slot": jnp.arange(3), "present": jnp.ones(3, jnp.int32)},
        visible=present,
    )
    assert_close(found.nll, [np.log(3)])
    assert found.rank[0] == 0


def test_against_queue():
    queries, queue, _, _ = example()
    positives = np.random.default_rng(1).normal(size=(N, D))

    def of(queries, positives):
        return contrastive.against_queue(
            queries, positives, *as_float32(queue), scale=SCALE
        )

    found = of(*as_float32(queries, positives))
    negative = SCALE * queries @ queue.T
    score = SCALE * (queries * positives).sum(1)
    total = np.exp(negative).sum(1) + np.exp(score)
    assert_close(found.nll, np.log(total) - score)
    assert_close(found.score, score)
    np.testing.assert_array_equal(found.rank, (negative > score[:, None]).sum(1))

    gradient = jax.grad(lambda *x: of(*x).nll.sum())(*as_float32(queries, positives))
    of_positive = np.exp(score) / total - 1
    p = np.exp(negative) / total[:, None]
    assert_close(gradient, SCALE * (p @ queue + of_positive[:, None] * positives))


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0])
def test_label_smoothing(epsilon):
    """The cross-entropy with a target that is spread over all slots."""
    scores = np.random.default_rng(2).normal(size=(4, 6))
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    target = np.full((4, 6), epsilon / 6)
    target[:, 0] += 1 - epsilon
    contrast = contrastive.Contrast(
        *as_float32(-log_p[:, 0], scores[:, 0], np.zeros(4))
    )
    means = jnp.asarray(scores.mean(1), jnp.float32)
    found = contrastive.label_smoothing(contrast, means, epsilon)
    assert_close(found, -(target * log_p).sum(1))


def assert_close(ours, theirs):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=2e-5, atol=2e-5)
