"""A retriever's losses against REPLUG's arrays, loops, and at their edges."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.ops import distillation, mixtures

K = 5


@pytest.fixture
def case():
    """Scores of a student and of a teacher, unevenly present."""
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(2, 4, K)).astype(np.float32)
    present = np.ones((4, K), bool)
    present[1, 2:] = False
    present[2, :-1] = False
    return student, teacher, present


def distribution(scores, present):
    weights = np.where(present, np.exp(scores.astype(np.float64)), 0)
    return weights / weights.sum()


@pytest.mark.parametrize("direction", ["student first", "teacher first"])
def test_released_arrays(golden, direction):
    z = golden("replug")
    prefix = "lsr" if direction == "student first" else "lsr_reverse"
    present = np.ones(z["lsr_scores"].shape, bool)
    gamma, beta = float(z["gamma"]), float(z["beta"])

    def mean(scores):
        log_p = mixtures.log_weights(scores, present, temperature=gamma)
        teacher = jnp.asarray(z["lsr_lm_score"], jnp.float32)
        log_q = mixtures.log_weights(teacher, present, temperature=beta)
        sides = (log_p, log_q) if prefix == "lsr" else (log_q, log_p)
        divergence = distillation.kl(*sides)
        return divergence.mean(), divergence

    scores = jnp.asarray(z["lsr_scores"], jnp.float32)
    gradient, divergence = jax.grad(mean, has_aux=True)(scores)
    wanted = z[f"{prefix}_kl_per_query"]
    np.testing.assert_allclose(divergence, wanted, rtol=1e-5, atol=1e-5)
    if prefix == "lsr":
        np.testing.assert_allclose(divergence.mean(), z["lsr_loss"], rtol=1e-5)
    scale = 1e-5 / gamma
    np.testing.assert_allclose(
        gradient, z[f"{prefix}_grad_scores"], rtol=1e-5, atol=scale
    )


def test_released_ensemble(golden):
    z = golden("replug")
    scores, log_probs = (
        jnp.asarray(z[name], jnp.float32) for name in ("scores", "token_logprobs")
    )
    log_w = mixtures.log_weights(scores, jnp.ones(scores.shape, bool))
    got = mixtures.ensemble(log_w, log_probs)
    np.testing.assert_allclose(got, z["ensemble_logprobs"], rtol=1e-5, atol=1e-5)


def test_kl_is_a_sum_over_those_present(case):
    student, teacher, present = case
    log_p, log_q = (mixtures.log_weights(x, present) for x in (student, teacher))
    got = distillation.kl(log_p, log_q)
    for row in range(len(present)):
        p, q = (distribution(x[row], present[row]) for x in (student, teacher))
        wanted = sum(
            p[i] * (np.log(p[i]) - np.log(q[i])) for i in np.flatnonzero(present[row])
        )
        assert got[row] == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    np.testing.assert_array_equal(distillation.kl(log_p, log_p), np.zeros(4))


def test_kl_is_infinite_where_the_other_has_nothing():
    both = np.log(np.array([0.5, 0.5], np.float32))
    one = np.array([0, -np.inf], np.float32)
    assert distillation.kl(both, one) == np.inf
    assert distillation.kl(one, both) == pytest.approx(np.log(2))


def test_a_score_that_is_no_number_shows(case):
    student, teacher, present = case
    student[0, 0] = np.nan
    log_p, log_q = (mixtures.log_weights(x, present) for x in (student, teacher))
    for figure in (
        distillation.kl(log_p, log_q),
        distillation.kl(log_q, log_p),
        distillation.marginal_nll(log_p, teacher),
    ):
        assert np.isnan(figure[0]) and np.isfinite(figure[1:]).all()


def test_marginal_nll(case):
    student, teacher, present = case
    log_w = mixtures.log_weights(student, present)
    likelihoods = np.where(present, teacher - 300, np.nan)  # e^-300 is 0 in float32
    got = distillation.marginal_nll(log_w, likelihoods.astype(np.float32))
    for row in range(len(present)):
        w = distribution(student[row], present[row])
        inside = sum(
            w[i] * np.exp(float(teacher[row, i])) for i in np.flatnonzero(present[row])
        )
        assert got[row] == pytest.approx(300 - np.log(inside), rel=1e-5)


def test_nothing_present(case):
    student, teacher, present = case
    present[0] = False

    def both(student, teacher):
        log_p, log_q = (mixtures.log_weights(x, present) for x in (student, teacher))
        divergence = distillation.kl(log_p, log_q)
        nll = distillation.marginal_nll(log_p, teacher)
        finite = jnp.where(present.any(-1), nll, 0.0)
        return (divergence + finite).sum(), (divergence, nll)

    gradients, (divergence, nll) = jax.grad(both, (0, 1), has_aux=True)(
        student, teacher
    )
    assert divergence[0] == 0 and nll[0] == np.inf
    for x in gradients:
        assert np.isfinite(x).all() and (np.asarray(x)[~present] == 0).all()


def test_gradient_of_kl(case):
    student, teacher, present = case

    def total(student):
        log_p, log_q = (mixtures.log_weights(x, present) for x in (student, teacher))
        return distillation.kl(log_p, log_q).sum()

    got = jax.grad(total)(student)
    for row in range(len(present)):
        p, q = (distribution(x[row], present[row]) for x in (student, teacher))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(present[row], np.log(p / q), 0)
        # d KL / d s_j = p_j (log p_j / q_j - KL)
        np.testing.assert_allclose(got[row], p * (ratio - (p * ratio).sum()), atol=1e-5)


def test_rank_correlation_is_kendalls_over_the_pairs_that_are_there():
    random = np.random.default_rng(5)
    a, b = random.normal(size=(2, 4, 6)).round(1)
    a[0, 1] = a[0, 2]  # a tie counts for neither
    present = random.random((4, 6)) > 0.3
    present[3] = np.arange(6) < 1
    first, second = (jnp.asarray(x, jnp.float32) for x in (a, b))
    got = distillation.rank_correlation(first, second, jnp.asarray(present))
    for row in range(4):
        kept = np.flatnonzero(present[row])
        pairs = list(itertools.combinations(kept, 2))
        agreed = [
            np.sign(a[row, i] - a[row, j]) * np.sign(b[row, i] - b[row, j])
            for i, j in pairs
        ]
        assert float(got[row]) == pytest.approx(np.mean(agreed) if pairs else 0.0)
