"""The trained reranker against loops in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.methods import reranker
from rlm_jax.models.encoder import EncoderConfig
from tests.methods import systems

ROWS, DOCUMENTS, LENGTH = 4, 5, 6


def linear(**changes):
    """A reranker to which the first number of a text is its score."""

    def embed(params, batch, *, key=None):
        return batch["ids"][:, :1] * params

    config = reranker.RerankerConfig(**changes)
    return reranker.cross_encoder(config, lambda key: jnp.float32(1), embed)


def case():
    """Scores, log-likelihoods, who is present, and weights: all rules matter."""
    random = np.random.default_rng(0)
    scores = random.normal(size=(ROWS, DOCUMENTS)).astype(np.float32)
    lm_scores = -50 * random.random((ROWS, DOCUMENTS)).astype(np.float32) - 200
    present = np.ones((ROWS, DOCUMENTS), bool)
    present[1, [0, 3]] = False
    lm_scores[1, [0, 3]] = np.nan, 0
    scores[1, 3] = 99
    present[2] = False
    weight = np.array([1, 1, 1, 0], np.float32)
    return scores, lm_scores, present, weight


def batch_of(scores, lm_scores, present, weight):
    ids = jnp.repeat(scores[..., None], 2, -1)
    return {
        "ids": ids,
        "mask": jnp.ones_like(ids),
        "lm_scores": lm_scores,
        "present": present,
        "weight": weight,
    }


def test_loops():
    scores, lm_scores, present, weight = case()
    wanted = dict.fromkeys(
        ("loss", "chosen_nll", "first_nll", "oracle_nll", "agreement"), 0.0
    )
    slopes = np.zeros((ROWS, DOCUMENTS))
    for row in (0, 1):
        kept = np.flatnonzero(present[row])
        f, lm = (x[row, kept].astype(np.float64) for x in (scores, lm_scores))
        p = np.exp(f) / np.exp(f).sum()
        joint = p * np.exp(lm)
        wanted["loss"] -= np.log(joint.sum())
        wanted["chosen_nll"] -= lm[f.argmax()]
        wanted["first_nll"] -= lm[0]
        wanted["oracle_nll"] -= lm.max()
        wanted["agreement"] += f.argmax() == lm.argmax()
        # d L / d f = prior - posterior
        slopes[row, kept] = p - joint / joint.sum()

    def total(scores, lm_scores):
        batch = batch_of(scores, lm_scores, present, weight)
        sums = linear().loss(jnp.float32(1), batch, jax.random.key(0))
        return sums["loss"][0], sums

    gradient = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    (of_scores, of_teacher), sums = gradient(scores, lm_scores)
    got = {name: float(x) for name, (x, _) in sums.items()}
    assert got == pytest.approx(wanted, rel=1e-5)
    assert all(count == 2 for _, count in sums.values())
    np.testing.assert_allclose(of_scores, slopes, rtol=1e-4, atol=1e-6)
    assert (np.asarray(of_teacher) == 0).all()
    batch = batch_of(scores, lm_scores, present, weight)
    evaluated = jax.jit(linear().evaluate)(jnp.float32(1), batch)
    assert {name: float(x) for name, (x, _) in evaluated.items()} == pytest.approx(got)


def test_the_choice_lies_between_the_oracle_and_the_worst():
    scores, lm_scores, _, _ = case()
    lm_scores = np.nan_to_num(lm_scores, nan=-200.0)
    everyone = np.ones((ROWS, DOCUMENTS), bool), np.ones(ROWS, np.float32)

    evaluate = jax.jit(linear().evaluate)

    def figures(scores):
        batch = batch_of(scores, lm_scores, *everyone)
        sums = evaluate(jnp.float32(1), batch)
        return {name: float(x) for name, (x, _) in sums.items()}

    right, some = figures(1e3 * lm_scores), figures(scores)
    assert right["chosen_nll"] == right["oracle_nll"] == some["oracle_nll"]
    assert right["agreement"] == ROWS
    assert right["loss"] == pytest.approx(right["oracle_nll"])
    assert some["oracle_nll"] < some["chosen_nll"] < -lm_scores.min(1).sum()


def config(**changes):
    own = {name: changes.pop(name) for name in ("chunk", "k") if name in changes}
    sizes: dict[str, Any] = systems.SIZES | {"max_length": 8, "dropout": 0.0}
    encoder = EncoderConfig(**{"pooling": "cls", "projection": 1} | sizes | changes)
    return reranker.RerankerConfig(encoder, **own)


def test_pairs_are_scored_one_by_one():
    """A pair's score does not depend on what stands beside it, nor do chunks."""
    random = np.random.default_rng(1)
    shape = ROWS, DOCUMENTS, LENGTH
    batch = {
        "ids": random.integers(1, systems.VOCAB, shape).astype(np.int32),
        "mask": np.ones(shape, np.int32),
        "lm_scores": random.normal(size=shape[:2]).astype(np.float32),
        "present": np.ones(shape[:2], bool),
        "weight": np.ones(ROWS, np.float32),
    }
    method, chunked = (reranker.reranker(config(chunk=chunk)) for chunk in (0, 7))
    init = jax.jit(lambda key: jax.tree.map(lambda x: 5 * x, method.init(key)))
    params, evaluate = init(jax.random.key(0)), jax.jit(method.evaluate)
    together, in_chunks = (
        evaluate(params, batch),
        jax.jit(chunked.evaluate)(params, batch),
    )
    singly = [
        evaluate(params, {name: x[i : i + 1] for name, x in batch.items()})
        for i in range(ROWS)
    ]
    for name, (total, _) in together.items():
        wanted = pytest.approx(float(total), rel=1e-5, abs=1e-5)
        assert sum(float(one[name][0]) for one in singly) == wanted
        assert float(in_chunks[name][0]) == wanted


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param({"projection": 0}, "projection=0", id="no_score"),
        pytest.param({"projection": 3}, "projection=3", id="many_scores"),
        pytest.param({"normalise": True}, "normalise=True", id="of_length_1"),
    ],
)
def test_impossible_configurations(changes, named):
    with pytest.raises(UserError, match=named):
        reranker.reranker(config(**changes))
