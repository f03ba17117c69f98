import dataclasses

import numpy as np
import pytest

from rlm_jax.data import corpora, token_store, tokenizers
from rlm_jax.errors import UserError

DOCUMENTS = ["Zürich \n is a city .\n", "", "no end of line"]


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path, cache_dir):
    folder = tmp_path / "corpus"
    folder.mkdir()
    lines = [f'{{"text": {text!r}, "id": {i}}}' for i, text in enumerate(DOCUMENTS)]
    (folder / "train.jsonl").write_text("\n".join(lines).replace("'", '"'))
    (folder / "test.jsonl").write_text('{"text": "a test"}')
    return corpora.load(f"jsonl:{folder}", cache_dir=cache_dir)


def build(corpus, cache_dir, kind="bytes"):
    tokenizer = tokenizers.build(kind, corpus, vocab_size=0, cache_dir=cache_dir)
    return token_store.build(corpus, tokenizer, cache_dir=cache_dir, progress=False)


@pytest.mark.parametrize("kind", ["bytes", "word"])
def test_holds_what_the_tokenizer_says(corpus, cache_dir, kind):
    tokenizer = tokenizers.build(kind, corpus, vocab_size=0, cache_dir=cache_dir)
    split = build(corpus, cache_dir, kind).split("train")
    ends = [] if tokenizer.end_of_document is None else [tokenizer.end_of_document]
    for index, text in enumerate(DOCUMENTS):
        low, high = split.document_offsets[index : index + 2]
        expected = [*tokenizer.encode(text), *ends]
        np.testing.assert_array_equal(split.tokens[low:high], expected)
    assert split.document_offsets[-1] == len(split.tokens)
    assert split.document_offsets.dtype == np.int64
    assert split.document_names == ("0", "1", "2")
    assert split.num_bytes == sum(len(text.encode()) for text in DOCUMENTS)
    assert split.num_words == sum(len(text.split()) for text in DOCUMENTS)


def test_uint16_where_the_vocabulary_fits(corpus, cache_dir):
    tokenizer = tokenizers.build("bytes", corpus, vocab_size=0)
    for size, dtype in ((2**16, np.uint16), (2**16 + 1, np.int32)):
        wide = dataclasses.replace(tokenizer, vocab_size=size, content=size)
        store = token_store.build(corpus, wide, cache_dir=cache_dir, progress=False)
        tokens = store.split("test").tokens
        assert tokens.dtype == dtype and not tokens.flags.writeable
        assert tokens.tolist() == [*b"a test", 256]


def test_second_build_only_opens(corpus, cache_dir):
    first = build(corpus, cache_dir)
    tokenizer = dataclasses.replace(
        tokenizers.build("bytes", corpus, vocab_size=0),
        encode=lambda text: pytest.fail("tokenized twice"),
    )
    again = token_store.build(corpus, tokenizer, cache_dir=cache_dir, progress=False)
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(
        again.split("train").tokens, first.split("train").tokens
    )


def test_unknown_split(corpus, cache_dir):
    with pytest.raises(UserError, match="no split 'dev'.*train, test"):
        build(corpus, cache_dir).split("dev")


@pytest.mark.parametrize("name", ["train.tokens", "train.offsets", "train.names.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damaged_file(corpus, cache_dir, name, damage):
    build(corpus, cache_dir)
    (path,) = cache_dir.rglob(name)
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[:-1])
    elif damage == "flip":
        data[3] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    with pytest.raises(UserError, match=f"{name} is truncated or altered.*delete"):
        build(corpus, cache_dir)


def test_damaged_manifest(corpus, cache_dir):
    build(corpus, cache_dir)
    (path,) = (cache_dir / "tokens").rglob("manifest.json")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="manifest.json is damaged.*delete"):
        build(corpus, cache_dir)


def test_interrupted_build_publishes_nothing(corpus, cache_dir):
    tokenizer = tokenizers.build("bytes", corpus, vocab_size=0)

    def interrupt(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        token_store.build(
            corpus,
            dataclasses.replace(tokenizer, encode=interrupt),
            cache_dir=cache_dir,
            progress=False,
        )
    assert not [path for path in (cache_dir / "tokens").iterdir() if path.is_dir()]
    build(corpus, cache_dir)
