"""What a reader says of passages, against loops in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from rlm_jax.ops import mixtures, reader_signals

LAYERS, BATCH, HEADS, TARGETS, PASSAGES, TOKENS = 2, 3, 2, 4, 3, 5


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def test_log_probabilities_of_what_counts():
    random = np.random.default_rng(0)
    log_p = random.normal(size=(BATCH, PASSAGES, TARGETS)).astype(np.float32)
    mask = (random.random(log_p.shape) < 0.6).astype(np.float32)
    mask[0, 0] = 0
    log_p[mask == 0] = -np.inf  # what does not count may be anything
    total = np.asarray(reader_signals.total_log_prob(log_p, mask))
    mean = np.asarray(reader_signals.mean_log_prob(log_p, mask))
    for b in range(BATCH):
        for k in range(PASSAGES):
            kept = [float(x) for x, m in zip(log_p[b, k], mask[b, k], strict=True) if m]
            np.testing.assert_allclose(total[b, k], sum(kept), rtol=1e-6)
            wanted = sum(kept) / len(kept) if kept else 0.0
            np.testing.assert_allclose(mean[b, k], wanted, rtol=1e-6)


def test_a_temperature_divides_logits():
    logits = np.random.default_rng(0).normal(size=(4, 7)).astype(np.float32)
    given = jax.nn.log_softmax(logits)
    for temperature in (0.25, 1.0):
        wanted = [
            np.log(softmax(row.astype(np.float64) / temperature)) for row in logits
        ]
        found = reader_signals.sharpened(given, temperature)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_attention_mass():
    """Padding of passages and targets counts for nothing; passages may be absent."""
    random = np.random.default_rng(1)
    shape = LAYERS, BATCH, HEADS, TARGETS, PASSAGES * TOKENS
    scores = random.normal(size=shape).astype(np.float32)
    norms = random.random((*shape[:3], shape[4])).astype(np.float32)
    mask = (random.random((BATCH, PASSAGES, TOKENS)) < 0.7).astype(np.int32)
    mask[0, 1] = 0
    mask[2] = 0  # nothing at all
    target_mask = np.ones((BATCH, TARGETS), np.float32)
    target_mask[1, 2:] = 0
    found = reader_signals.attention_mass(
        scores, norms, mask.reshape(BATCH, -1), target_mask, passages=PASSAGES
    )
    found = np.asarray(found)
    wanted = np.zeros((BATCH, PASSAGES))
    for b in range(BATCH):
        kept = np.flatnonzero(mask[b])
        number = int(target_mask[b].sum())
        for layer in range(LAYERS):
            for h in range(HEADS):
                for t in range(number):
                    if not len(kept):
                        continue
                    share = softmax(scores[layer, b, h, t, kept].astype(np.float64))
                    for m, p in zip(kept, share, strict=True):
                        taken = p * norms[layer, b, h, m]
                        wanted[b, m // TOKENS] += taken / HEADS
        wanted[b] /= reader_signals.RELEASED_DIVISOR * LAYERS * number
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-9)
    assert found[0, 1] == 0 and (found[2] == 0).all()


def test_posterior_is_the_gradient_of_the_marginal():
    """dL/ds = |y| (p - r); an absent passage and a token that does not count."""
    random = np.random.default_rng(2)
    log_p = random.normal(size=(2, PASSAGES, TARGETS)).astype(np.float32) - 2
    scores = random.normal(size=(2, PASSAGES)).astype(np.float32)
    present = np.array([[True, True, True], [True, False, True]])
    mask = np.array([[1, 1, 0, 1], [1, 1, 1, 1]], np.float32)
    weights = mixtures.log_weights(scores, present)
    found = np.asarray(reader_signals.posterior(weights, log_p, mask))
    p = np.exp(np.asarray(weights, np.float64))
    for b in range(2):
        kept = np.flatnonzero(mask[b])
        for i in range(PASSAGES):
            each = [
                p[b, i] * np.exp(float(log_p[b, i, t]))
                / sum(p[b, j] * np.exp(float(log_p[b, j, t])) for j in range(PASSAGES))
                for t in kept
            ]  # fmt: skip
            np.testing.assert_allclose(found[b, i], np.mean(each), rtol=1e-5)

    def loss(scores):
        weights = mixtures.log_weights(scores, present)
        return -(mixtures.ensemble(weights, log_p) * mask).sum()

    wanted = mask.sum(1, keepdims=True) * (p - found)
    np.testing.assert_allclose(jax.grad(loss)(scores), wanted, atol=1e-5)
    assert found[1, 1] == 0


def test_average_change_is_the_mean_over_all_orders():
    random = np.random.default_rng(3)
    values = random.normal(size=(2, 1 << PASSAGES)).astype(np.float32)
    found = np.asarray(reader_signals.average_change(jnp.asarray(values), PASSAGES))
    wanted = np.zeros((2, PASSAGES))
    orders = list(itertools.permutations(range(PASSAGES)))
    for order in orders:
        read = 0
        for i in order:
            wanted[:, i] += values[:, read | 1 << i] - values[:, read]
            read |= 1 << i
    np.testing.assert_allclose(found, wanted / len(orders), rtol=1e-4, atol=1e-6)
    total = values[:, -1] - values[:, 0]
    np.testing.assert_allclose(found.sum(1), total, rtol=1e-4)
