"""Long texts: the first and the last tokens are those of the whole text."""

import dataclasses
import types

import numpy as np
import pytest
import tokenizers as hugging_face

from rlm_jax.data import reader_tokens, text_encoding, tokenizers
from rlm_jax.data.passages import Passage
from rlm_jax.data.text_encoding import TextTokenizer
from rlm_jax.retrievers import passage_search

WORDS = "the red fox hunts mice . = x a".split()
TEXTS = {
    "long word": "x" * 9000 + " the red fox",
    "blanks": "the" + " " * 9000 + "red fox",
    "blanks before": " " * 5000 + "the red fox",
    "blanks after": "the red fox" + "\n" * 9000,
    "zero width": "\u200b" * 9000 + "the red fox",
    "marks alone": "\u0301" * 9000 + " the fox",
    "no blanks": "蓝鲸" * 4000 + " fox",
    "signs": "=" * 300 + " the red fox hunts mice" * 50,
    "words": "the red fox hunts mice . " * 900,
    "short": "the fox",
    "empty": "",
}


def encoder() -> TextTokenizer:
    return text_encoding.train([*WORDS * 9, "蓝鲸"], vocab_size=100)


def byte_level() -> TextTokenizer:
    marks = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = sorted(hugging_face.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {x: i for i, x in enumerate(marks + letters)}
    library = hugging_face.Tokenizer(hugging_face.models.BPE(vocabulary, []))
    library.pre_tokenizer = hugging_face.pre_tokenizers.ByteLevel(  # type: ignore
        add_prefix_space=False
    )
    library.add_special_tokens(marks)
    library.post_processor = hugging_face.processors.RobertaProcessing(  # type: ignore
        ("</s>", 2), ("<s>", 0), add_prefix_space=False
    )
    return text_encoding._wrap(library, "the test", {})


TOKENIZERS = {"WordPiece": encoder(), "bytes": byte_level()}


def whole(tokenizer: TextTokenizer, text: str, length: int, last: bool = False):
    library = hugging_face.Tokenizer.from_str(tokenizer.content)
    library.enable_truncation(length, direction="left" if last else "right")
    return library.encode(text).ids


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("length", [8, 64])
def test_an_encoders_rows(kind, name, length):
    tokenizer, text = TOKENIZERS[kind], TEXTS[name]
    (first,) = tokenizer.encode([text], max_length=length)
    assert first.tolist() == whole(tokenizer, text, length)
    (last,) = tokenizer.encode([text], max_length=length, keep="last")
    assert last.tolist() == whole(tokenizer, text, length, last=True)


@pytest.mark.parametrize("name", TEXTS)
def test_pairs_and_readers(name):
    tokenizer, text = TOKENIZERS["WordPiece"], TEXTS[name]
    library = hugging_face.Tokenizer.from_str(tokenizer.content)
    library.enable_truncation(24, strategy="only_second")
    (row,) = tokenizer.encode(["the fox"], [text], max_length=24)
    assert row.tolist() == library.encode("the fox", text).ids
    library.no_truncation()
    reader = reader_tokens.of(tokenizer)
    (row,) = reader.encode([text], max_length=9)
    assert row.tolist() == library.encode(text, add_special_tokens=False).ids[:9]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", ["word", "bytes"])
def test_documents_of_a_language_model(name, kind):
    word = tokenizers._word(["<eos>", "<unk>", *WORDS])
    tokenizer = word if kind == "word" else tokenizers._bytes()
    config = types.SimpleNamespace(documents=types.SimpleNamespace(length=8))
    passages = [Passage("a", "", TEXTS[name])]
    read = passage_search.document_tokens(config, passages, tokenizer)  # type: ignore
    np.testing.assert_array_equal(read(0), tokenizer.encode(TEXTS[name])[:8])


def test_a_long_text_of_words_is_not_read_whole():
    tokenizer, seen = TOKENIZERS["WordPiece"], []
    library = tokenizer._tokenizer

    class Counts:
        def __getattr__(self, name):
            return getattr(library, name)

        def encode_batch_fast(self, texts, **options):
            seen.extend(map(len, texts))
            return library.encode_batch_fast(texts, **options)

    counted = dataclasses.replace(tokenizer, _tokenizer=Counts())
    counted.encode(["the red fox hunts mice " * 50_000], max_length=32)
    assert sum(seen) < 10_000
