"""Vocabulary scores against float64 loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.ops import vocabulary

WIDTH, HEAD, SIZES, NARROW = 6, 5, (4, 7), (3, 2)
VOCAB = HEAD + sum(SIZES)


@pytest.fixture(scope="module")
def weights():
    random = np.random.default_rng(1)
    head = random.normal(size=(HEAD + len(SIZES), WIDTH))
    tails = tuple(
        vocabulary.Tail(random.normal(size=(WIDTH, d)), random.normal(size=(words, d)))
        for words, d in zip(SIZES, NARROW, strict=True)
    )
    return jax.tree.map(np.float32, (head, tails))


def log_softmax(logits):
    logits = logits - logits.max()
    return logits - np.log(np.exp(logits).sum())


def expected_token(x, head, tails, target):
    """(target_score, log_normaliser) of one token, float64."""
    logits = head @ x
    normaliser = logits.max() + np.log(np.exp(logits - logits.max()).sum())
    if target < HEAD:
        return logits[target], normaliser
    start = HEAD
    for i, (projection, embedding) in enumerate(tails):
        if target < start + len(embedding):
            inside = log_softmax(embedding @ (x @ projection))
            return logits[HEAD + i] + inside[target - start], normaliser
        start += len(embedding)
    raise AssertionError


def expected(features, head, tails, targets):
    features, head, tails = jax.tree.map(np.float64, (features, head, tails))
    both = [
        expected_token(x, head, tails, y)
        for x, y in zip(features, targets, strict=True)
    ]
    return np.array(both).T


def numerical_gradient(f, x, step=1e-6):
    gradient = np.zeros(x.shape)
    for place in np.ndindex(x.shape):
        moved = np.array(x, np.float64)
        moved[place] += step
        up = f(moved)
        moved[place] -= 2 * step
        gradient[place] = (up - f(moved)) / (2 * step)
    return gradient


@pytest.fixture
def small_chunk(monkeypatch):
    monkeypatch.setattr(vocabulary, "CHUNK", 4)


@pytest.mark.parametrize(
    "words",
    [range(VOCAB), range(HEAD), range(HEAD, HEAD + 4), range(HEAD + 4, VOCAB)],
    ids=["all", "head", "first_tail", "last_tail"],
)
@pytest.mark.parametrize("n", [3, 4, 13])
def test_adaptive_scores(weights, small_chunk, words, n):
    """Fewer tokens than a block, exactly one block, and no multiple of it."""
    random = np.random.default_rng(n)
    features = random.normal(size=(n, WIDTH)).astype(np.float32)
    targets = random.choice(words, n).astype(np.int32)
    head, tails = weights
    got = jax.jit(vocabulary.adaptive_scores)(features, head, tails, targets)
    wanted = expected(features, head, tails, targets)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_adaptive_gradients(weights, small_chunk):
    random = np.random.default_rng(7)
    n = 13
    features = random.normal(size=(n, WIDTH)).astype(np.float32)
    targets = np.concatenate([np.arange(VOCAB)[3:], [0]]).astype(np.int32)[:n]
    score_weight, normaliser_weight = random.normal(size=(2, n)).astype(np.float32)

    def total(features, head, tails):
        score, normaliser = vocabulary.adaptive_scores(features, head, tails, targets)
        return score @ score_weight + normaliser @ normaliser_weight

    got = jax.jit(jax.grad(total, (0, 1, 2)))(features, *weights)
    leaves, tree = jax.tree.flatten((features, *weights))

    def reference(i, leaf):
        args = jax.tree.unflatten(tree, [*leaves[:i], leaf, *leaves[i + 1 :]])
        x, head, tails = args
        score, normaliser = expected(x, head, tails, targets)
        return score @ score_weight + normaliser @ normaliser_weight

    for i, gradient in enumerate(jax.tree.leaves(got)):
        wanted = numerical_gradient(lambda x, i=i: reference(i, x), leaves[i])
        assert np.abs(wanted).max() > 0.1
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-4)


def test_shape_of_a_batch_is_kept(weights):
    features = np.ones((2, 3, WIDTH), np.float32)
    targets = np.arange(6, dtype=np.int32).reshape(2, 3) * 2
    head, tails = weights
    got = vocabulary.adaptive_scores(features, head, tails, targets)
    flat = expected(features.reshape(6, WIDTH), head, tails, targets.ravel())
    for ours, wanted in zip(got, flat, strict=True):
        np.testing.assert_allclose(ours, wanted.reshape(2, 3), rtol=1e-5, atol=1e-5)


def test_adaptive_distribution_sums_to_one_and_agrees(weights):
    features = np.random.default_rng(0).normal(size=(VOCAB, WIDTH)).astype(np.float32)
    targets = np.arange(VOCAB, dtype=np.int32)
    head, tails = weights
    log_p = vocabulary.adaptive_log_probs(features, head, tails)
    assert log_p.shape == (VOCAB, VOCAB)
    np.testing.assert_allclose(np.exp(log_p).sum(-1), 1.0, rtol=1e-5)
    score, normaliser = vocabulary.adaptive_scores(features, head, tails, targets)
    np.testing.assert_allclose(np.diag(log_p), score - normaliser, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 7], ids="{} words a part".format)
def test_softmax_scores(weights, monkeypatch, size):
    """Equal parts, a smaller one among them, and all words at once."""
    monkeypatch.setattr(vocabulary, "_part_size", lambda *_: size)
    head, _ = weights
    random = np.random.default_rng(0)
    features = random.normal(size=(2, 7, WIDTH)).astype(np.float32)
    features[0] *= 100  # beyond what float32 can exponentiate
    targets = np.array([random.permutation(len(head)) for _ in range(2)], np.int32)
    score, normaliser = vocabulary.softmax_scores(features, head, targets)
    for place in np.ndindex(2, 7):
        logits = np.float64(head) @ features[place]
        assert score[place] == pytest.approx(logits[targets[place]], rel=1e-5)
        assert normaliser[place] == pytest.approx(np.logaddexp.reduce(logits), rel=1e-5)


@pytest.mark.parametrize("adaptive", [False, True])
def test_bfloat16_accumulates_in_float32(weights, adaptive):
    head, tails = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), weights)
    features = jnp.asarray(np.random.default_rng(0).normal(size=(5, WIDTH)), "bfloat16")
    targets = np.arange(5, dtype=np.int32)
    if adaptive:
        got = vocabulary.adaptive_scores(features, head, tails, targets)
    else:
        got = vocabulary.softmax_scores(features, head, targets)
    # All targets are words of the head, whose products are exact in float32.
    assert got[0].dtype == got[1].dtype == jnp.float32
    wanted = expected(features, head, tails, targets)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
