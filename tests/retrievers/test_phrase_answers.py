"""Blanks filled from a memory and by a masked language model."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.models.token_encoder import masked_lm_functions, token_embedder
from rlm_jax.retrieval import encode_passages
from rlm_jax.retrievers import token_memory
from rlm_jax.retrievers.masked_answers import MaskedFiller
from rlm_jax.retrievers.phrase_answers import FillConfig, PhraseFiller, verbalisers
from tests.retrievers.token_toy import MEMORY, PASSAGES, tower

QUESTIONS = ["anna likes [MASK] .", "[MASK] likes old [MASK] ."]
LABELS = {"sweet": ["honey", "red apples"], "plain": ["bread"], "none": ["figs"]}


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory") / "toy"
    return token_memory.build(folder, PASSAGES, tower(), MEMORY)


def filler(memory, masks=2, **changes: Any):
    config = FillConfig(**{"k": 8, "longest": 3, "temperature": 0.5} | changes)
    return PhraseFiller(memory, config, masks=masks)


@functools.cache
def states_of():
    return jax.jit(token_embedder(tower().config).embed)


def by_loops(memory, text, blank, k, temperature=0.5, longest=3, allowed=None):
    """Phrase -> score, from the encoder's states and nothing of the search."""
    cloze = memory.tokenizer.cloze(text, masks=2, max_length=16)
    rows = encode_passages.pad([cloze.ids], pad_id=0, width=16)
    states = np.asarray(states_of()(memory.tower.params, rows))[0]
    keys = memory.keys(np.arange(memory.num_tokens)).astype(np.float64)
    p = []
    for at in cloze.at[blank]:
        scores = keys @ states[at] / np.sqrt(keys.shape[1]) / temperature
        if allowed is not None:
            where = memory.passage_of(np.arange(len(scores)))
            scores[~np.isin(where, allowed)] = -np.inf
        scores[np.argsort(-scores)[k:]] = -np.inf
        p.append(np.exp(scores - scores.max()))
        p[-1] /= p[-1].sum()
    found: dict[tuple, float] = {}
    inside = memory.tokenizer.inside
    for low, high in zip(memory.bounds, memory.bounds[1:], strict=False):
        for i in range(low, high):
            for n in range(1, min(longest, high - i) + 1):
                ids = memory.tokens[i : i + n + (i + n < high)]
                cut = (inside[ids[0]] and i > low) or (len(ids) > n and inside[ids[n]])
                score = p[0][i] + p[1][i + n - 1]
                if score > 0 and not cut:
                    key = tuple(ids[:n].tolist())
                    found[key] = found.get(key, 0.0) + score
    return found


@pytest.mark.parametrize("restricted", [False, True])
def test_phrases_by_loops(memory, restricted):
    fill = filler(memory, passages=2)
    passages = memory.by_words(["anna likes .", " likes old ."], 2)
    for question, blanks in enumerate(fill.retrieve(QUESTIONS, restricted=restricted)):
        assert len(blanks) == 1 + question
        for blank, found in enumerate(blanks):
            allowed = passages[question] if restricted else None
            wanted = by_loops(memory, QUESTIONS[question], blank, 8, allowed=allowed)
            got = {
                tuple(memory.tokens[e : e + n].tolist()): score
                for e, n, score in zip(
                    found.entry, found.size, found.score, strict=True
                )
            }
            assert got.keys() == wanted.keys()
            for phrase, score in wanted.items():
                assert got[phrase] == pytest.approx(score, rel=1e-3)


def test_restricted_to_all_passages_is_unrestricted(memory):
    fill = filler(memory)
    vectors = fill.vectors(QUESTIONS)
    every = np.tile(np.arange(len(PASSAGES)), (2, 1))
    for free, bound in zip(
        fill.retrieve_by(vectors), fill.retrieve_by(vectors, every), strict=True
    ):
        for a, b in zip(free, bound, strict=True):
            np.testing.assert_array_equal(a.key, b.key)
            np.testing.assert_allclose(a.score, b.score, rtol=1e-4)


def test_answers_say_where_they_stand(memory):
    answers = filler(memory)(QUESTIONS, count=4)
    assert [len(blanks) for blanks in answers] == [1, 2]
    for answer in (
        answer for blanks in answers for blank in blanks for answer in blank
    ):
        assert answer.text in PASSAGES[answer.passage].text
        assert any(map(str.isalnum, answer.text)) and answer.text != "and"
        ids = memory.tokens[answer.entry : answer.entry + answer.size]
        assert memory.tokenizer.decode(ids) == answer.text
    single = filler(memory, masks=1)(QUESTIONS, count=4)
    assert all(a.size == 1 for blanks in single for blank in blanks for a in blank)


def test_removed_phrases_are_no_answers(memory, tmp_path):
    own = token_memory.build(
        tmp_path / "own", PASSAGES, tower(), MEMORY, memory.encoder
    )
    own.remove(["anna", "emil"])
    for restricted in (False, True):
        options = {"restricted": restricted, "count": 99}
        for blanks in filler(own, k=999, passages=9)(QUESTIONS, **options):
            texts = {answer.text for blank in blanks for answer in blank}
            assert "bread" in texts and not texts & {"red apples", "anna", "honey"}


def test_labels_are_sums_over_their_words(memory):
    fill = filler(memory, k=30)
    scores = fill.label_scores(QUESTIONS[:1], LABELS)
    found = by_loops(memory, QUESTIONS[0], 0, 30)
    wanted = [
        sum(found.get(tuple(ids.tolist()), 0.0) for ids in of_label)
        for of_label in verbalisers(LABELS, memory.tokenizer)
    ]
    assert wanted[0] > 0 and wanted[2] == 0
    np.testing.assert_allclose(scores[0], wanted, rtol=1e-3)


def test_bad_input(memory):
    for labels, says in (
        ({}, "closed set is empty"), ({"a": []}, "'a' has no words"),
        ({"a": ["猫"]}, "cannot be written"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            filler(memory).label_scores(QUESTIONS, labels)
    changed: list[dict[str, Any]] = [{"k": 0}, {"temperature": 0.0}, {"longest": 65}]
    for changes in changed:
        with pytest.raises(UserError, match="choose k"):
            filler(memory, **changes)
    with pytest.raises(UserError, match="no blank"):
        filler(memory)(["anna likes bread ."])


def test_a_masked_language_model_takes_the_best_mean(memory):
    config, tokenizer = tower().config, memory.tokenizer
    functions = masked_lm_functions(config)
    shapes = jax.eval_shape(functions.init, jax.random.key(0))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: random.normal(size=x.shape).astype("f"), shapes)
    twin = MaskedFiller(config, params, tokenizer, length=16, longest=2, batch_size=2)
    logits = jax.jit(functions.logits)
    questions = [QUESTIONS[0], "bert likes [MASK] .", "[MASK] likes bread ."]
    said, scores = twin(questions), twin.label_scores(questions, LABELS)
    for place, question in enumerate(questions):
        best, answer, sums = -np.inf, "", np.zeros(3)
        for masks in (1, 2):
            cloze = tokenizer.cloze(question, masks=masks, max_length=16)
            one = encode_passages.pad([cloze.ids], pad_id=0, width=16)
            x = np.array(logits(params, {**one, "positions": cloze.at}))[0].astype(
                np.float64
            )
            x[:, tokenizer.special] = -np.inf
            p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
            if np.log(p.max(1)).mean() > best:
                best = np.log(p.max(1)).mean()
                answer = tokenizer.decode(p.argmax(1))
            for label, words in enumerate(verbalisers(LABELS, tokenizer)):
                sums[label] += sum(
                    p[np.arange(masks), ids].prod()
                    for ids in words
                    if len(ids) == masks
                )
        assert said[place] == answer
        np.testing.assert_allclose(scores[place], sums, rtol=1e-3)
