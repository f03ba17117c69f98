"""Atlas against the golden arrays and loops in float64; what must not move."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax import pretrained
from rlm_jax.errors import UserError
from rlm_jax.methods import atlas, fid, reader_scores
from rlm_jax.methods.atlas import AtlasConfig
from rlm_jax.methods.fid import FiDConfig
from rlm_jax.ops import reader_signals
from rlm_jax.train import optim, step
from tests.methods import batches, systems

# Loss of ours -> what golden arrays call it.
RELEASED = {"pdist": "ppmean", "loop": "loop", "adist": "evalnormsum"}
TEMPERATURES = {"t001": (0.01, 0.01), "soft": (0.3, 0.5)}  # of gold, of the retriever


@functools.cache
def released_reader(folder):
    model, params = pretrained.load_t5(folder / "hf" / "t5_v1_1", dropout=0.0)
    return fid.reader_of(FiDConfig("t5", model)), params


def golden_batch(z):
    labels = z["labels"]
    return {
        "passage_ids": z["passage_ids"].astype(np.int32),
        "passage_mask": z["passage_mask"].astype(np.int32),
        "targets": np.maximum(labels, 0).astype(np.int32),
        "target_mask": (labels >= 0).astype(np.float32),
    }


def retriever_scores(z):
    """s = q.d / sqrt(D), float32."""
    product = np.einsum("bd,bkd->bk", z["q_emb"], z["p_emb"])
    np.testing.assert_allclose(product, z["retriever_score_raw"], rtol=1e-6)
    return (product / np.sqrt(z["q_emb"].shape[-1])).astype(np.float32)


@pytest.mark.parametrize("loss", RELEASED)
def test_golden_scores_and_losses(golden, golden_folder, loss):
    z, name = golden("atlas_retriever_losses"), RELEASED[loss]
    functions, params = released_reader(golden_folder)
    config = AtlasConfig(loss=loss)
    gold = jax.jit(functools.partial(atlas.gold_scores, config, functions))(
        params, golden_batch(z)
    )
    np.testing.assert_allclose(gold, z[f"gold_{name}"], rtol=1e-4, atol=1e-6)
    score = retriever_scores(z)
    present = np.ones(score.shape, bool)
    for tag, (of_gold, of_score) in TEMPERATURES.items():
        config = dataclasses.replace(
            config, gold_temperature=of_gold, temperature=of_score
        )

        def mean(score, gold, config=config):
            return atlas.distilled(config, gold, score, present).mean()

        # Of 1/100 of a score's rounding errors there would be 100 times as many, so
        # the loss is held to the released gold, and gold to its own above.
        given = z[f"gold_{name}"].astype(np.float32)
        value, gradient = jax.value_and_grad(mean)(score, given)
        rtol = 1e-3 if tag == "t001" else 1e-4
        np.testing.assert_allclose(value, z[f"{name}_{tag}_loss"], rtol=rtol)
        wanted = z[f"{name}_{tag}_grad_score"]
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(gradient, wanted, atol=rtol * scale)
        np.testing.assert_allclose(mean(score, gold), value, rtol=rtol)
        whole = dataclasses.replace(config, kl_mean="questions")
        np.testing.assert_allclose(
            mean(score, given, whole), z[f"{name}_{tag}_kl_batchmean"], rtol=rtol
        )


@pytest.mark.parametrize("tag", TEMPERATURES)
def test_golden_emdr2(golden, golden_folder, tag):
    """Atlas's form: the temperature of gold divides the logits of the vocabulary."""
    z = golden("atlas_retriever_losses")
    functions, params = released_reader(golden_folder)
    of_gold, of_score = TEMPERATURES[tag]
    batch, score = golden_batch(z), retriever_scores(z)
    config = AtlasConfig(
        loss="emdr2", temperature=of_score, vocabulary_temperature=of_gold
    )
    mask, present = batch["target_mask"], np.ones(score.shape, bool)
    run = jax.jit(
        functools.partial(reader_scores.alone, functions, temperature=of_gold)
    )
    log_p = run(params, batch)
    exact = jax.jit(functools.partial(reader_scores.alone, functions))(params, batch)
    kept = np.broadcast_to(mask[:, None] > 0, exact.shape)
    np.testing.assert_allclose(
        np.asarray(exact)[kept], z["gold_emdr_label_logp"][kept], atol=5e-4
    )

    def mean(score):
        nll = atlas.marginalised(config, log_p, score, present)
        return (nll * mask).sum() / mask.sum()

    value, gradient = jax.value_and_grad(mean)(score)
    np.testing.assert_allclose(value, z[f"emdr_{tag}_loss"], rtol=1e-3)
    wanted = z[f"emdr_{tag}_grad_score"]
    np.testing.assert_allclose(gradient, wanted, atol=1e-3 * np.abs(wanted).max())


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("log_prob", ["mean", "sum"])
def test_losses_against_loops(log_prob):
    """An absent passage counts for nothing."""
    random = np.random.default_rng(0)
    rows, number, length = 3, 4, 5
    log_p = -0.5 - random.random((rows, number, length)).astype(np.float32)
    score = random.normal(size=(rows, number)).astype(np.float32)
    present = np.ones((rows, number), bool)
    present[1, 2] = False
    mask = np.ones((rows, number, length), np.float32)
    mask[:, :, 4] = 0
    config = AtlasConfig(
        log_prob=log_prob, temperature=0.5, gold_temperature=0.25, kl_mean="questions"
    )
    gold = atlas.LOG_PROB[log_prob](jnp.asarray(log_p), jnp.asarray(mask))
    found = atlas.distilled(config, gold, jnp.asarray(score), jnp.asarray(present))
    marginal = atlas.marginalised(
        config, jnp.asarray(log_p), jnp.asarray(score), jnp.asarray(present)
    )
    for b in range(rows):
        kept = np.flatnonzero(present[b])
        p = softmax(score[b, kept].astype(np.float64) / 0.5)
        of_y = log_p[b, kept, :4].astype(np.float64)
        g = softmax((of_y.mean(1) if log_prob == "mean" else of_y.sum(1)) / 0.25)
        wanted = sum(g[i] * (np.log(g[i]) - np.log(p[i])) for i in range(len(kept)))
        np.testing.assert_allclose(found[b], wanted, rtol=1e-4)
        for t in range(length):
            likelihood = sum(
                p[i] * np.exp(float(log_p[b, k, t])) for i, k in enumerate(kept)
            )
            np.testing.assert_allclose(marginal[b, t], -np.log(likelihood), rtol=1e-5)


# --- the whole method ----------------------------------------------------------------


@functools.cache
def small(**changes):
    """(configuration, functions, method, parameters, batch) of a tiny Atlas."""
    config = systems.config("atlas_emdr2")
    config = dataclasses.replace(config, towers="separate", **changes)
    functions = fid.reader_of(config.reader)
    method = atlas.of_reader(config, functions)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    random = np.random.default_rng(3)
    params = jax.tree.map(
        lambda x: (0.4 * random.normal(size=x.shape)).astype(np.float32), shapes
    )
    return config, functions, method, params, batches.joint("atlas", 0, systems.ROWS)


@pytest.mark.parametrize(
    "loss", [pytest.param("loop", marks=pytest.mark.slow), "adist"]
)
def test_parts_add_up_and_gold_has_no_gradient(loss):
    """loss = reader's + weight x retriever's; the reader learns from its own alone."""
    config, functions, method, params, batch = small(loss=loss, weight=3.0)

    def total(params):
        sums = method.loss(params, batch, jax.random.key(0))
        return sums["loss"][0], sums

    gradient, sums = jax.jit(jax.grad(total, has_aux=True))(params)
    parts = sums["reader_loss"][0] + 3 * sums["retriever_loss"][0]
    np.testing.assert_allclose(sums["loss"][0], parts, rtol=1e-6)
    assert float(sums["retriever_loss"][0]) > 0
    reading = fid.of_reader(config.reader, functions)

    def alone(reader):
        return reading.loss(reader, batch, jax.random.key(0))["loss"][0]

    wanted = jax.jit(jax.grad(alone))(params["reader"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient["reader"],
        wanted,
    )
    moved = [np.abs(x).max() for x in jax.tree.leaves(gradient["retriever"])]
    assert max(moved) > 1e-4


@pytest.mark.slow
def test_leaving_one_out_is_not_giving_it():
    _, functions, _, params, batch = small(loss="loop")
    found = jax.jit(functools.partial(reader_scores.left_out, functions))(
        params["reader"], batch
    )
    for passage in range(batch["passage_ids"].shape[1]):
        mask = batch["passage_mask"].copy()
        mask[:, passage] = 0
        memory = fid.read(functions, params["reader"], {**batch, "passage_mask": mask})
        wanted = functions.nll(params["reader"], memory, batch["targets"])
        np.testing.assert_allclose(found[:, passage], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "trained", ["query", pytest.param("full", marks=pytest.mark.slow)]
)
def test_query_side_training_leaves_the_passages_tower_as_it_is(trained):
    """By a bit, under AdamW with weight decay, which moves whatever it may."""
    config, _, method, params, batch = small(loss="pdist", trained=trained)
    optimizer = optim.optimizer(
        optim.OptimConfig(learning_rate=0.01, weight_decay=0.1),
        10,
        trainable=atlas.trainable(config),
    )
    run = jax.jit(
        functools.partial(step.train_step, method=method, optimizer=optimizer, seed=0)
    )
    state = step.init(params, optimizer)
    for _ in range(3):
        state, _ = run(state, batch)
    before, after = params["retriever"], state.params["retriever"]

    def same(name):
        pairs = jax.tree.map(
            lambda a, b: bool((np.asarray(a) == b).all()), before[name], after[name]
        )
        return jax.tree.leaves(pairs)

    assert all(same("passage")) == (trained == "query")
    assert not any(same("question"))


def test_a_reader_alone_is_fid():
    config, functions, method, params, batch = small(loss="none", trained="none")
    found = jax.jit(method.evaluate)(params, batch)
    wanted = jax.jit(fid.of_reader(config.reader, functions).evaluate)(
        params["reader"], batch
    )
    assert found["loss"] == wanted["loss"] and found["exact"] == wanted["exact"]
    assert not any(jax.tree.leaves(atlas.trainable(config)(params)["retriever"]))


def test_a_question_without_passages_teaches_the_reader_alone():
    _, _, method, params, batch = small(loss="pdist")
    none = dict(batch, present=np.zeros_like(batch["present"]))
    none["passage_mask"] = np.zeros_like(batch["passage_mask"])

    def total(params):
        sums = method.loss(params, none, jax.random.key(0))
        return sums["loss"][0], sums

    gradient, sums = jax.jit(jax.grad(total, has_aux=True))(params)
    assert float(sums["retriever_loss"][0]) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    assert all((x == 0).all() for x in jax.tree.leaves(gradient["retriever"]))


@pytest.mark.parametrize("absent", [pytest.param(False, marks=pytest.mark.slow), True])
def test_more_candidates_than_are_read(absent):
    """The k that score best are read, in their order, whatever else was found."""
    config, functions, method, params, batch = small(loss="pdist")
    if absent:
        batch = dict(batch, present=np.ones_like(batch["present"]))
        batch["present"][:, 0] = False
    k = 2
    fewer = dataclasses.replace(config, reader=dataclasses.replace(config.reader, k=k))
    retrieval = method.retrieval
    assert retrieval is not None

    def encode(tower, side):
        flat = {x: batch[f"{side}_{x}"] for x in ("ids", "mask")}
        flat = {x: y.reshape(-1, y.shape[-1]) for x, y in flat.items()}
        made = jax.jit(retrieval.encode_queries)(params["retriever"][tower], flat)
        return np.asarray(made).reshape(systems.ROWS, -1, made.shape[-1])

    score = np.einsum(
        "bqd,bkd->bk", encode("question", "query"), encode("passage", "candidate")
    )
    score = np.where(batch["present"], score, -np.inf)
    order = np.argsort(-score, axis=1)[:, :k]
    chosen = dict(batch)
    for name in atlas.OF_PASSAGES:
        index = order.reshape(*order.shape, *[1] * (batch[name].ndim - 2))
        chosen[name] = np.take_along_axis(batch[name], index, axis=1)
    run = jax.jit(atlas.of_reader(fewer, functions).evaluate)
    found, wanted = run(params, batch), run(params, chosen)
    assert float(found["retriever_loss"][0]) > 0
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted
    )


def test_what_the_released_divisor_is():
    assert reader_signals.RELEASED_DIVISOR == 256


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"loss": "none"}, "both to none"),
        ({"trained": "none"}, "both to none"),
        ({"trained": "query", "towers": "shared"}, "set towers to separate"),
        ({"loss": "emdr"}, "pdist"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(UserError, match=message):
        atlas.atlas(dataclasses.replace(systems.config("atlas"), **changes))
