"""RPT: by hand, causal over a whole document, window by window as in one row."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.models import layers, rpt
from rlm_jax.models.chunk_retriever import ChunkRetriever, NeighbourAugmenter
from rlm_jax.models.decoder import Decoder, empty_cache, gpt2, modern
from rlm_jax.models.rpt import Rpt, RptSizes
from rlm_jax.ops import self_retrieval
from tests.models.test_retro import randomised, turned

M, K, WINDOW, WIDTH, LENGTH = 2, 2, 4, 8, 24
CONFIG = modern(
    vocab_size=LENGTH, num_layers=2, width=WIDTH, num_heads=2, feed_forward_width=12,
    attention_window=WINDOW,
)  # fmt: skip
SIZES = RptSizes(M, K, 1, (2,), "previous_windows")
RULES = ("previous_windows", "all_earlier")


def sizes(rule):
    return RptSizes(M, K, 1, (2,), rule)


def first(scores, visible):
    return self_retrieval.top(scores, visible, K)


@cache
def parameters():
    tokens = jnp.zeros((1, WINDOW), jnp.int32)
    shapes = jax.eval_shape(
        lambda: Rpt(CONFIG, SIZES).init(
            jax.random.key(0), tokens, tokens, first, method="score"
        )
    )
    return randomised(shapes["params"])


def document(seed=0):
    """Every token once, so that its embedding stands for its place."""
    return np.random.default_rng(seed).permutation(LENGTH)[None].astype(np.int32)


@cache
def reading(rule, choose=first):
    model = Rpt(CONFIG, sizes(rule))
    return jax.jit(lambda p, tokens: model.apply({"params": p}, tokens, choose))


@cache
def going_on(rule):
    model = Rpt(CONFIG, sizes(rule))
    return jax.jit(lambda p, *args: model.apply({"params": p}, args[0], first, args[1]))


@pytest.mark.parametrize("rule", RULES)
def test_windows_one_after_another_are_the_row(rule):
    """Also two at a time; the memory holds all of the document."""
    params, tokens = parameters(), document()
    wanted = reading(rule)(params, tokens)
    memory = LENGTH // M
    state = rpt.empty_state(CONFIG, sizes(rule), 1, memory)
    at, seen = 0, []
    for count in (1, 2, 1, 2):
        part = tokens[:, at : at + count * WINDOW]
        found = going_on(rule)(params, part, state)
        state = found.state
        here = slice(at, at + count * WINDOW)
        np.testing.assert_allclose(
            found.features, wanted.features[:, here], rtol=1e-4, atol=1e-5
        )
        chunks = slice(at // M, (at + count * WINDOW) // M)
        pool = found.scores.shape[-1]
        seen.append(self_retrieval.to_distances(found.chosen, pool))
        expected = self_retrieval.to_distances(wanted.chosen, memory)[:, chunks]
        np.testing.assert_array_equal(seen[-1], expected)
        at += count * WINDOW
    assert at == LENGTH and any(np.any(x) for x in seen)


def test_a_memory_forgets_what_is_out_of_reach():
    params, tokens = parameters(), document()
    state = rpt.empty_state(CONFIG, SIZES, 1, 4)
    shapes = [x.shape for x in jax.tree.leaves(state)]
    for at in range(0, LENGTH, WINDOW):
        found = going_on("previous_windows")(params, tokens[:, at : at + WINDOW], state)
        state = found.state
        assert [x.shape for x in jax.tree.leaves(state)] == shapes
        # Of the four before the window, but for the two nearest.
        assert found.visible.sum() == (2 * M if at > WINDOW else 0)


def dependence(function, params, tokens):
    """|d output / d embedding| summed, [outputs, T]: which token each output reads."""
    table = params["decoder"]["vocabulary"]["embedding_0"]

    def of(table):
        vocabulary = {**params["decoder"]["vocabulary"], "embedding_0": table}
        decoder = {**params["decoder"], "vocabulary": vocabulary}
        return function({**params, "decoder": decoder})

    gradient = jax.jit(jax.jacrev(of))(table)
    return np.abs(gradient).sum(-1)[:, tokens[0]]


@pytest.mark.parametrize("rule", RULES)
def test_nothing_depends_on_a_later_token(rule):
    """Gradients over a whole document, neighbours and scores of retrieval included."""
    params, tokens = parameters(), document()
    found = reading(rule)(params, tokens)
    mix = np.random.default_rng(1).normal(size=WIDTH).astype(np.float32)

    def features(params):
        return reading(rule)(params, tokens).features[0] @ mix

    def scores(params):
        out = reading(rule)(params, tokens)
        return jnp.where(out.visible, out.scores, 0)[0].sum(1)

    reads = dependence(features, params, tokens)
    at = np.arange(LENGTH)
    assert (reads[at[:, None] < at] == 0).all()
    # What it reads: its windows, two layers deep, and what was retrieved for its chunk
    # by the window of tokens that reads it, with what those states had read.
    window = at // WINDOW
    attended = (window[:, None] - window <= 2) & (at <= at[:, None])
    retrieved = np.zeros((LENGTH, LENGTH), bool)
    for chunk in range(LENGTH // M):
        for place in range(K):
            if not found.chosen.present[0, chunk, place]:
                continue
            j = int(found.chosen.places[0, chunk, place])
            states = slice(j * M, (j + 2) * M)
            reader = (chunk + 1) * M - 1
            assert (reads[reader, states] > 1e-6).all()
            # Later ones see what the reader read.
            for t in range(reader, LENGTH):
                retrieved[t, : states.stop] = True
    assert (reads[~attended & ~retrieved] == 0).all()
    assert (reads[-1][~attended[-1]] > 0).any()

    asks = dependence(scores, params, tokens)
    for chunk in range(LENGTH // M):
        assert (asks[chunk, (chunk + 1) * M :] == 0).all()
    assert (asks[-1] > 0).any()


def test_what_is_retrieved_depends_on_nothing_later():
    params, tokens = parameters(), document()
    whole = reading("all_earlier")(params, tokens)
    for chunk in (3, 7):
        other = tokens.copy()
        other[:, (chunk + 1) * M :] = other[:, (chunk + 1) * M :][:, ::-1]
        found = reading("all_earlier")(params, other)
        for a, b in zip(whole.chosen, found.chosen, strict=True):
            np.testing.assert_array_equal(a[:, : chunk + 1], b[:, : chunk + 1])
        changed = np.asarray(whole.features) != np.asarray(found.features)
        assert not changed[:, : (chunk + 1) * M].any() and changed.any()


def test_without_neighbours_it_is_the_decoder():
    params, tokens = parameters(), document()

    def nothing(scores, visible):
        places = jnp.zeros((*scores.shape[:2], K), jnp.int32)
        return self_retrieval.Chosen(places, places > 0)

    off = reading("previous_windows", nothing)(params, tokens).features
    decoder = Decoder(CONFIG)
    plain = jax.jit(lambda p: decoder.apply({"params": p}, tokens).features)(
        params["decoder"]
    )
    np.testing.assert_allclose(off, plain, rtol=1e-5, atol=1e-6)
    on = reading("previous_windows")(params, tokens).features
    # Chunk 4 is the first that may retrieve; its last token is the first to read.
    differs = np.abs(np.asarray(on - off)).max(axis=(0, 2)) > 1e-4
    assert not differs[: 5 * M - 1].any() and differs[5 * M - 1 :].all()


def test_a_cache_gives_what_the_windows_give():
    """`Decoder.extend`, token by token, with padding in front of a row."""
    decoder = Decoder(CONFIG)
    params = parameters()["decoder"]
    tokens = np.concatenate([document(), document(1)])[:, :13]
    plain = jax.jit(lambda p, x: decoder.apply({"params": p}, x).features)
    wanted = plain(params, tokens)
    padded = np.concatenate([tokens, np.zeros((2, 2), np.int32)], axis=1)
    padded[1] = np.roll(padded[1], 2)
    mask = np.ones_like(padded)
    mask[0, -2:] = mask[1, :2] = 0
    extend = jax.jit(
        lambda p, *args: decoder.apply({"params": p}, *args, method="extend")
    )
    state, out = empty_cache(CONFIG, 2, 15), []
    for at in range(15):
        here = slice(at, at + 1)
        found, state = extend(params, padded[:, here], mask[:, here], state)
        out.append(found.features)
    out = np.concatenate(out, axis=1)
    np.testing.assert_allclose(out[0, :13], wanted[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out[1, 2:], wanted[1], rtol=1e-4, atol=1e-5)


def test_attention_to_windows_against_a_loop():
    rng = np.random.default_rng(0)
    length, window, d = 11, 4, 3
    q = rng.normal(size=(1, length, 4, d)).astype(np.float32)
    k, v = rng.normal(size=(2, 1, length, 2, d)).astype(np.float32)
    past = layers.KeysValues(*rng.normal(size=(2, 1, window, 2, d)).astype(np.float32))
    run = jax.jit(layers.attend_to_windows, static_argnums=3)
    for before in (None, past):
        args = () if before is None else (before, jnp.array(True))
        found = run(q, k, v, window, *args)
        for t, h in np.ndindex(length, 4):
            begin = t // window * window - window
            logits, values = [], []
            for s in range(begin, t + 1):
                if s < 0 and before is None:
                    continue
                keys, vals = (k, v) if s >= 0 else (past.keys, past.values)
                key, value = (x[0, s, h // 2].astype(np.float64) for x in (keys, vals))
                logits.append(q[0, t, h] @ key / np.sqrt(d))
                values.append(value)
            share = np.exp(np.array(logits) - max(logits))
            wanted = share / share.sum() @ np.array(values)
            np.testing.assert_allclose(found[0, t, h], wanted, rtol=1e-4, atol=1e-5)


def rms(x, params):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params["scale"]


def heads_by_hand(q, k, v, heads=2):
    """Softmax attention of every query to every key, turned by their places."""
    d = q.shape[1] // heads
    out = np.zeros_like(q)
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        keys = np.stack([turned(x[part], i) for i, x in enumerate(k)])
        for i, x in enumerate(q):
            logits = keys @ turned(x[part], i) / np.sqrt(d)
            share = np.exp(logits - logits.max())
            out[i, part] = share / share.sum() @ v[:, part]
    return out


def itself_by_hand(x, params):
    q, k, v = np.split(x @ params["qkv"]["kernel"], 3, axis=-1)
    return heads_by_hand(q, k, v) @ params["out"]["kernel"]


def test_the_retriever_by_hand():
    module = ChunkRetriever(CONFIG)
    states = np.random.default_rng(2).normal(size=(1, 3, M, WIDTH)).astype(np.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), states))
    params = randomised(shapes["params"])
    found = jax.jit(lambda p, x: module.apply({"params": p}, x))(params, states)
    p = jax.tree.map(np.float64, params)
    for c in range(3):
        x = states[0, c].astype(np.float64)
        encoded = x + itself_by_hand(rms(x, p["attention_norm"]), p["attention"])
        pooled = encoded.mean(0)
        wanted = [
            rms(pooled, p[f"{name}_norm"]) @ p[name]["kernel"] + p[name]["bias"]
            for name in ("query", "key")
        ]
        for a, b in zip(found, [*wanted, encoded], strict=True):
            np.testing.assert_allclose(a[0, c], b, rtol=1e-3, atol=1e-4)


def test_augmentation_and_gate_by_hand():
    module = NeighbourAugmenter(CONFIG, SIZES.reader(CONFIG))
    rng = np.random.default_rng(4)
    neighbours = rng.normal(size=(2, K, 2 * M, WIDTH)).astype(np.float32)
    chunks = rng.normal(size=(2, M, WIDTH)).astype(np.float32)
    init = partial(module.init, deterministic=True)
    shapes = jax.eval_shape(lambda: init(jax.random.key(0), neighbours, chunks))
    params = randomised(shapes["params"])
    run = jax.jit(lambda p, *args: module.apply({"params": p}, *args, True))
    found = run(params, neighbours, chunks)
    p = jax.tree.map(np.float64, params)
    for n, k in np.ndindex(2, K):
        x = neighbours[n, k].astype(np.float64)
        norm = rms(x, p["self_attention_norm"])
        x = x + itself_by_hand(norm, p["self_attention"])
        cross = p["cross_attention"]
        q = rms(x, p["cross_attention_norm"]) @ cross["query"]["kernel"]
        read = rms(chunks[n].astype(np.float64), p["chunk_norm"])
        keys, values = np.split(read @ cross["key_value"]["kernel"], 2, axis=-1)
        x = x + heads_by_hand(q, keys, values) @ cross["out"]["kernel"]
        logit = rms(x.mean(0), p["gate_norm"]) @ p["gate"]["kernel"] + p["gate"]["bias"]
        gate = 0.1 + 0.9 / (1 + np.exp(-logit / WIDTH))
        wanted = rms(x, p["final_norm"]) * gate
        np.testing.assert_allclose(found[n, k], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (CONFIG, {"chunk_length": 3}, "attention_window is 4.*chunks of 3"),
        (CONFIG, {"chunk_length": 0}, "chunk_length is 0"),
        (CONFIG, {"k": 0}, "k 0"),
        (CONFIG, {"lower_layers": 2}, "2 of 2 layers come before"),
        (CONFIG, {"cross_layers": (1,)}, "rise from 2 to 2"),
        (CONFIG, {"cross_layers": ()}, "choose some that rise"),
        (CONFIG, {"reader_heads": 3}, "8 wide with 3 heads"),
        (
            gpt2(vocab_size=9, num_layers=2, attention_window=4),
            {},
            "positions are learned.*set decoder.positions",
        ),
    ],
)
def test_what_does_not_fit_is_refused(config, changes, message):
    with pytest.raises(UserError, match=message):
        rpt.check(config, dataclasses.replace(SIZES, **changes))


def test_a_row_that_is_no_whole_windows_is_refused():
    with pytest.raises(UserError, match="6 tokens, which are no whole windows of 4"):
        reading("previous_windows")(parameters(), document()[:, :6])
