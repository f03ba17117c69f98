"""What a reader says of passages, against loops in float64."""

import jax
import numpy as np

from rlm_jax.ops import reader_signals

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
