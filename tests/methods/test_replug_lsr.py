"""REPLUG-LSR against the golden arrays, loops in float64, and its index."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.methods import replug_lsr
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.retrieval import exact
from tests.methods import systems

ROWS, DOCUMENTS, LENGTH = 4, 5, 6
KEY = jax.random.key(0)


def linear(**changes):
    """REPLUG-LSR whose encoder is the identity on ``ids``."""

    def embed(params, batch, *, key=None):
        return batch["ids"] * params

    config = replug_lsr.REPLUGLSRConfig(**changes)
    return replug_lsr.dual_encoder(config, lambda key: jnp.float32(1), embed)


def batch_of(scores, lm_scores, **changes):
    """A batch with these retrieval scores under the identity: passages are axes."""
    rows, k = scores.shape
    axes = jnp.broadcast_to(jnp.eye(k), (rows, k, k))
    return {
        "query_ids": jnp.asarray(scores, jnp.float32),
        "query_mask": jnp.ones((rows, k)),
        "passage_ids": axes,
        "passage_mask": axes,
        "teacher_scores": jnp.asarray(lm_scores, jnp.float32),
        "present": jnp.ones((rows, k), bool),
        "weight": jnp.ones(rows),
        **changes,
    }


def gradient(method, scores, lm_scores, **changes):
    """(of the loss sum by the scores, by the language model's; the sums)."""

    def total(scores, lm_scores):
        batch = batch_of(scores, lm_scores, **changes)
        sums = method.loss(jnp.float32(1), batch, jax.random.key(0))
        return sums["loss"][0], sums

    return jax.grad(total, (0, 1), has_aux=True)(
        jnp.asarray(scores, jnp.float32), jnp.asarray(lm_scores, jnp.float32)
    )


def test_golden_arrays(golden):
    z = golden("replug")
    method = linear(gamma=float(z["gamma"]), beta=float(z["beta"]))
    scores, lm_scores = z["lsr_scores"], z["lsr_lm_score"]
    (of_scores, of_teacher), sums = gradient(method, scores, lm_scores)
    total, weight = sums["loss"]
    np.testing.assert_allclose(total / weight, z["lsr_loss"], rtol=1e-5)
    np.testing.assert_allclose(
        of_scores / weight, z["lsr_grad_scores"], rtol=1e-5, atol=1e-5 / z["gamma"]
    )
    assert (np.asarray(of_teacher) == 0).all()


def softmax(x):
    p = np.exp(x.astype(np.float64) - x.max())
    return p / p.sum()


def test_loops():
    """A weight of 0, absent documents, and a context without any."""
    random = np.random.default_rng(0)
    scores, lm_scores = random.normal(size=(2, ROWS, DOCUMENTS)).astype(np.float32)
    lm_scores[1, 0] = np.nan
    present = np.ones((ROWS, DOCUMENTS), bool)
    present[1, [0, 3]] = False
    present[2] = False
    weight = np.array([1, 1, 1, 0], np.float32)
    names = ("loss", "agreement", "rank_correlation", "expected_score", "uniform_score")
    wanted = dict.fromkeys(names, 0.0)
    for row in (0, 1):
        kept = present[row]
        p = softmax(scores[row, kept] / 0.5)
        lm = lm_scores[row, kept]
        q = softmax(lm / 2.0)
        wanted["loss"] += sum(p * (np.log(p) - np.log(q)))
        wanted["agreement"] += p.argmax() == q.argmax()
        orders = [np.sign(x[:, None] - x) for x in (scores[row, kept], lm)]
        pairs = len(lm) * (len(lm) - 1)
        wanted["rank_correlation"] += np.prod(orders, 0).sum() / pairs
        wanted["expected_score"] += sum(p * lm)
        wanted["uniform_score"] += lm.mean()
    changes = {"present": jnp.asarray(present), "weight": jnp.asarray(weight)}
    (of_scores, of_teacher), sums = gradient(
        linear(gamma=0.5, beta=2.0), scores, lm_scores, **changes
    )
    got = {name: float(total) for name, (total, _) in sums.items()}
    assert got == pytest.approx(wanted, rel=1e-5)
    assert all(count == 2 for _, count in sums.values())
    assert np.isfinite(of_scores).all() and (np.asarray(of_teacher) == 0).all()
    moved = np.asarray(of_scores) != 0
    np.testing.assert_array_equal(moved, present & (weight[:, None] > 0))


def test_descent_gives_the_documents_the_language_model_likes():
    random = np.random.default_rng(1)
    scores, lm_scores = random.normal(size=(2, ROWS, DOCUMENTS)).astype(np.float32)
    method = linear(gamma=1.0, beta=0.1)
    step = jax.jit(lambda scores: gradient(method, scores, lm_scores))
    for _ in range(200):
        (of_scores, _), sums = step(scores)
        scores = scores - of_scores
    best = lm_scores.max(1).sum()
    assert float(sums["agreement"][0]) == ROWS
    assert float(sums["expected_score"][0]) == pytest.approx(best, abs=0.3)
    assert float(sums["uniform_score"][0]) < best - 1


def config(**changes):
    sizes: dict[str, Any] = systems.SIZES | {"max_length": 8, "dropout": 0.0}
    encoder = EncoderConfig(normalise=True, **sizes)
    return replug_lsr.REPLUGLSRConfig(encoder=encoder, **changes)


def texts(seed=0):
    random = np.random.default_rng(seed)
    words = random.integers(1, systems.VOCAB, (ROWS, 1 + DOCUMENTS, LENGTH), np.int32)
    mask = np.arange(LENGTH) < random.integers(1, LENGTH + 1, (*words.shape[:2], 1))
    mask = mask.astype(np.int32)
    return {
        "query_ids": words[:, 0],
        "query_mask": mask[:, 0],
        "passage_ids": words[:, 1:],
        "passage_mask": mask[:, 1:],
        "teacher_scores": random.normal(size=(ROWS, DOCUMENTS)).astype(np.float32),
        "present": np.ones((ROWS, DOCUMENTS), bool),
        "weight": np.ones(ROWS, np.float32),
    }


def of_side(batch, side):
    return {x: batch[f"{side}_{x}"].reshape(-1, LENGTH) for x in ("ids", "mask")}


def test_scores_are_those_of_an_index_of_the_same_parameters():
    """A search and the loss see the same numbers, so only age sets them apart."""
    method, batch = replug_lsr.replug_lsr(config(gamma=1.0, beta=1.0)), texts()
    params = jax.jit(method.init)(jax.random.key(0))
    retrieval = method.retrieval
    assert retrieval is not None
    queries, keys = (
        np.asarray(jax.jit(encode)(part(params), of_side(batch, side)))
        for side, part, encode in (
            ("query", retrieval.query_params, retrieval.encode_queries),
            ("passage", retrieval.passage_params, retrieval.encode_keys),
        )
    )
    # The teacher says what the index says: the two distributions are one.
    scores = np.full((ROWS, DOCUMENTS), np.nan, np.float32)
    for row in range(ROWS):
        own = keys[row * DOCUMENTS : (row + 1) * DOCUMENTS]
        found = exact.build(own, metric="ip").search(queries[row : row + 1], DOCUMENTS)
        scores[row, found.ids[0]] = found.scores[0]
    sums = jax.jit(method.evaluate)(params, batch | {"teacher_scores": scores})
    assert float(sums["loss"][0]) == pytest.approx(0, abs=1e-5)
    assert float(sums["agreement"][0]) == ROWS


def test_chunks_change_nothing():
    whole, chunked = (replug_lsr.replug_lsr(config(chunk=chunk)) for chunk in (0, 3))
    params = jax.jit(lambda: jax.tree.map(lambda x: 5 * x, whole.init(KEY)))()
    first, second = (jax.jit(m.evaluate)(params, texts()) for m in (whole, chunked))
    assert first["loss"][0] > 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), first, second
    )
