"""Decoding with a cache against decoding without one; beams against two others'."""

import os
import pathlib
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax import pretrained
from rlm_jax.errors import UserError
from rlm_jax.models import seq2seq, t5
from rlm_jax.models.beam import beam_search
from rlm_jax.models.generation import GREEDY, Sampling

GOLDEN = pathlib.Path(
    os.environ.get("RLM_GOLDEN") or pathlib.Path(__file__).parents[1] / "golden"
)
NEW = 5
SMALL: dict[str, Any] = dict(
    vocab_size=17, width=12, num_layers=1, num_decoder_layers=2, num_heads=4,
    head_width=3, feed_forward_width=10, num_buckets=4, max_distance=3, dropout=0.0,
)  # fmt: skip
CONFIGS = {
    "v1_0": t5.T5Config(**SMALL),
    "cheap": t5.v1_1(
        **SMALL, cross_attention_every=2, decoder_kv_heads=2, legacy_cross_bias=True
    ),
}


@cache
def model(name):
    """(functions, parameters larger than initial ones, predict)."""
    functions = seq2seq.seq2seq(CONFIGS[name])
    shapes = jax.eval_shape(functions.init, jax.random.key(0))
    random = np.random.default_rng(5)
    params = jax.tree.map(
        lambda x: (0.7 * random.normal(size=x.shape)).astype(np.float32), shapes
    )
    return functions, params, seq2seq.predictor(functions)


@cache
def memory(name):
    """Three memories of different lengths, one of padding alone, and a cache."""
    functions, params, _ = model(name)
    mask = np.array([[1, 1, 1, 1, 0], [1, 0, 1, 0, 0], [0, 0, 0, 0, 0]], np.int32)
    states = np.random.default_rng(1).normal(size=(3, 5, 12)).astype(np.float32)
    start = jax.jit(functions.start, static_argnums=3)
    return states, mask, start(params, states, mask, NEW)


@cache
def uncached(name):
    """log p after every prefix of ids [B, NEW], without a cache; compiled once."""
    functions, params, _ = model(name)

    @jax.jit
    def log_probs(ids, states, mask):
        hidden = functions.decode(params, ids, states, mask).hidden
        return jax.nn.log_softmax(functions.logits(params, hidden))

    return log_probs


def twice(x):
    return np.repeat(x, 2, axis=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_with_the_cache_as_without(name):
    """Two sequences over each of three memories."""
    _, params, predict = model(name)
    states, mask, kept = memory(name)
    ids = np.random.default_rng(2).integers(0, 17, (6, NEW)).astype(np.int32)
    expected = uncached(name)(ids, twice(states), twice(mask))
    kept = kept._replace(slots=jax.tree.map(twice, kept.slots))
    predict = jax.jit(predict)
    for step in range(NEW):
        found, kept = predict(params, ids[:, step], kept)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected[:, step], atol=2e-5)
    found, _ = predict(params, ids[:, 0], kept)
    assert np.isnan(found).all()  # there is no slot left


def generated(sampling=GREEDY, end_ids=(), seed=0, kept=None):
    functions, params, predict = model("cheap")
    return seq2seq.generate(
        predict, params, kept or memory("cheap")[2], jax.random.key(seed),
        start_id=functions.start_id, max_new_tokens=NEW, sampling=sampling,
        end_ids=end_ids,
    )  # fmt: skip


def test_greedy_takes_the_most_likely_and_ends():
    found = generated()
    states, mask, _ = memory("cheap")
    ids = np.zeros((3, NEW), np.int32)
    end = int(found.tokens[0, 1])
    ended = generated(end_ids=(end,))
    for step in range(NEW):
        log_p = np.asarray(uncached("cheap")(twice(ids), twice(states), twice(mask)))
        log_p = log_p[::2, step]
        np.testing.assert_array_equal(found.tokens[:, step], log_p.argmax(1))
        np.testing.assert_allclose(found.log_probs[:, step], log_p.max(1), atol=2e-5)
        if step + 1 < NEW:
            ids[:, step + 1] = log_p.argmax(1)
    assert (found.lengths == NEW).all()
    for row, tokens in enumerate(np.asarray(found.tokens)):
        at = np.flatnonzero(tokens == end)
        length = at[0] + 1 if len(at) else NEW
        assert ended.lengths[row] == length
        np.testing.assert_array_equal(ended.tokens[row, :length], tokens[:length])
        assert (ended.tokens[row, length:] == tokens[length - 1]).all()


def test_a_drawn_row_depends_on_its_memory_number_and_key():
    functions, params, _ = model("cheap")
    states, mask, kept = memory("cheap")
    hot = Sampling(temperature=1.5)
    drawn = generated(hot)
    states = np.concatenate([states[:1], states[:1] + 1, states[1:2]])
    other = functions.start(params, states, mask[[0, 0, 0]], NEW)
    among_others = generated(hot, kept=other)
    np.testing.assert_array_equal(among_others.tokens[0], drawn.tokens[0])
    assert (np.asarray(among_others.tokens[1:]) != drawn.tokens[1:]).any()
    np.testing.assert_array_equal(generated(hot).tokens, drawn.tokens)
    assert (np.asarray(generated(hot, seed=1).tokens) != drawn.tokens).any()


# Beam search: rules of transformers 5 in lists and float64.


def beams_by_lists(log_probs, num_beams, steps, ends, penalty, early_stopping):
    """[(score, tokens)] of one text; ``log_probs(tokens so far)`` [V] in float64."""
    running, done = [(0.0, [])], []
    while True:
        candidates = [
            (score + log_p, [*tokens, token])
            for score, tokens in running
            for token, log_p in enumerate(log_probs(tokens))
        ]
        candidates.sort(key=lambda c: -c[0])
        candidates = candidates[: max(2, 1 + len(ends)) * num_beams]
        length = len(candidates[0][1])
        ended = [c[1][-1] in ends or length == steps for c in candidates]
        full = len(done) == num_beams
        if not (early_stopping is True and full):
            done += [
                (score / length**penalty, tokens)
                for (score, tokens), e in list(zip(candidates, ended, strict=True))[
                    :num_beams
                ]
                if e
            ]
        done = sorted(done, key=lambda c: -c[0])[:num_beams]
        running = [c for c, e in zip(candidates, ended, strict=True) if not e]
        running = running[:num_beams]
        if not running or (early_stopping is True and len(done) == num_beams):
            return done
        reach = steps if early_stopping == "never" and penalty > 0 else length
        hope = running[0][0] / reach**penalty
        if len(done) == num_beams and hope <= done[-1][0]:
            return done


SEARCHES: dict[str, Any] = {
    "usual": dict(num_beams=3),
    "long": dict(num_beams=2, length_penalty=1.2, early_stopping="never"),
    "early": dict(num_beams=3, early_stopping=True, length_penalty=0.0),
    "short": dict(num_beams=2, length_penalty=-1.0, end_id=(1, 4, 9)),
    "alone": dict(num_beams=1, length_penalty=0.5),
}


@pytest.mark.parametrize("search", SEARCHES)
def test_beams_are_those_of_lists(search):
    """Another model than T5: its state is the sequence, its memory a vector a text."""
    options = {"end_id": 3, "length_penalty": 1.0, "early_stopping": False}
    options |= SEARCHES[search]
    steps, vocab, texts, start = 7, 11, 4, 10
    random = np.random.default_rng(len(search))
    params = [random.normal(size=(vocab, vocab)) for _ in range(2)]
    of_texts = random.normal(size=(texts, vocab))
    ends = options["end_id"] if search == "short" else (options["end_id"],)
    of_texts[:, list(ends)] += 2.0  # so that sequences end

    def predict(params, ids, kept):
        last, sums = params
        state = 0.5 * kept.slots + sums[ids]
        logits = jnp.repeat(kept.memory, len(ids) // texts, 0) + last[ids] + state
        return jax.nn.log_softmax(logits), kept._replace(slots=state)

    f = lambda x: jnp.asarray(x, jnp.float32)
    kept = t5.DecodingCache(
        f(of_texts), jnp.zeros((texts, vocab)), jnp.zeros((), jnp.int32)
    )
    found = beam_search(
        predict, [f(x) for x in params], kept, start_id=start, max_new_tokens=steps,
        **options,
    )  # fmt: skip

    def log_probs_of(text):
        def log_probs(tokens):
            state = np.zeros(vocab)
            for token in [start, *tokens]:
                state = 0.5 * state + params[1][token]
                logits = of_texts[text] + params[0][token] + state
            return logits - np.log(np.exp(logits).sum())

        return log_probs

    ended_early = 0
    for text in range(texts):
        expected = beams_by_lists(
            log_probs_of(text), options["num_beams"], steps, ends,
            options["length_penalty"], options["early_stopping"],
        )  # fmt: skip
        assert len(expected) == options["num_beams"]
        for beam, (score, tokens) in enumerate(expected):
            length = found.lengths[text, beam]
            assert found.tokens[text, beam, :length].tolist() == tokens
            assert (found.tokens[text, beam, length:] == tokens[-1]).all()
            np.testing.assert_allclose(found.scores[text, beam], score, rtol=1e-4)
            ended_early += len(tokens) < steps
    assert ended_early


def test_beams_of_t5_are_its_sequences():
    """The scores are those without a cache, and one beam wide enough finds the best."""
    functions, params, predict = model("cheap")
    states, mask, kept = memory("cheap")
    found = beam_search(
        predict, params, kept, start_id=0, num_beams=4, max_new_tokens=NEW, end_id=1,
        length_penalty=0.0, early_stopping="never",
    )  # fmt: skip
    assert (np.diff(found.scores, axis=1) <= 0).all()
    for beam in range(4):
        tokens = np.asarray(found.tokens[:, beam])
        ids = np.pad(tokens[:, :-1], ((0, 0), (1, 0)))
        log_p = uncached("cheap")(twice(ids), twice(states), twice(mask))[::2]
        log_p = np.asarray(log_p, np.float64)
        each = np.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
        real = np.arange(NEW) < np.asarray(found.lengths)[:, beam, None]
        np.testing.assert_allclose(
            found.scores[:, beam], (each * real).sum(1), atol=1e-4
        )
    greedy = np.asarray(generated(end_ids=(1,)).log_probs).sum(1)
    assert (found.scores[:, 0] >= greedy - 1e-4).all()


def test_bad_searches_are_named():
    _, params, predict = model("cheap")
    options = dict(start_id=0, end_id=1, num_beams=2, max_new_tokens=NEW)
    for changes, word in (
        ({"num_beams": 0}, "num_beams"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"end_id": tuple(range(17))}, "vocabulary"),
    ):
        with pytest.raises(UserError, match=word):
            beam_search(predict, params, memory("cheap")[2], **options | changes)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["t5_v1_0", "t5_v1_1"])
def test_transformers_generates_the_same(name):
    import torch
    import transformers

    folder = GOLDEN / "hf" / name
    config, params = pretrained.load_t5(folder)
    functions = seq2seq.seq2seq(config)
    predict = seq2seq.predictor(functions)
    network: Any = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    network.eval()
    random = np.random.default_rng(0)
    ids = random.integers(2, config.vocab_size, (4, 9)).astype(np.int32)
    mask = (np.arange(9) < np.array([9, 4, 7, 2])[:, None]).astype(np.int32)
    states = jax.jit(functions.encode)(params, ids, mask)
    new = 10
    kept = functions.start(params, states, mask, new)

    def theirs(**options):
        config = transformers.GenerationConfig(
            max_new_tokens=new, do_sample=False, pad_token_id=0,
            decoder_start_token_id=0, return_dict_in_generate=True,
            output_scores=True, **options,
        )  # fmt: skip
        with torch.inference_mode():
            return network.generate(
                torch.from_numpy(ids).long(),
                attention_mask=torch.from_numpy(mask).long(),
                generation_config=config,
            )

    found = seq2seq.generate(
        predict, params, kept, jax.random.key(0), start_id=0, max_new_tokens=new
    )
    expected = theirs(eos_token_id=None).sequences[:, 1:].numpy()
    np.testing.assert_array_equal(found.tokens, expected)
    # Tokens that are likely somewhere end a sequence, so that some end early.
    ends = tuple(int(x) for x in np.unique(expected)[::2])
    ended_early = 0
    for options in SEARCHES.values():
        options = {"length_penalty": 1.0, "early_stopping": False, **options}
        options |= {"num_beams": options["num_beams"] + 1}  # alone would be greedy
        options.pop("end_id", None)
        beams = beam_search(
            predict, params, kept, start_id=0, max_new_tokens=new, end_id=ends,
            **options,
        )  # fmt: skip
        expected = theirs(
            eos_token_id=list(ends), num_return_sequences=options["num_beams"],
            **options,
        )  # fmt: skip
        scores = expected.sequences_scores.numpy().reshape(beams.scores.shape)
        np.testing.assert_allclose(beams.scores, scores, atol=1e-4)
        sequences = expected.sequences[:, 1:].numpy()
        tokens = np.asarray(beams.tokens).reshape(-1, new)
        lengths = np.asarray(beams.lengths).reshape(-1)
        ended_early += (lengths < new).sum()
        for row, length in enumerate(lengths):
            np.testing.assert_array_equal(sequences[row, :length], tokens[row, :length])
    assert ended_early > 4
