"""Masked spans and continuations."""

import numpy as np
import pytest

from rlm_jax.data import reader_tokens, spans, text_encoding
from rlm_jax.errors import UserError
from tests.data import t5_tokenizer


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return t5_tokenizer.save(tmp_path_factory.mktemp("t5") / "tokenizer")


@pytest.fixture(scope="module")
def word_piece():
    made = text_encoding.train(["the cat sat on the mat"] * 3, vocab_size=100)
    return reader_tokens.of(made)


def put_back(hidden, marks):
    """The text again: each sentinel replaced by what the target says it hides."""
    told, number = {}, -1
    for token in hidden.target.tolist():
        if number + 1 < len(marks) and token == marks[number + 1]:
            number += 1
            told[number] = []
        else:
            told[number].append(token)
    text, number = [], 0
    for token in hidden.read.tolist():
        if number < len(marks) and token == marks[number]:
            text += told[number]
            number += 1
        else:
            text.append(token)
    assert number == len(told)
    return text


@pytest.mark.parametrize("length", [2, 3, 7, 24])
def test_what_is_hidden_can_be_put_back(t5, length):
    words = np.arange(100, 100 + length, dtype=np.int32)  # none is a sentinel
    for seed in range(10):
        rng = np.random.default_rng(seed)
        hidden = spans.masked(rng, words, t5)
        assert put_back(hidden, t5.sentinels) == words.tolist()
        assert len(hidden.kept) == length - max(1, round(0.15 * length))
        assert set(hidden.kept) <= set(hidden.read) and set(hidden.kept) < set(words)
        again = spans.masked(np.random.default_rng(seed), words, t5)
        np.testing.assert_array_equal(hidden.read, again.read)


def test_spans_are_as_long_and_as_many_as_told():
    rng = np.random.default_rng(0)
    counts, places = [], np.zeros(200)
    for _ in range(200):
        hidden = spans.spans_at_random(rng, 200, 0.15, 3.0)
        assert (hidden >= 0).sum() == 30
        counts.append(hidden.max() + 1)
        places += hidden >= 0
        assert np.flatnonzero(np.diff(hidden, prepend=-1, append=-1)).size == 20
    assert set(counts) == {10}
    # The first token and the last are hidden as often as any other.
    assert np.abs(places / 200 - 0.15).max() < 0.12
    short = {
        int(np.argmax(spans.spans_at_random(rng, 10, 0.15, 3.0) >= 0))
        for _ in range(200)
    }
    assert short == set(range(9))


def test_marks_of_a_vocabulary_without_sentinels(word_piece, t5):
    """BERT's [unusedN] where there are some, else [MASK] for each span."""
    marks = word_piece.hidden_marks(3)
    assert len(set(marks.tolist())) == 1
    assert word_piece.token(int(marks[0])) == "[MASK]"
    assert tuple(t5.hidden_marks(2)) == t5.sentinels[:2]
    with pytest.raises(UserError, match="hide fewer"):
        t5.hidden_marks(5)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
    library = text_encoding._word_piece(
        {word: i for i, word in enumerate(words)}, lowercase=True
    )
    bert = reader_tokens.of(text_encoding._wrap(library, "a test", {}))
    assert bert.hidden_marks(2).tolist() == [5, 6]
    assert bert.hidden_marks(3).tolist() == [4, 4, 4]


def test_divided_texts_are_whole():
    tokens = np.arange(9, dtype=np.int32)
    for share in (0.01, 0.5, 0.99):
        hidden = spans.divided(tokens, share)
        assert [*hidden.read, *hidden.target] == tokens.tolist()
        assert len(hidden.read) and len(hidden.target)
    assert len(spans.divided(tokens).read) == 4


@pytest.mark.parametrize(
    "call",
    [
        lambda t: spans.masked(np.random.default_rng(0), np.zeros(1, int), t),
        lambda t: spans.masked(
            np.random.default_rng(0), np.zeros(9, int), t, density=1
        ),
        lambda t: spans.divided(np.zeros(9, int), 0.0),
        lambda t: spans.divided(np.zeros(1, int)),
    ],
)
def test_nothing_to_hide(t5, call):
    with pytest.raises(UserError, match="choose|leave"):
        call(t5)
