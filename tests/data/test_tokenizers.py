import json

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from rlm_jax.data import corpora, text_encoding, tokenizers
from rlm_jax.errors import UserError

TRAIN = "the cat sat on the mat . \n \n the dog sat . \n" * 20
VALIDATION = "the bird sat . \n"


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, cache_dir):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "train.txt").write_text(TRAIN)
    (folder / "valid.txt").write_text(VALIDATION)
    return corpora.load(f"text:{folder}", cache_dir=cache_dir)


@pytest.fixture(scope="module")
def bpe(corpus, cache_dir):
    return tokenizers.build("bpe", corpus, vocab_size=300, cache_dir=cache_dir)


def word(corpus, cache_dir, vocab_size=0):
    return tokenizers.build("word", corpus, vocab_size=vocab_size, cache_dir=cache_dir)


@hypothesis.given(text=st.text())
def test_bytes_round_trip(text):
    tokenizer = tokenizers.build("bytes", None, vocab_size=0)  # type: ignore
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32 and len(ids) == len(text.encode())
    assert tokenizer.decode([*ids, tokenizer.end_of_document]) == text
    assert (tokenizer.vocab_size, tokenizer.end_of_document) == (257, 256)


@hypothesis.settings(
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(text=st.text() | st.just("a <|endoftext|> b"))
def test_bpe_round_trip(bpe, text):
    ids = bpe.encode(text)
    assert ids.dtype == np.int32 and (ids < bpe.vocab_size).all()
    assert bpe.end_of_document not in ids
    assert bpe.decode([*ids, bpe.end_of_document]) == text


def test_bpe_learns_the_corpus(bpe):
    assert 257 < bpe.vocab_size <= 300
    assert len(bpe.encode(TRAIN)) < len(TRAIN) / 2
    assert len(bpe.encode(" cat")) == 1


def test_word_vocabulary_is_by_frequency_in_train(corpus, cache_dir):
    tokenizer = word(corpus, cache_dir)
    assert tokenizer.content == [
        *["<eos>", "the"],  # 60 times
        *[".", "sat"],  # 40
        *["cat", "dog", "mat", "on"],  # 20
        *["<unk>", "bird"],  # never in train, yet known
    ]
    assert tokenizer.end_of_document is None


def test_word_lines_end_in_eos(corpus, cache_dir):
    tokenizer = word(corpus, cache_dir)
    lines = ["the cat .", "", "a dog\u2028.", "."]  # a line separator ends no line
    for end in ("", "\n"):
        ids = tokenizer.encode("\n".join(lines) + end)
        assert [tokenizer.content[i] for i in ids] == (
            "the cat . <eos> <eos> <unk> dog . <eos> . <eos>".split()
        )
    assert tokenizer.decode(ids) == "the cat .\n\n<unk> dog .\n.\n"
    assert len(tokenizer.encode("")) == 0


def test_word_vocabulary_of_limited_size(corpus, cache_dir):
    tokenizer = word(corpus, cache_dir, vocab_size=4)
    assert tokenizer.content == ["<eos>", "the", ".", "<unk>"]
    assert tokenizer.encode("the cat").tolist() == [1, 3, 0]


def test_save_and_load(corpus, cache_dir, bpe, tmp_path):
    data = tokenizers.build("bytes", corpus, vocab_size=0)
    for tokenizer in (data, bpe, word(corpus, cache_dir)):
        path = tmp_path / f"{tokenizer.kind}.json"
        tokenizer.save(path)
        loaded = tokenizers.load(path)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.vocab_size == tokenizer.vocab_size
        np.testing.assert_array_equal(loaded.encode(TRAIN), tokenizer.encode(TRAIN))


def test_fingerprints_differ(corpus, cache_dir, bpe):
    others = [word(corpus, cache_dir, vocab_size=size) for size in (0, 4)]
    assert len({t.fingerprint for t in (bpe, *others)}) == 3


def test_built_once(corpus, cache_dir, bpe, monkeypatch):
    monkeypatch.setattr(tokenizers, "_texts", None)  # a second training would fail
    again = tokenizers.build("bpe", corpus, vocab_size=300, cache_dir=cache_dir)
    assert again.fingerprint == bpe.fingerprint


def test_hugging_face_file(bpe, tmp_path, corpus):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(bpe.content))
    tokenizer = tokenizers.build(f"hf:{path}", corpus, vocab_size=0)
    assert tokenizer.kind == "hf" and tokenizer.vocab_size == bpe.vocab_size
    assert tokenizer.end_of_document == bpe.end_of_document
    np.testing.assert_array_equal(tokenizer.encode(TRAIN), bpe.encode(TRAIN))


@pytest.mark.parametrize(
    ("kind", "vocab_size", "message"),
    [
        ("sentencepiece", 300, "Unknown tokenizer 'sentencepiece'"),
        ("bpe", 256, "256 is too small"),
        ("word", 2, "2 is too small"),
        ("hf:missing.json", 0, "no tokenizer file at missing.json"),
    ],
)
def test_bad_choice(corpus, kind, vocab_size, message, cache_dir):
    with pytest.raises(UserError, match=message):
        tokenizers.build(kind, corpus, vocab_size=vocab_size, cache_dir=cache_dir)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"{}", b"\xff\xfe", b'"text"'])
def test_file_that_is_no_tokenizer(tmp_path, content, corpus):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="tokenizer.json"):
        tokenizers.load(path)
    with pytest.raises(UserError, match="not a readable Hugging Face"):
        tokenizers.build(f"hf:{path}", corpus, vocab_size=0)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ({"a": 0, "<unk>": 2**31}, "largest id 2,147,483,648; .* 0 to 16,777,215"),
        ({"a": 0, "<unk>": 2**24}, "largest id 16,777,216"),
        ({"a": 0}, "not a readable .*UNK"),  # and no way to say what it does not know
    ],
)
def test_ids_that_no_model_has_room_for(tmp_path, bpe, vocabulary, message):
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"added_tokens": [], "model": model}))
    with pytest.raises(UserError, match=message) as error:
        tokenizers.read_hugging_face(path)
    assert str(path) in str(error.value)


def test_an_encoders_ids_may_have_gaps(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate(words)} | {"a": 40}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"added_tokens": [], "model": model}))
    assert text_encoding.load(tmp_path).vocab_size == 41


def test_truncated_and_missing_file(tmp_path, bpe):
    path = tmp_path / "tokenizer.json"
    bpe.save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="tokenizer.json is damaged .*delete it"):
        tokenizers.load(path)
    with pytest.raises(UserError, match="no tokenizer at"):
        tokenizers.load(tmp_path / "missing.json")


def test_word_pieces_are_an_encoders_tokenizer(corpus, cache_dir):
    made = tokenizers.build("wordpiece", corpus, vocab_size=100, cache_dir=cache_dir)
    encoder = text_encoding.parse(made.content)
    (row,) = encoder.encode(["The cat"], max_length=8)
    np.testing.assert_array_equal(row[1:-1], made.encode("the cat"))
    assert made.decode(row) == "the cat"
    assert made.vocab_size == encoder.vocab_size
