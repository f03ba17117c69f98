"""A text with documents: windows, passes, and what is chosen of them."""

import json
import os
import pathlib
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax import pretrained
from rlm_jax.errors import UserError
from rlm_jax.evaluate import in_context
from rlm_jax.evaluate.in_context import Protocol
from rlm_jax.methods import in_context as ralm
from rlm_jax.models import generation, scoring

GOLDEN = pathlib.Path(
    os.environ.get("RLM_GOLDEN") or pathlib.Path(__file__).parents[1] / "golden"
)
VOCABULARY = 11


@pytest.fixture(scope="module")
def gpt2():
    config, params = pretrained.load_decoder(GOLDEN / "hf" / "gpt2")
    run = scoring.last_log_probs(config)
    return config, params, lambda ids, lengths, last: run(params, ids, lengths, last)


def bag(ids, lengths, last):
    """A black box: how often a token stands before its place in the row, smoothed."""
    found = np.zeros((len(ids), last), np.float32)
    for row, (tokens, length) in enumerate(zip(ids, lengths, strict=True)):
        for j, t in enumerate(range(length - last, length)):
            count = (tokens[:t] == tokens[t]).sum() + 0.1
            found[row, j] = np.log(count / (t + 0.1 * VOCABULARY))
    return found


@pytest.fixture
def text():
    rng = np.random.default_rng(0)
    return rng.integers(0, VOCABULARY, 90).astype(np.int32)


@pytest.fixture
def collection():
    rng = np.random.default_rng(1)
    return [rng.integers(0, VOCABULARY, n).astype(np.int32) for n in (3, 9, 6, 12, 8)]


def tables(golden):
    return [x for x in golden("in_context_ralm_windows") if x.startswith("table")]


def test_windows_and_queries_of_the_released_code(golden):
    names = tables(golden)
    assert names
    for name in names:
        sizes = {part[0]: int(part[1:]) for part in name.split("_")[1:]}
        at = in_context.strides(
            sizes["n"],
            window=sizes["w"],
            stride=sizes["s"],
            query_length=sizes["q"],
        )
        table = golden("in_context_ralm_windows")[name]
        np.testing.assert_array_equal(at.begin, table[:, 0])
        np.testing.assert_array_equal(at.end, table[:, 1])
        np.testing.assert_array_equal(at.first, table[:, 2])
        tokens = np.arange(sizes["n"])
        asked = in_context.queries(tokens, at)
        for query, row in zip(asked, table, strict=True):
            np.testing.assert_array_equal(query, tokens[row[4] : row[5]])
            assert bool(len(query)) == bool(row[6])


def released(z):
    """The golden text, its documents as rows of a list, and the protocol."""
    tokens = z["token_ids"].astype(np.int32)
    meta = json.loads(str(z["meta"]))
    ranked = re.search(r"smallest nll of the (\d+) tokens before", meta["formula"])
    assert ranked
    protocol = Protocol(
        window=int(z["window"]),
        stride=int(z["stride"]),
        query_length=4,  # nothing is searched for
        document_length=meta["options"]["retrieved_max_length"],
        rank_tokens=int(ranked[1]),
        reuse=1,
        batch_size=4,
    )
    at = in_context.strides(
        len(tokens),
        window=protocol.window,
        stride=protocol.stride,
        query_length=protocol.query_length,
    )
    lengths = z["doc_len"]
    documents = np.where(
        lengths > 0, np.arange(lengths.size).reshape(lengths.shape), -1
    )
    documents[0] = -1  # the first window never has one
    ids = z["doc_ids"].reshape(lengths.size, -1).astype(np.int32)

    def document_tokens(row):
        return ids[row, : lengths.reshape(-1)[row]]

    return tokens, at, documents, document_tokens, protocol


def test_losses_and_choices_of_the_released_code(golden, gpt2):
    z = golden("in_context_ralm_nll")
    tokens, at, documents, document_tokens, protocol = released(z)
    plain = in_context.without(gpt2[2], tokens, at, protocol)
    np.testing.assert_allclose(-plain, z["none_nll"], atol=1e-4)
    values = in_context.score(gpt2[2], tokens, at, documents, document_tokens, protocol)
    for name, choose in {
        "first": ralm.first,
        "logprob": ralm.reranked,
        "oracle": ralm.oracle,
    }.items():
        chosen = choose(values, protocol.rank_tokens)
        nll = -in_context.replaced(plain, at, chosen)
        np.testing.assert_allclose(nll, z[f"{name}_nll"], atol=1e-4)
        perplexity = np.exp(nll.sum(dtype=np.float64) / z["num_spaces"])
        np.testing.assert_allclose(perplexity, z[f"{name}_perplexity"], rtol=1e-5)


@pytest.mark.parametrize("placement", ["overwrite", "prepend"])
@pytest.mark.parametrize("reuse", [1, 3])
def test_a_black_box_against_a_loop(text, collection, placement, reuse):
    protocol = Protocol(
        window=40, stride=4, query_length=8, document_length=10, placement=placement,
        rank_tokens=3, reuse=reuse, batch_size=5,
    )  # fmt: skip
    at = in_context.strides(len(text), window=40, stride=4, query_length=8)
    rng = np.random.default_rng(2)
    documents = rng.integers(-1, len(collection), (len(at.end), 2))
    documents[:, 1][documents[:, 0] == documents[:, 1]] = -1
    documents[3:8, 0] = 4  # a document that stays
    documents[0] = -1
    values = in_context.score(
        bag, text, at, documents, collection.__getitem__, protocol
    )
    plan = in_context.passes(documents, reuse)
    assert len(plan.document) < (documents >= 0).sum() or reuse == 1
    for stride, row in enumerate(documents):
        for k, document in enumerate(row):
            if document < 0:
                assert np.isnan(values[stride, k]).all()
                continue
            # Every document of a stride sees the window that its block ends with.
            last = min(-(-stride // reuse) * reuse, len(at.end) - 1)
            begin, end = at.begin[last], at.end[last]
            added = collection[document][:10]
            window = text[begin:end]
            if placement == "overwrite":
                window = window[len(added) :]
            inputs = np.concatenate([added, window])
            low = len(inputs) - (end - (at.first[stride] - 3))
            high = len(inputs) - (end - at.end[stride])
            expected = bag(inputs[None, :high], [high], high - low)[0]
            found = values[stride, k][-len(expected) :]
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_run_of_strides_is_what_a_cache_would_give(gpt2):
    """While the document stays, one pass = the cache extended stride by stride."""
    config, params, run = gpt2
    rng = np.random.default_rng(3)
    window = config.max_length
    stride, added = window // 10, window // 5
    count = window + 5 * stride
    tokens = rng.integers(0, config.vocab_size, count).astype(np.int32)
    document = rng.integers(0, config.vocab_size, added).astype(np.int32)
    protocol = Protocol(
        window, stride, query_length=4, document_length=added, rank_tokens=0, reuse=5,
        batch_size=1,
    )  # fmt: skip
    at = in_context.strides(count, window=window, stride=stride, query_length=4)
    documents = np.where(np.arange(len(at.end)) > 0, 0, -1)[:, None]
    assert len(in_context.passes(documents, 5).document) == 1
    values = in_context.score(run, tokens, at, documents, lambda _: document, protocol)
    model = generation.generator(config)
    # The window that ends with the text.
    row = np.concatenate([document, tokens[count - window + added :]])
    cache: Any = model.empty(1, window)

    def extend(cache, ids, targets):
        ones = jnp.ones((1, len(ids)), jnp.int32)
        scores, cache = model.score(
            params, jnp.asarray(ids)[None], jnp.asarray(targets)[None], ones, cache
        )
        return np.asarray(scores[0] - scores[1])[0], cache

    low = window - 5 * stride
    _, cache = extend(cache, row[: low - 1], row[1:low])
    for number in range(1, 6):
        high = low + stride
        found, cache = extend(cache, row[low - 1 : high - 1], row[low:high])
        np.testing.assert_allclose(values[number, 0], found, atol=1e-5)
        low = high


def test_the_ensemble_of_one_is_the_first(text, collection):
    protocol = Protocol(
        window=40, stride=4, query_length=8, document_length=10, rank_tokens=3, reuse=2,
        batch_size=8,
    )  # fmt: skip
    at = in_context.strides(len(text), window=40, stride=4, query_length=8)
    documents = np.tile(np.array([[1, 2, 3]]), (len(at.end), 1))
    documents[0] = -1
    documents[2] = [4, -1, -1]
    values = in_context.score(
        bag, text, at, documents, collection.__getitem__, protocol
    )
    rng = np.random.default_rng(4)
    scores = rng.normal(size=documents.shape)
    np.testing.assert_allclose(
        in_context.ensemble(values, scores, 3, k=1), ralm.first(values, 3)
    )
    mixed = in_context.ensemble(values, scores, 3, k=3, temperature=0.5)
    weights = np.exp(scores[5] / 0.5) / np.exp(scores[5] / 0.5).sum()
    expected = np.log((weights[:, None] * np.exp(values[5, :, 3:])).sum(0))
    np.testing.assert_allclose(mixed[5], expected, rtol=1e-5)
    # One document alone has all the weight, and none leaves the text as it was.
    np.testing.assert_allclose(mixed[2], values[2, 0, 3:], rtol=1e-6)
    assert np.isnan(mixed[0]).all()
    plain = in_context.without(bag, text, at, protocol)
    whole = in_context.replaced(plain, at, mixed)
    np.testing.assert_array_equal(whole[:39], plain[:39])
    assert np.isfinite(whole).all()


@pytest.mark.parametrize("useful", ["first", "last"])
def test_the_temperature_is_the_one_under_which_the_text_is_likeliest(text, useful):
    """Documents of which one has the text's words: its score is the best, or worst."""
    at = in_context.strides(len(text), window=40, stride=4, query_length=8)
    shape = len(at.end), 3
    values = np.log(np.random.default_rng(0).uniform(0.1, 0.2, (*shape, 7)))
    good = 0 if useful == "first" else 2
    values[:, good] = np.log(0.6)
    values[0] = np.nan
    scores = np.broadcast_to(np.array([3.0, 2.0, 1.0]), shape)
    plain = np.full(len(text) - 1, -2.0, np.float32)

    def tuned(temperatures):
        return in_context.tune_temperature(
            plain, at, values, scores, 3, k=3, temperatures=temperatures
        )

    def log_likelihood(temperature):
        weights = np.exp(scores[0] / temperature)
        weights = weights / weights.sum()
        total = -2.0 * (at.end[0] - 1)
        for row, low, high in zip(values[1:], at.first[1:], at.end[1:], strict=True):
            mixed = np.log((weights[:, None] * np.exp(row[:, 3:])).sum(0))
            total += mixed[4 - (high - low) :].sum()
        return total

    grid = (0.1, 1.0, 10.0)
    best = max(grid, key=log_likelihood)
    assert best == (0.1 if useful == "first" else 10.0)
    assert tuned(grid) == tuned(grid[::-1]) == best
    assert tuned((2.0,)) == 2.0


def test_the_oracle_is_never_worse(text, collection):
    protocol = Protocol(
        window=40, stride=4, query_length=8, document_length=10, rank_tokens=3, reuse=1,
        batch_size=8,
    )  # fmt: skip
    at = in_context.strides(len(text), window=40, stride=4, query_length=8)
    documents = np.tile(np.arange(5), (len(at.end), 1))
    documents[0] = -1
    values = in_context.score(
        bag, text, at, documents, collection.__getitem__, protocol
    )
    sums = [np.nansum(x) for x in (ralm.oracle(values, 3), ralm.first(values, 3))]
    assert sums[0] > sums[1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"window": 100}, "window of 100"),
        ({"stride": 0}, "stride is 0"),
        ({"placement": "behind"}, "placement"),
        ({"rank_tokens": -1}, "rank_tokens"),
        ({"reuse": 0}, "reuse is 0"),
    ],
)
def test_numbers_that_do_not_fit(changes, named):
    with pytest.raises(UserError, match=named):
        Protocol(**changes).check()


def test_a_text_that_is_too_short():
    with pytest.raises(UserError, match="1 tokens"):
        in_context.strides(1, window=4, stride=2, query_length=2)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (lambda ids, lengths, last: np.full((len(ids), last), np.nan), "not finite"),
        (lambda ids, lengths, last: np.zeros((len(ids), last + 1)), "shape"),
    ],
    ids=["nan", "shape"],
)
def test_a_language_model_that_fails_is_not_an_absent_document(text, given, named):
    protocol = Protocol(window=40, stride=4, document_length=10, rank_tokens=3, reuse=1)
    at = in_context.strides(len(text), window=40, stride=4, query_length=8)
    documents = np.where(np.arange(len(at.end)) > 0, 0, -1)[:, None]
    with pytest.raises(UserError, match=named):
        in_context.score(given, text, at, documents, lambda _: text[:5], protocol)


def test_a_text_without_documents_has_the_windows_of_one_with(text):
    """An empty document changes nothing, however often the documents change."""
    protocol = Protocol(
        window=40, stride=4, query_length=8, document_length=10, rank_tokens=3, reuse=4,
        batch_size=5,
    )  # fmt: skip
    at = in_context.strides(len(text), window=40, stride=4, query_length=8)
    documents = np.arange(len(at.end))[:, None] - 1
    none = text[:0]
    values = in_context.score(bag, text, at, documents, lambda _: none, protocol)
    plain = in_context.without(bag, text, at, protocol)
    again = in_context.replaced(plain, at, ralm.first(values, 3))
    np.testing.assert_array_equal(plain, again)
