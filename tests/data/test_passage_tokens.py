import json

import numpy as np
import pytest

from rlm_jax.data import passage_tokens, passages, reader_tokens
from rlm_jax.errors import UserError
from tests.data import t5_tokenizer

TEXTS = ["she runs", "", "the river runs the sea the river runs the sea", "sea"]


@pytest.fixture
def pool(tmp_path):
    records = [{"title": "the sea", "text": text} for text in TEXTS]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, records)))
    name = f"jsonl:{tmp_path}/p.jsonl"
    return passages.load(name, cache_dir=tmp_path / "cache", progress=False)


def build(pool, tokenizer, tmp_path, max_length=12):
    return passage_tokens.build(
        pool,
        tokenizer,
        max_length=max_length,
        cache_dir=tmp_path / "cache",
        progress=False,
    )


def test_passages_are_tokenized_once(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(passage_tokens, "_BLOCK", 3)
    tokenizer = t5_tokenizer.save(tmp_path / "t5")
    stored = build(pool, tokenizer, tmp_path)
    expected = tokenizer.passages(list(pool), max_length=12)
    assert len(stored) == 4 and max(map(len, expected)) == 12
    for row in (3, 0, 2, 1):
        assert stored[row].dtype == np.int32
        assert stored[row].tolist() == expected[row].tolist()
    for row in (4, -1):
        with pytest.raises(IndexError):
            stored[row]
    monkeypatch.setattr(reader_tokens.ReaderTokenizer, "passages", None)
    assert build(pool, tokenizer, tmp_path)[2].tolist() == expected[2].tolist()
    with pytest.raises(TypeError):  # another cut is another store
        build(pool, tokenizer, tmp_path, 13)
    assert len(list((tmp_path / "cache/passage_tokens").iterdir())) == 3  # a lock each


def test_no_passages(tmp_path):
    tokenizer = t5_tokenizer.save(tmp_path / "t5")
    assert len(build(passages.none(), tokenizer, tmp_path)) == 0
    with pytest.raises(UserError, match="of 0 tokens"):
        build(passages.none(), tokenizer, tmp_path, 0)


@pytest.mark.parametrize("file", ["tokens", "offsets", "manifest.json"])
def test_damage_is_found(pool, tmp_path, file):
    tokenizer = t5_tokenizer.save(tmp_path / "t5")
    build(pool, tokenizer, tmp_path)
    (path,) = (tmp_path / "cache/passage_tokens").glob(f"*/{file}")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="delete the folder"):
        build(pool, tokenizer, tmp_path)


def test_what_a_killed_build_leaves_is_not_read(pool, tmp_path):
    tokenizer = t5_tokenizer.save(tmp_path / "t5")
    stored = build(pool, tokenizer, tmp_path)
    first = [stored[row].tolist() for row in range(4)]
    (path,) = (tmp_path / "cache/passage_tokens").glob("*/tokens")
    folder = path.parent
    path.write_bytes(b"half")
    folder.rename(folder.with_name(f".{folder.name}.partial"))
    again = build(pool, tokenizer, tmp_path)
    assert [again[row].tolist() for row in range(4)] == first
