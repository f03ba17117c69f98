"""The softmax over vocabulary and source against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from rlm_jax.ops import copying, losses

B, L, M, V = 3, 4, 7, 6


def case():
    """Unevenly long sources; the second row has none, and some targets are nowhere."""
    random = np.random.default_rng(0)
    mask = np.arange(M) < np.array([[M], [0], [4]])
    return {
        "logits": random.normal(size=(B, L, V)).astype(np.float32),
        "scores": random.normal(size=(B, L, M)).astype(np.float32),
        "tokens": random.integers(0, V - 1, (B, M)).astype(np.int32),
        "mask": mask.astype(np.int32),
        "targets": random.integers(0, V, (B, L)).astype(np.int32),
    }


def loop(z, row, at):
    """log p of every token."""
    mass = np.exp(z["logits"][row, at].astype(np.float64))
    for j in range(M):
        if z["mask"][row, j]:
            mass[z["tokens"][row, j]] += np.exp(np.float64(z["scores"][row, at, j]))
    return np.log(mass / mass.sum())


def test_distributions_and_their_loss():
    z = case()
    got = copying.log_distributions(z["logits"], z["scores"], z["tokens"], z["mask"])
    wanted = np.array([[loop(z, row, at) for at in range(L)] for row in range(B)])
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        nll(z["logits"], z["scores"], z),
        -np.take_along_axis(wanted, z["targets"][..., None], axis=-1)[..., 0],
        rtol=1e-5,
        atol=1e-6,
    )


def nll(logits, scores, z):
    score = jnp.take_along_axis(logits, z["targets"][..., None], axis=-1)[..., 0]
    sums = copying.log_sums(scores, z["tokens"], z["mask"], z["targets"])
    return losses.joint_nll(score, jax.nn.logsumexp(logits, axis=-1), sums)


def test_gradients_are_finite_and_sum_to_zero_over_all_that_competes():
    z = case()
    of_logits, of_scores = jax.grad(
        lambda logits, scores: nll(logits, scores, z).sum(), (0, 1)
    )(jnp.asarray(z["logits"]), jnp.asarray(z["scores"]))
    np.testing.assert_allclose(of_logits.sum(-1) + of_scores.sum(-1), 0, atol=1e-5)
    assert (np.asarray(of_scores)[:, :, ~z["mask"].astype(bool)[2]][2] == 0).all()
    assert (np.asarray(of_scores)[1] == 0).all()


def test_large_scores_do_not_overflow():
    z = case()
    got = copying.log_distributions(
        300 * z["logits"], 300 * z["scores"], z["tokens"], z["mask"]
    )
    assert not np.isnan(got).any() and (np.asarray(got).max(-1) > -1e-3).any()


def test_match_lengths_are_a_loops():
    random = np.random.default_rng(1)
    tokens, targets = (random.integers(0, 3, (B, size)) for size in (12, 6))
    first = np.arange(12) % 6 == 0
    wanted = np.zeros((B, 6, 12), np.int32)
    for row, at, j in np.ndindex(wanted.shape):
        start = j - j % 6  # of the part that j stands in
        while True:
            n = wanted[row, at, j] + 1
            if n > at or j - n < start:
                break
            if tokens[row, j - n] != targets[row, at - n]:
                break
            wanted[row, at, j] = n
    got = copying.match_lengths(tokens, first, targets)
    assert got.dtype == np.int32 and wanted.max() >= 3
    np.testing.assert_array_equal(got, wanted)
