"""What RETRO generates with a cache, against whole rows without one."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.models.decoder import gpt2
from rlm_jax.models.generation import GREEDY, Sampling
from rlm_jax.models.neighbours import NeighbourEncoderConfig
from rlm_jax.models.retro import Retro
from rlm_jax.models.retro_generation import retro_generator

VOCAB, M, K, PROMPT, NEW = 23, 3, 2, 5, 7
CONFIG = gpt2(
    vocab_size=VOCAB, num_layers=2, width=8, num_heads=2, feed_forward_width=12,
    max_length=PROMPT + NEW,
)  # fmt: skip
# Heads of another width than the states', and a layer that does not read the chunk.
ENCODER = NeighbourEncoderConfig(2, width=8, num_heads=2, head_width=6, cca_layers=(1,))
SIZES = CONFIG, ENCODER, M, (1, 2)


@cache
def initialised():
    tokens = jnp.zeros((1, M), jnp.int32)
    args = tokens, tokens, jnp.zeros((1, 1, K, 2 * M), jnp.int32)
    shapes = jax.eval_shape(
        lambda: Retro(*SIZES).init(jax.random.key(0), *args, method="score")
    )["params"]
    random = np.random.default_rng(5)
    return jax.tree.map(
        lambda x: jnp.asarray(0.6 * random.normal(size=x.shape), jnp.float32), shapes
    )


@cache
def generator():
    return retro_generator(*SIZES)


def retrieve(tokens):
    """Some function of the last chunk; the second chunk's second is absent."""
    seed = tokens[:, -M:].sum(axis=1)[:, None, None]
    places = np.arange(K * 2 * M).reshape(1, K, 2 * M)
    mask = np.ones((len(tokens), K, 2 * M), np.float32)
    if tokens.shape[1] == 2 * M:
        mask[:, 1] = 0
    return ((seed * places + 3 * seed) % VOCAB).astype(np.int32), mask


def prompts():
    return np.random.default_rng(1).integers(0, VOCAB, (2, PROMPT)).astype(np.int32)


def generate(retrieve, **options):
    return generator().generate(
        initialised(),
        prompts(),
        retrieve,
        jax.random.key(0),
        neighbours_shape=(K, 2 * M),
        max_new_tokens=NEW,
        **{"sampling": GREEDY} | options,
    )


@cache
def uncached(has_neighbours):
    def run(*args):
        params = {"params": initialised()}
        return Retro(*SIZES).apply(params, *args, method="log_probs")

    return jax.jit(run)


@pytest.mark.parametrize("on", [True, False], ids=["on", "off"])
def test_greedy_is_greedy_without_a_cache(on):
    asked = []

    def counted(tokens):
        asked.append(tokens.shape[1])
        return retrieve(tokens)

    found = generate(counted if on else None)
    text = np.concatenate([prompts(), found.tokens], axis=1)
    args = [text]
    if on:
        # Nothing was asked for chunk 3, which the last token ends.
        assert asked == [3, 6, 9]
        each = [retrieve(text[:, : u * M]) for u in (1, 2, 3, 4)]
        args += [np.stack(x, axis=1) for x in zip(*each, strict=True)]
    log_p = np.asarray(uncached(on)(*args))[:, PROMPT - 1 : -1]
    best, second = np.sort(log_p)[..., [-1, -2]].transpose(2, 0, 1)
    assert (best - second > 1e-3).all()  # a clear choice
    np.testing.assert_array_equal(found.tokens, log_p.argmax(axis=-1))
    np.testing.assert_allclose(found.log_probs, best, atol=1e-4)
    assert (found.lengths == NEW).all()


def test_retrieval_changes_what_is_generated():
    on, off = generate(retrieve), generate(None)
    nothing = generate(lambda tokens: None)
    np.testing.assert_array_equal(off.tokens, nothing.tokens)
    assert np.abs(on.log_probs - off.log_probs).max() > 1e-3


def test_a_row_ends_where_it_is_told_to():
    whole = generate(retrieve)
    end = int(whole.tokens[0, 2])
    found = generate(retrieve, end_ids=(end,))
    length = int(np.flatnonzero(whole.tokens[0] == end)[0]) + 1
    assert found.lengths[0] == length
    np.testing.assert_array_equal(found.tokens[0, :length], whole.tokens[0, :length])
    assert (found.tokens[0, length:] == end).all()
    assert (found.log_probs[0, length:] == 0).all()


def test_draws_follow_the_key():
    first, second = (generate(retrieve, sampling=Sampling(2.0)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    greedy = generate(retrieve)
    assert (first.tokens != greedy.tokens).any()


def test_what_cannot_be_continued_is_refused():
    def run(tokens, new):
        generator().generate(
            initialised(), tokens, None, jax.random.key(0),
            neighbours_shape=(K, 2 * M), max_new_tokens=new,
        )  # fmt: skip

    with pytest.raises(UserError, match="5 tokens and 8 new ones go past max_length"):
        run(prompts(), NEW + 1)
    with pytest.raises(UserError, match="no token"):
        run(prompts()[:, :0], NEW)
