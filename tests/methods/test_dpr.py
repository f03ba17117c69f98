"""DPR against the released code's arrays, loops in float64, and its full batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.methods import dpr
from rlm_jax.models import encoder
from tests.methods import systems

ROWS, HARD, WIDTH = 5, 2, 6


def linear(config):
    """DPR whose encoder is the identity on ``ids``: a text is its own vector."""

    def embed(params, batch, *, key=None):
        return batch["ids"] * params

    return dpr.dual_encoder(config, lambda key: jnp.float32(1), embed)


def batch_of(questions, passages, **changes):
    """Questions [B, D] and passages [B (1 + h), D] as a batch of distinct passages."""
    rows, width = len(questions), len(passages) // len(questions)
    return {
        "question_ids": questions,
        "question_mask": questions,
        "passage_ids": passages.reshape(rows, width, -1),
        "passage_mask": passages.reshape(rows, width, -1),
        "passage": jnp.arange(rows * width, dtype=jnp.int32).reshape(rows, width),
        "weight": jnp.ones(rows),
        **changes,
    }


def sums_of(questions, passages, axis=None, remote_gradients=True, **changes):
    method = linear(dpr.DPRConfig(remote_gradients=remote_gradients))
    sums = method.evaluate(
        jnp.float32(1), batch_of(questions, passages, **changes), axis=axis
    )
    return sums["loss"][0], sums


def test_released_code(golden):
    z = golden("dpr_nll")
    questions, passages = (jnp.asarray(z[n], jnp.float32) for n in ("q", "ctx"))
    rows = len(questions)
    assert (z["positive_idx"] == np.arange(rows) * (len(passages) // rows)).all()
    gradient = jax.grad(sums_of, (0, 1), has_aux=True)
    (of_questions, of_passages), sums = gradient(questions, passages)
    assert_close(sums["loss"][0] / sums["loss"][1], z["loss"])
    assert_close(sums["loss"][0], z["nll"].sum())
    assert int(sums["accuracy"][0]) == z["n_correct"]
    assert_close(of_questions / rows, z["grad_q"])
    assert_close(of_passages / rows, z["grad_ctx"])


def example(seed=0):
    """Vectors and numbers where every rule of `dpr.distinct` matters."""
    random = np.random.default_rng(seed)
    questions = random.normal(size=(ROWS, WIDTH))
    passages = random.normal(size=(ROWS * (1 + HARD), WIDTH))
    number = np.arange(100, 100 + len(passages)).reshape(ROWS, -1)
    number[1, 0] = number[0, 0]  # one positive for two questions
    number[2, 1] = -1  # a hard negative too few
    number[3, 2] = number[4, 0]  # another's positive as a hard negative
    known = np.full((ROWS, 2), -1)
    known[0, 1] = number[2, 0]
    weight = np.ones(ROWS)
    weight[3] = 0
    return questions, passages, number, known, weight


@pytest.mark.parametrize("negatives", ["all", "distinct"])
def test_loop_in_float64(negatives):
    questions, passages, number, known, weight = example()
    scale = 0.7
    total = hits = ranks = 0.0
    for i in range(ROWS):
        if not weight[i]:
            continue
        own = i * (1 + HARD)
        seen = []
        for j, passage in enumerate(number.reshape(-1)):
            absent = passage < 0 or not weight[j // (1 + HARD)]
            answers = passage == number[i, 0] or passage in known[i]
            if j == own or not (absent or (negatives == "distinct" and answers)):
                seen.append(j)
        scores = {j: scale * questions[i] @ passages[j] for j in seen}
        total += np.log(sum(np.exp(s) for s in scores.values())) - scores[own]
        rank = sum(s > scores[own] for j, s in scores.items() if j != own)
        ranks, hits = ranks + rank, hits + (rank == 0)
    method = linear(dpr.DPRConfig(negatives=negatives, scale=scale))
    batch = batch_of(
        jnp.float32(questions),
        jnp.float32(passages),
        passage=jnp.int32(number),
        known=jnp.int32(known),
        weight=jnp.float32(weight),
    )
    sums = method.loss(jnp.float32(1), batch, jax.random.key(0))
    assert_close(sums["loss"][0], total)
    assert sums["loss"][1] == weight.sum()
    assert (sums["rank"][0], sums["accuracy"][0]) == (ranks, hits)


def test_distinct_needs_no_known_positives():
    questions, passages, number, _, _ = example()
    method = linear(dpr.DPRConfig(negatives="distinct"))
    batch = batch_of(
        jnp.float32(questions), jnp.float32(passages), passage=jnp.int32(number)
    )
    none = batch | {"known": jnp.full((ROWS, 3), -1, jnp.int32)}
    losses = [method.evaluate(jnp.float32(1), b)["loss"][0] for b in (batch, none)]
    assert losses[0] == losses[1]


@functools.cache
def initial():
    return jax.jit(systems.method("dpr").init)(jax.random.key(0))


@functools.cache
def gradients(chunk, dropout=0.0, embed=None):
    config = systems.config("dpr", dropout=dropout)
    config = dataclasses.replace(config, chunk=chunk)
    init, whole = dpr.embedder(config.encoder)
    method = dpr.dual_encoder(config, init, embed(whole) if embed else whole)
    batch = systems.batch("dpr")

    def loss(params):
        return method.loss(params, batch, jax.random.key(1))["loss"][0]

    return jax.jit(jax.value_and_grad(loss))(initial())


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_equal_the_whole_batch(chunk):
    """Four questions and eight passages: chunks that do and do not divide them."""
    whole, parts = gradients(0), gradients(chunk)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
        whole,
        parts,
    )


@pytest.mark.slow
def test_recomputed_chunks_drop_out_the_same():
    """The backward pass of a chunk sees the noise of its forward pass."""

    def plainly(embed):
        def chunks(params, batch, *, key):
            ids, mask = batch["ids"], batch["mask"]
            return jnp.concatenate(
                [
                    embed(
                        params,
                        {"ids": ids[i : i + 2], "mask": mask[i : i + 2]},
                        key=jax.random.fold_in(key, i // 2),
                    )
                    for i in range(0, len(ids), 2)
                ]
            )

        return chunks

    wanted, got = gradients(0, 0.3, plainly), gradients(2, 0.3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), wanted, got
    )
    assert abs(got[0] - gradients(2, 0.0)[0]) > 1e-3


def test_chunks_keep_the_activations_of_one():
    """Residuals of the backward pass: no array has all rows and hidden units."""

    def inner(params, batch, *, key=None):
        wide = jnp.tanh(batch["ids"] @ params["up"])  # [rows, 100]
        return wide @ params["down"]

    params = {"up": jnp.ones((4, 100)), "down": jnp.ones((100, 3))}
    batch = {"ids": jnp.ones((32, 4)), "mask": jnp.ones((32, 4))}

    def sizes(embed):
        _, pull = jax.vjp(lambda p: embed(p, batch).sum(), params)
        return max(x.size for x in jax.tree.leaves(pull))

    assert sizes(inner) >= 32 * 100
    assert sizes(encoder.in_chunks(inner, 4)) <= 4 * 100


def test_separate_towers_serve_their_own_side():
    config = systems.config("dpr_distinct")
    method = dpr.dpr(config)
    params = jax.jit(method.init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params["question"], params["passage"])
    params["passage"] = jax.tree.map(lambda x: x + 0.1, params["passage"])
    retrieval = method.retrieval
    assert retrieval is not None
    batch = systems.batch("dpr")
    texts = {"ids": batch["key_ids"], "mask": batch["key_mask"]}
    _, embed = dpr.embedder(config.encoder)
    for part, encode, name in (
        (retrieval.query_params, retrieval.encode_queries, "question"),
        (retrieval.passage_params, retrieval.encode_keys, "passage"),
    ):
        assert part(params) is params[name]
        found, wanted = (
            jax.jit(one)(of, texts)
            for one, of in ((encode, part(params)), (embed, params[name]))
        )
        assert_close(found, wanted)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"towers": "three"}, "shared, separate"),
        ({"negatives": "hard"}, "all, distinct"),
    ],
    ids=["towers", "negatives"],
)
def test_bad_configuration(change, says):
    config = dataclasses.replace(systems.config("dpr"), **change)
    with pytest.raises(UserError, match=says):
        dpr.dpr(config)


def assert_close(ours, theirs, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance)
