"""The cache and what is generated with it, against the decoder without one."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.models import generation
from rlm_jax.models.decoder import Decoder, gpt2, modern
from rlm_jax.models.generation import GREEDY, Sampling

VOCAB, PROMPT, NEW = 23, 6, 5
SIZES = dict(
    vocab_size=VOCAB, num_layers=2, width=8, num_heads=2, feed_forward_width=12,
    max_length=PROMPT + NEW,
)  # fmt: skip
ADAPTIVE = dict(cutoffs=(6, 14), adaptive_factor=2)
CONFIGS = {
    "gpt2": gpt2(**SIZES),
    "gpt2_adaptive": gpt2(**SIZES, **ADAPTIVE),
    "modern": modern(**SIZES),
    "modern_untied_adaptive": modern(**SIZES, **ADAPTIVE, tie_embeddings=False),
    "sinusoidal": modern(**SIZES, positions="sinusoidal", activation="relu"),
    "grouped": modern(
        **SIZES | {"num_heads": 4}, num_kv_heads=2, head_width=6, rotary_base=100.0
    ),
}
LENGTHS = np.array([PROMPT, 2, 4])


@cache
def initialised(name):
    """Larger weights than the usual ones, so that every path matters."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    shapes = jax.eval_shape(
        lambda: Decoder(CONFIGS[name]).init(
            jax.random.key(0), tokens, tokens, method="score"
        )
    )["params"]
    random = np.random.default_rng(5)
    return jax.tree.map(
        lambda x: jnp.asarray(0.5 * random.normal(size=x.shape), jnp.float32), shapes
    )


@cache
def functions(name):
    return generation.generator(CONFIGS[name])


@cache
def uncached(name):
    """log p of every next token, without a cache; one shape, compiled once."""

    @jax.jit
    def run(tokens):
        return Decoder(CONFIGS[name]).apply(
            {"params": initialised(name)}, tokens, method="log_probs"
        )

    def log_probs(tokens):
        padded = np.zeros((1, PROMPT + NEW), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(run(padded))[0, : len(tokens)]

    return log_probs


def prompts(side="right"):
    """(tokens, mask) [3, PROMPT] of texts of different lengths; padding is noise."""
    random = np.random.default_rng(3)
    texts = random.integers(0, VOCAB, (3, PROMPT)).astype(np.int32)
    tokens = random.integers(0, VOCAB, (3, PROMPT)).astype(np.int32)
    mask = np.zeros((3, PROMPT), np.int32)
    for row, length in enumerate(LENGTHS):
        if side == "right":
            at = slice(0, length)
        elif side == "left":
            at = slice(PROMPT - length, None)
        else:  # on both sides of each token but the last
            at = np.sort(np.append(random.permutation(PROMPT - 1)[: length - 1], 5))
        tokens[row, at] = texts[row, :length]
        mask[row, at] = 1
    return tokens, mask


def generate(name, tokens, mask, sampling=GREEDY, seed=0, **options):
    return functions(name).generate(
        initialised(name),
        tokens,
        mask,
        jax.random.key(seed),
        max_new_tokens=NEW,
        sampling=sampling,
        **options,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_with_the_cache_is_greedy_without(name):
    tokens, mask = prompts()
    found = generate(name, tokens, mask)
    assert found.tokens.shape == (3, NEW) and (found.lengths == NEW).all()
    for row, length in enumerate(LENGTHS):
        text = list(tokens[row, :length])
        for step in range(NEW):
            log_p = uncached(name)(text)[-1]
            best, second = np.sort(log_p)[[-1, -2]]
            assert best - second > 1e-3  # a clear choice
            assert found.tokens[row, step] == log_p.argmax()
            np.testing.assert_allclose(found.log_probs[row, step], best, atol=1e-4)
            text.append(int(log_p.argmax()))


@pytest.mark.parametrize("side", ["left", "scattered"])
@pytest.mark.parametrize("name", ["gpt2", "modern", "sinusoidal"])
def test_it_does_not_matter_where_padding_stands(name, side):
    sampling = Sampling(temperature=1.0)
    right = generate(name, *prompts(), sampling)
    other = generate(name, *prompts(side), sampling)
    np.testing.assert_array_equal(right.tokens, other.tokens)
    np.testing.assert_allclose(right.log_probs, other.log_probs, atol=1e-4)


def test_rows_are_independent():
    """A row keeps its text whatever the others are; rows and seeds differ in noise."""
    tokens, mask = prompts()
    sampling = Sampling(temperature=1.5)
    together = generate("modern", tokens, mask, sampling)
    others = np.array(tokens)
    others[1:] = (others[1:] + 7) % VOCAB
    changed = generate("modern", others, mask, sampling)
    np.testing.assert_array_equal(together.tokens[0], changed.tokens[0])
    same = generate("modern", tokens[[0, 0, 0]], mask[[0, 0, 0]], sampling).tokens
    assert len(np.unique(same, axis=0)) == 3
    again = generate("modern", tokens, mask, sampling, seed=1).tokens
    assert (np.asarray(again) != together.tokens).any()


def test_a_row_ends_at_an_end_token():
    tokens, mask = prompts()
    free = generate("modern", tokens, mask)
    ends = (int(free.tokens[0, 1]), int(free.tokens[1, 2]))
    ended = generate("modern", tokens, mask, end_ids=ends)
    for row in range(3):
        text = np.asarray(free.tokens[row])
        at = np.flatnonzero(np.isin(text, ends))
        length = at[0] + 1 if len(at) else NEW
        assert ended.lengths[row] == length
        np.testing.assert_array_equal(ended.tokens[row, :length], text[:length])
    # Rows that ended repeat their last token at no cost, unless all have.
    assert ended.lengths[0] <= 2
    rest = slice(int(ended.lengths[0]), int(ended.lengths.max()))
    assert (ended.tokens[0, rest] == ended.tokens[0, ended.lengths[0] - 1]).all()
    assert (ended.log_probs[0, ended.lengths[0] :] == 0).all()


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_of_chunks_are_those_of_the_whole(name):
    """A cache extended in pieces, padding in between; and another way afterwards."""
    run, params = functions(name), initialised(name)
    score = jax.jit(run.score)
    random = np.random.default_rng(0)
    text = random.integers(0, VOCAB, 9).astype(np.int32)
    kept = run.empty(1, 12)
    found, slot_of = [], iter(range(8))
    for pattern in ([1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 0]):
        tokens, targets = np.zeros((2, 1, 4), np.int32)
        for column in np.flatnonzero(pattern):
            i = next(slot_of)
            tokens[0, column], targets[0, column] = text[i], text[i + 1]
        mask = np.array([pattern], np.int32)
        (target, normaliser, keys), kept = score(params, tokens, targets, mask, kept)
        found.append(np.asarray(target - normaliser)[mask > 0])
        assert keys.shape == (1, 4, 8)
    wanted = uncached(name)(text[:8])[np.arange(8), text[1:]]
    np.testing.assert_allclose(np.concatenate(found), wanted, rtol=1e-4, atol=1e-4)
    assert int(kept.length) == 12 and int(kept.valid.sum()) == 8
    # Back to the first 4 slots, 3 tokens, and on with the rest.
    back = generation.rewind(kept, 4)
    (target, normaliser, _), _ = score(
        params, text[None, 3:7], text[None, 4:8], np.ones((1, 4), np.int32), back
    )
    np.testing.assert_allclose(
        np.asarray(target - normaliser)[0], wanted[3:7], rtol=1e-4, atol=1e-4
    )


def test_a_kept_cache_is_continued_again():
    """Its owner may decode from it twice, and with slots to spare."""
    tokens, mask = prompts()
    run, params = functions("modern"), initialised("modern")
    empty = run.empty(3, PROMPT + 2)
    log_probs, kept = jax.jit(run.predict)(params, tokens, mask, empty)
    options = dict(max_new_tokens=NEW, sampling=GREEDY)
    wanted = generate("modern", tokens, mask).tokens
    for _ in range(2):
        found = run.decode(params, kept, log_probs, jax.random.key(0), **options)
        np.testing.assert_array_equal(found.tokens, wanted)


def test_what_does_not_fit_a_cache_is_nan():
    run, params = functions("gpt2"), initialised("gpt2")
    ones = np.ones((1, 4), np.int32)
    extend = jax.jit(run.extend)
    output, kept = extend(params, ones, ones, run.empty(1, 6))
    assert np.isfinite(output.features).all()
    output, _ = extend(params, ones, ones, kept)
    assert np.isnan(output.features).all()


def test_what_lies_beyond_learned_positions_is_nan():
    """And leaves the slots of the cache fit for use."""
    run, params = functions("gpt2"), initialised("gpt2")
    extend = jax.jit(run.extend)
    tokens = np.arange(PROMPT + NEW + 1, dtype=np.int32)[None]
    ones = np.ones_like(tokens)
    output, kept = extend(params, tokens, ones, run.empty(1, 2 * len(ones[0])))
    assert np.isnan(output.features[0, -1]).all()
    assert np.isfinite(output.features[0, :-1]).all()
    again, _ = extend(params, tokens, ones, generation.rewind(kept, 0))
    np.testing.assert_array_equal(again.features, output.features)


def test_documents_vote_on_every_token():
    """Groups of two rows: log sum_i w_i p_i(token), one token for both."""
    tokens, mask = prompts()
    tokens, mask = tokens[[0, 1, 2, 0]], mask[[0, 1, 2, 0]]
    weights = np.log(np.array([[0.25, 0.75], [0.6, 0.4]], np.float32))
    found = generate("modern", tokens, mask, log_weights=weights)
    assert found.tokens.shape == (2, NEW)
    for group in range(2):
        texts = [list(tokens[i][mask[i] > 0]) for i in (2 * group, 2 * group + 1)]
        for step in range(NEW):
            log_p = np.stack([uncached("modern")(text)[-1] for text in texts])
            mixed = np.log(np.exp(weights[group][:, None] + log_p).sum(0))
            assert found.tokens[group, step] == mixed.argmax()
            np.testing.assert_allclose(
                found.log_probs[group, step], mixed.max(), atol=1e-4
            )
            for text in texts:
                text.append(int(mixed.argmax()))


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        (Sampling(), [0.1, 0.4, 0.05, 0.3, 0.15]),
        (Sampling(temperature=0.5), [0.01, 0.16, 0.0025, 0.09, 0.0225]),
        (Sampling(top_k=2), [0, 0.4, 0, 0.3, 0]),
        (Sampling(top_k=9), [0.1, 0.4, 0.05, 0.3, 0.15]),
        (Sampling(top_p=0.75), [0, 0.4, 0, 0.3, 0.15]),
        (Sampling(top_p=0.1), [0, 1, 0, 0, 0]),
        (Sampling(top_k=3, top_p=0.8), [0, 0.4, 0, 0.3, 0]),
        (Sampling(temperature=0.5, top_p=0.8), [0, 0.16, 0, 0.09, 0]),
        (Sampling(temperature=0.0), [0, 1, 0, 0, 0]),
    ],
    ids=[
        "plain", "colder", "top_k", "top_k_of_all", "top_p", "top_p_of_one", "both",
        "top_p_when_colder", "greedy",
    ],
)  # fmt: skip
def test_what_is_drawn_and_how_often(sampling, wanted):
    n = 20_000
    log_p = jnp.log(jnp.array([0.1, 0.4, 0.05, 0.3, 0.15]))
    keys = jax.random.split(jax.random.key(0), n)
    drawn = jax.jit(partial(generation.draw, sampling=sampling))(
        keys, jnp.broadcast_to(log_p, (n, 5))
    )
    share = np.bincount(drawn, minlength=5) / n
    wanted = np.array(wanted) / np.sum(wanted)
    assert ((share == 0) == (wanted == 0)).all()
    # Four standard deviations of a binomial share.
    assert (np.abs(share - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / n)).all()


def test_half_precision_keeps_a_cache_of_its_own_type():
    config = dataclasses.replace(CONFIGS["grouped"], dtype="bfloat16")
    run = generation.generator(config)
    tokens, mask = prompts()
    empty = run.empty(3, PROMPT)
    params = initialised("grouped")
    output, kept = jax.jit(run.extend)(params, tokens, mask, empty)
    assert output.features.dtype == kept.layers[0].keys.dtype == jnp.bfloat16
    assert kept.layers[0].keys.shape == (3, 2, PROMPT, 6)
    exact = functions("grouped")
    exact, _ = jax.jit(exact.extend)(params, tokens, mask, exact.empty(3, PROMPT))
    difference = np.abs(output.features.astype(np.float32) - exact.features)
    assert difference[mask > 0].max() < 0.3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(temperature=-1.0), "temperature is -1.0; choose 0"),
        (dict(top_k=-1), "top_k is -1; choose"),
        (dict(top_p=0.0), r"top_p is 0.0; choose it in \(0, 1\]"),
        (dict(top_p=1.5), "top_p is 1.5"),
    ],
    ids=["temperature", "top_k", "no_top_p", "top_p"],
)
def test_sampling_that_means_nothing_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        Sampling(**options)


def test_learned_positions_are_not_passed():
    run = functions("gpt2")
    tokens, mask = prompts()
    with pytest.raises(UserError, match="6 tokens, padding counted, and 6 new ones"):
        run.generate(
            initialised("gpt2"), tokens, mask, jax.random.key(0), max_new_tokens=6
        )
