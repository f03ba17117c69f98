"""REALM against the golden arrays and loops in float64."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.methods import realm
from rlm_jax.methods.realm import REALMConfig
from rlm_jax.ops import mixtures
from tests.methods import systems


def golden_sums(z, marginal):
    """(vectors and logits) -> the sums, as the method makes them."""
    rows, number = z["retrieval_score"].shape
    targets = z["mlm_targets"].astype(np.int32)
    batch = {
        "target_mask": z["mlm_mask"].astype(np.float32),
        "present": np.ones((rows, number), bool),
        "weight": np.ones(rows, np.float32),
    }

    def sums(query, candidates, logits, add: Any = 0.0):
        score = mixtures.inner_product(query, candidates) + add
        log_p = jax.nn.log_softmax(logits)
        right = jnp.take_along_axis(log_p, targets[:, None, :, None], axis=-1)
        config = REALMConfig(marginal=marginal)
        return realm.marginals(config, score, right[..., 0], batch)

    return sums


def arrays(z):
    names = "query_emb", "candidate_emb", "mlm_logits"
    return tuple(jnp.asarray(z[name], jnp.float32) for name in names)


def test_golden_arrays_of_the_released_code(golden):
    z = golden("realm_marginal")
    sums, given = golden_sums(z, "token"), arrays(z)

    def mean(*given):
        total, weight = sums(*given)["loss"]
        return total / weight

    zero = jnp.zeros(z["retrieval_score"].shape)
    value, gradients = jax.value_and_grad(mean, (0, 1, 2, 3))(*given, zero)
    np.testing.assert_allclose(value, z["loss"], rtol=1e-5)
    names = "grad_query_emb", "grad_candidate_emb", "grad_mlm_logits", "grad_score"
    for name, gradient in zip(names, gradients, strict=True):
        np.testing.assert_allclose(gradient, z[name], rtol=1e-5, atol=1e-5)
    total, weight = sums(*given)["utility"]
    np.testing.assert_allclose(total / weight, z["retrieval_utility"], rtol=1e-5)


def test_golden_arrays_of_the_paper(golden):
    z = golden("realm_marginal")
    sums, given = golden_sums(z, "sequence"), arrays(z)

    def mean(add):
        total, weight = sums(given[0], given[1], given[2], add)["loss"]
        return total / weight

    zero = jnp.zeros(z["retrieval_score"].shape)
    value, gradient = jax.value_and_grad(mean)(zero)
    np.testing.assert_allclose(value, z["paper_seq_loss_mean"], rtol=1e-5)
    np.testing.assert_allclose(
        gradient, z["paper_seq_grad_score"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("marginal", ["token", "sequence"])
def test_marginals_against_loops(marginal):
    """With absent candidates, tokens that do not count, and a row of padding."""
    random = np.random.default_rng(0)
    rows, number, places = 3, 4, 3
    score = random.normal(size=(rows, number)).astype(np.float32)
    log_p = -2 * random.random((rows, number, places)).astype(np.float32)
    present = np.ones((rows, number), bool)
    present[0, 2] = False
    mask = np.ones((rows, places), np.float32)
    mask[1, 1:] = 0
    weight = np.array([1, 1, 0], np.float32)
    batch = {"present": present, "target_mask": mask, "weight": weight}
    config = REALMConfig(marginal=marginal, temperature=0.5)
    sums = realm.marginals(config, jnp.asarray(score), jnp.asarray(log_p), batch)
    token = sequence = null = 0.0
    for b in range(2):
        kept = np.flatnonzero(present[b])
        e = np.exp(score[b, kept].astype(np.float64) / 0.5)
        p, counted = e / e.sum(), np.flatnonzero(mask[b])
        for j in counted:
            token -= np.log(
                sum(p[i] * np.exp(float(log_p[b, k, j])) for i, k in enumerate(kept))
            )
            null -= float(log_p[b, 0, j])
        sequence -= np.log(
            sum(
                p[i] * np.exp(log_p[b, k, counted].astype(np.float64).sum())
                for i, k in enumerate(kept)
            )
        )
    wanted = {"token": (token, 4), "sequence": (sequence, 2)}[marginal]
    np.testing.assert_allclose(sums["loss"], wanted, rtol=1e-5)
    np.testing.assert_allclose(sums["nll"], (token, 4), rtol=1e-5)
    np.testing.assert_allclose(sums["utility"], (null - token, 4), rtol=1e-4)


def test_candidates_that_are_absent_are_none_at_all():
    method, params = systems.method("realm"), systems.parameters("realm")
    batch = systems.batch("realm")
    other = dict(batch)
    for name in ("candidate_ids", "passage_ids"):
        other[name] = batch[name].copy()
        other[name][0, 2] = 1
    none = dict(batch, passage_mask=batch["passage_mask"].copy())
    none["passage_mask"][0, 2] = 0
    run = jax.jit(method.evaluate)
    first, *others = (run(params, x) for x in (batch, other, none))
    for second in others:
        np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-5)
    assert "accuracy" in first


def test_the_null_document_is_not_all():
    with pytest.raises(UserError, match="k is 1; choose 2 or more, of which the null"):
        realm.realm(dataclasses.replace(systems.config("realm"), k=1))
