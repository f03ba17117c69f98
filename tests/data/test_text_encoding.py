"""Rows of ids for encoders: marks, cutting, pairs, padding, files."""

import json

import numpy as np
import pytest

from rlm_jax.data import text_encoding
from rlm_jax.errors import UserError

TEXTS = ["The quick brown fox jumps over the lazy dog.", "A dog is no fox at all."]


@pytest.fixture(scope="module")
def tokenizer():
    return text_encoding.train(TEXTS * 20, vocab_size=120)


def test_rows_have_their_marks_and_decode(tokenizer):
    rows = tokenizer.encode(TEXTS, max_length=64)
    for row, text in zip(rows, TEXTS, strict=True):
        assert row.dtype == np.int32
        assert row[0] == tokenizer.cls_id and row[-1] == tokenizer.sep_id
        assert row.max() < tokenizer.vocab_size
        assert tokenizer.decode(row) == text.lower()


def test_case_and_accents_do_not_matter(tokenizer):
    plain, other = tokenizer.encode(["the fox", "THE Fóx"], max_length=16)
    np.testing.assert_array_equal(plain, other)


def test_long_texts_are_cut_and_keep_their_last_mark(tokenizer):
    whole, cut = (tokenizer.encode([TEXTS[0] * 50], max_length=n)[0] for n in (4000, 9))
    assert len(cut) == 9 and cut[-1] == tokenizer.sep_id
    np.testing.assert_array_equal(cut[:-1], whole[:8])


def test_the_last_tokens_may_be_kept(tokenizer):
    whole, cut = (
        tokenizer.encode([TEXTS[0] * 50], max_length=n, keep="last")[0]
        for n in (4000, 9)
    )
    assert len(cut) == 9 and cut[0] == tokenizer.cls_id
    np.testing.assert_array_equal(cut[1:], whole[-8:])
    (first,) = tokenizer.encode([TEXTS[0] * 50], max_length=9)
    assert first.tolist() != cut.tolist()  # nor does it stay so for the next call
    assert len(tokenizer.encode(["fox " * 2**18], max_length=32, keep="last")[0]) == 32


def test_a_megabyte_is_cut_quickly(tokenizer):
    assert len(tokenizer.encode(["fox " * 2**18], max_length=32)[0]) == 32


@pytest.mark.parametrize("title", ["the dog", "the dog " * 30], ids=["short", "long"])
def test_pairs_lose_the_end_of_the_text_first(tokenizer, title):
    (row,) = tokenizer.encode([title], [TEXTS[0] * 9], max_length=16)
    assert len(row) == 16
    assert list(row).count(tokenizer.sep_id) == 2
    (alone,) = tokenizer.encode([title], max_length=300)
    kept = list(row).index(tokenizer.sep_id)
    np.testing.assert_array_equal(row[:kept], alone[:kept])
    assert kept == (len(alone) - 1 if title == "the dog" else 13)


def test_an_empty_text_is_two_marks(tokenizer):
    (row,) = tokenizer.encode([""], max_length=8)
    assert list(row) == [tokenizer.cls_id, tokenizer.sep_id]
    assert tokenizer.encode([], max_length=8) == []


def test_no_room_is_refused(tokenizer):
    with pytest.raises(UserError, match="leave no room"):
        tokenizer.encode(TEXTS, max_length=2)


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = text_encoding.load(tmp_path)
    assert again.fingerprint == tokenizer.fingerprint
    for a, b in zip(
        tokenizer.encode(TEXTS, max_length=32),
        again.encode(TEXTS, max_length=32),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_vocab_txt_is_the_same_tokenizer(tokenizer, tmp_path):
    words = json.loads(tokenizer.content)["model"]["vocab"]
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(words, key=words.get)))
    again = text_encoding.load(tmp_path)
    np.testing.assert_array_equal(
        tokenizer.encode(TEXTS[:1], max_length=32)[0],
        again.encode(TEXTS[:1], max_length=32)[0],
    )


def test_bad_files_are_named(tmp_path):
    with pytest.raises(UserError, match="There is no tokenizer in"):
        text_encoding.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"lacks \[PAD\]"):
        text_encoding.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        text_encoding.load(tmp_path)


def test_nothing_to_train_on_is_refused():
    with pytest.raises(UserError, match="no text to train"):
        text_encoding.train([], vocab_size=100)
    with pytest.raises(UserError, match="too small"):
        text_encoding.train(TEXTS, vocab_size=10)
