"""Fusion-in-Decoder against the golden arrays, and what must hold of a reader."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from rlm_jax import pretrained
from rlm_jax.errors import UserError
from rlm_jax.methods import fid
from rlm_jax.methods.fid import FiDConfig
from rlm_jax.models import beam, encoder_decoder
from rlm_jax.models.reader import looked_at
from rlm_jax.models.seq2seq import generate
from tests.methods import batches, systems

# File -> folder, and the gradients that are held to it, by their paths of ours.
GOLDEN = {
    "fid_reader": ("t5_v1_0", {"shared.weight": "embedding"}),
    "fid_atlas_reader": (
        "t5_v1_1",
        {
            "shared.weight": "embedding",
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
                "encoder/relative_bias"
            ),
        },
    ),
}


def golden_batch(z):
    labels = z["labels"]
    return {
        "passage_ids": z["passage_ids"].astype(np.int32),
        "passage_mask": z["passage_mask"].astype(np.int32),
        "targets": np.maximum(labels, 0).astype(np.int32),
        "target_mask": (labels >= 0).astype(np.float32),
        "weight": np.ones(len(labels), np.float32),
    }


def at(tree, path):
    for name in path.split("/"):
        tree = tree[name]
    return tree


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_arrays(golden, golden_folder, name):
    z, (folder, gradients) = golden(name), GOLDEN[name]
    model, params = pretrained.load_t5(golden_folder / "hf" / folder, dropout=0.0)
    config = FiDConfig("t5", model, k=z["passage_ids"].shape[1])
    functions, batch = fid.reader_of(config), golden_batch(z)
    method = fid.of_reader(config, functions)

    def mean(params):
        total, weight = method.loss(params, batch, jax.random.key(0))["loss"]
        return total / weight

    value, gradient = jax.jit(jax.value_and_grad(mean))(params)
    np.testing.assert_allclose(value, z["loss"], atol=1e-4)
    for theirs, ours in gradients.items():
        wanted = z[f"grad.{theirs}"]
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(at(gradient, ours), wanted, atol=2e-4 * scale)

    @jax.jit
    def told(params):
        memory = fid.read(functions, params, batch)
        log_p = functions.log_probs(params, memory, batch["targets"])
        return memory, log_p, fid.relevance(functions, params, batch)

    memory, log_p, relevance = told(params)
    logits = z["logits"] - z["logits"].max(-1, keepdims=True)
    wanted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(log_p, wanted, atol=5e-4)
    if "encoder_states" in z:
        kept = np.asarray(memory.mask) > 0
        states = np.asarray(memory.states)[kept]
        np.testing.assert_allclose(states, z["encoder_states"][kept], atol=5e-4)
    if "xattn_scores" in z:
        np.testing.assert_allclose(relevance, z["xattn_scores"], atol=1e-3)


# Name -> changes of the configuration, for what every reader must do.
READERS = {
    "t5": {},
    "copying": {"copy": True},
    "light": {"vectors": 3, "copy": True},
    "chunked": {"chunk": 5},
}


@functools.cache
def case(name):
    """(configuration, functions, parameters, batch) of a tiny reader."""
    config = systems.config("fid" if name == "t5" else "fid_encoder")
    config = dataclasses.replace(config, **READERS[name])
    functions = fid.reader_of(config)
    shapes = jax.eval_shape(functions.init, jax.random.key(0))
    random = np.random.default_rng(3)
    params = jax.tree.map(
        lambda x: (0.4 * random.normal(size=x.shape)).astype(np.float32), shapes
    )
    return config, functions, params, batches.readings(0, systems.ROWS)


@pytest.mark.parametrize("name", READERS)
def test_decoding_with_a_cache_is_decoding_without(name):
    """Greedy tokens are the likeliest of what teacher forcing says of them."""
    _, functions, params, batch = case(name)
    length = batch["targets"].shape[1]

    @jax.jit
    def greedy(params, batch):
        memory = fid.read(functions, params, batch)
        made = generate(
            functions.predict,
            params,
            functions.start(params, memory, length),
            jax.random.key(0),
            start_id=functions.model.start_id,
            max_new_tokens=length,
        )
        return made, functions.log_probs(params, memory, made.tokens)

    made, log_p = greedy(params, batch)
    np.testing.assert_array_equal(made.tokens, np.asarray(log_p).argmax(-1))
    np.testing.assert_allclose(made.log_probs, np.asarray(log_p).max(-1), atol=1e-4)


def test_a_beam_of_one_question_shares_its_passages():
    _, functions, params, batch = case("copying")
    length = batch["targets"].shape[1]

    @jax.jit
    def search(params, batch):
        memory = fid.read(functions, params, batch)
        found = beam.beam_search(
            functions.predict,
            params,
            functions.start(params, memory, length),
            start_id=functions.model.start_id,
            num_beams=3,
            max_new_tokens=length,
            end_id=(),
        )
        log_p = jax.vmap(
            lambda tokens: functions.log_probs(params, memory, tokens),
            in_axes=1,
            out_axes=1,
        )(found.tokens)
        return found, log_p

    found, log_p = search(params, batch)
    of_tokens = np.take_along_axis(
        np.asarray(log_p), np.asarray(found.tokens)[..., None], axis=-1
    )
    np.testing.assert_allclose(
        of_tokens[..., 0].sum(-1) / length, found.scores, atol=1e-4
    )


def test_what_is_copied_next_counts_any_token_that_was_written():
    """The mark that answers start with stands in every row, and can be copied."""
    _, functions, params, batch = case("copying")
    rows = np.array([[2, 2, 5, 2, 7]] * systems.ROWS, np.int32)
    rows[1::2] = batch["passage_ids"][1::2, 0, :5]
    assert functions.model.start_id == 2

    @jax.jit
    def both(params, batch):
        memory = fid.read(functions, params, batch)
        cache, told = functions.start(params, memory, rows.shape[1]), []
        for ids in [np.full(len(rows), 2, np.int32), *rows[:, :-1].T]:
            log_p, cache = functions.predict(params, ids, cache)
            told.append(log_p)
        return jax.numpy.stack(told, 1), functions.log_probs(params, memory, rows)

    step_by_step, at_once = both(params, dict(batch))
    np.testing.assert_allclose(step_by_step, at_once, atol=1e-4)


@pytest.mark.parametrize("name", READERS)
def test_an_absent_passage_is_none_at_all(name):
    """Neither its tokens nor its place matter, and no passage is no reason to fail."""
    _, functions, params, batch = case(name)
    method = fid.of_reader(case(name)[0], functions)
    run = jax.jit(jax.value_and_grad(lambda params, batch: nll(method, params, batch)))
    some = dict(batch)
    some["passage_mask"] = some["passage_mask"].copy()
    some["passage_mask"][:, 1] = 0
    other = dict(some)
    other["passage_ids"] = some["passage_ids"].copy()
    other["passage_ids"][:, 1] = 1
    first, second = run(params, some), run(params, other)
    np.testing.assert_allclose(first[0], second[0], rtol=1e-6)
    assert float(first[0]) != pytest.approx(float(run(params, batch)[0]), rel=1e-6)
    none = dict(batch, passage_mask=np.zeros_like(batch["passage_mask"]))
    value, gradient = run(params, none)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, gradient)))


def nll(method, params, batch):
    return method.loss(params, batch, jax.random.key(0))["loss"][0]


def test_micro_batches_of_passages_change_nothing():
    config, functions, params, batch = case("chunked")
    whole = fid.fid(dataclasses.replace(config, chunk=0))
    first, second = (
        jax.jit(jax.value_and_grad(functools.partial(nll, method)))(params, batch)
        for method in (whole, fid.of_reader(config, functions))
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5),
        first,
        second,
    )


def test_tokens_that_a_question_and_its_passage_share_are_marked():
    end, pad = 3, 0
    ids = np.array([[2, 7, 8, end, 8, 9, 7, 8, end], [2, 9, end, 9, end, 9, 2, pad, 9]])
    mask = np.array([[1] * 9, [1] * 7 + [0] * 2])
    marked = encoder_decoder.shared(ids, mask, end)
    expected = [[0, 0, 0, 0, 1, 0, 1, 1, 0], [0, 0, 0, 1, 0, 1, 1, 0, 0]]
    assert marked.dtype == np.int32 and marked.tolist() == expected


def test_marks_are_what_the_encoder_reads():
    config = systems.config("fid_encoder").encoder_decoder
    plain, marking = (
        encoder_decoder.encoder_decoder(dataclasses.replace(config, mark_shared=marked))
        for marked in (False, True)
    )
    params = plain.init(jax.random.key(0))
    ids = np.array([[2, 7, 3, 7, 9, 3], [2, 7, 3, 8, 9, 3]])
    apart = [
        np.asarray(jax.jit(model.encode)(params, ids, np.ones_like(ids)))
        for model in (plain, marking)
    ]
    differ = np.abs(apart[0] - apart[1]).max((1, 2)) > 1e-3
    assert differ.tolist() == [True, False]  # the second shares nothing
    with pytest.raises(UserError, match="mark_shared=False"):
        one_type = dataclasses.replace(config.encoder, num_types=1)
        encoder_decoder.check(
            dataclasses.replace(config, encoder=one_type, mark_shared=True)
        )


def test_copying_begins_by_going_on():
    _, functions, params, batch = case("copying")
    kernels = jax.jit(functions.init)(jax.random.key(0))["copy"]
    np.testing.assert_array_equal(kernels[1], np.eye(functions.model.width))


def test_what_is_looked_at_adds_up():
    """Shares of 1 in each row, none of padding, nothing where there is nothing."""
    _, functions, params, batch = case("light")
    batch = dict(batch, passage_mask=batch["passage_mask"].copy())
    batch["passage_mask"][1] = 0

    @jax.jit
    def look(params):
        memory = fid.read(functions, params, batch)
        seen = functions.attention(params, memory, batch["targets"])
        return memory.mask, looked_at(seen, memory.mask)

    mask, share = (np.asarray(x) for x in look(params))
    there = mask.any(-1)
    np.testing.assert_allclose(share.sum(-1)[there], 1, rtol=1e-5)
    assert (share[~there] == 0).all() and not there.all()
    assert (share.swapaxes(1, 2)[mask == 0] == 0).all()


def test_exact_is_what_greedy_decoding_would_write():
    config, functions, params, batch = case("copying")
    method = fid.of_reader(config, functions)
    memory = jax.jit(functools.partial(fid.read, functions))(params, batch)
    log_p = jax.jit(functions.log_probs)(params, memory, batch["targets"])
    best = np.asarray(log_p).argmax(-1).astype(np.int32)
    given = dict(batch, targets=batch["targets"].copy())
    given["targets"][:, 0] = best[:, 0]
    given["target_mask"] = np.zeros_like(batch["target_mask"])
    given["target_mask"][:, 0] = 1
    given["weight"] = np.ones_like(batch["weight"])
    run = jax.jit(method.evaluate)
    right, count = run(params, given)["exact"]
    assert float(right) == float(count) == len(best)
    given["targets"][0, 0] = (best[0, 0] + 1) % systems.VOCAB
    assert float(run(params, given)["exact"][0]) == len(best) - 1
