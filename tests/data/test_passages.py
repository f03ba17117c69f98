import gzip
import json

import numpy as np
import pytest

from rlm_jax.data import passages
from rlm_jax.data.passages import Passage
from rlm_jax.errors import UserError

RECORDS = [
    Passage("a", "Zürich", "A city.\nTwo lines."),
    Passage("7", "", "No title."),
    Passage("b/ä", "Only a title", ""),
]


def jsonl(records, id_field="id"):
    lines = [json.dumps({id_field: i, "title": t, "text": x}) for i, t, x in records]
    return "\n".join(lines) + "\n"


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def load(name, tmp_path):
    return passages.load(name, cache_dir=tmp_path / "cache", progress=False)


TSV = 'id\ttext\ttitle\na\tplain\tZürich\n7\t"He said ""no"" and\tleft"\t"""Quoted"""\n'


@pytest.mark.parametrize(
    ("file", "content", "name", "expected"),
    [
        ("c/corpus.jsonl", jsonl(RECORDS, "_id"), "beir:{}/c", RECORDS),
        ("c/corpus.jsonl.gz", jsonl(RECORDS, "_id"), "beir:{}/c", RECORDS),
        ("c.jsonl", jsonl(RECORDS), "jsonl:{}/c.jsonl", RECORDS),
        ("c.jsonl.gz", jsonl(RECORDS), "jsonl:{}/c.jsonl.gz", RECORDS),
        ("c/one.jsonl", jsonl(RECORDS), "jsonl:{}/c", RECORDS),
        (
            "c.jsonl",
            '{"text": "x"}\n\n{"text": "y", "id": 0, "title": null}\n',
            "jsonl:{}/c.jsonl",
            [Passage("1", "", "x"), Passage("0", "", "y")],
        ),
        (
            "psgs.tsv.gz",
            TSV,
            "dpr:{}/psgs.tsv.gz",
            [
                Passage("a", "Zürich", "plain"),
                Passage("7", '"Quoted"', 'He said "no" and\tleft'),
            ],
        ),
    ],
    ids=["beir", "beir-gz", "jsonl", "jsonl-gz", "folder", "bare", "dpr"],
)
def test_reads_every_form(tmp_path, file, content, name, expected):
    write(tmp_path / file, content)
    loaded = load(name.format(tmp_path), tmp_path)
    assert list(loaded) == expected
    assert loaded[-1] == expected[-1] and loaded[:1] == expected[:1]
    assert len(loaded) == len(expected)
    with pytest.raises(IndexError):
        loaded[len(expected)]
    rows = loaded.rows_of([*(p.id for p in reversed(expected)), "unknown"])
    assert rows.tolist() == [*range(len(expected))][::-1] + [-1]
    assert rows.dtype == np.int32
    sizes = [len((p.title + p.text).encode()) for p in expected]
    assert loaded.lengths().tolist() == sizes


def test_files_of_a_folder_keep_their_names_apart(tmp_path):
    write(tmp_path / "c" / "x.jsonl", '{"text": "1"}\n{"text": "2"}')
    write(tmp_path / "c" / "y.jsonl.gz", '{"text": "3"}')
    write(tmp_path / "c" / "x.jsonl.gz", '{"text": "the same as x.jsonl"}')
    loaded = load(f"jsonl:{tmp_path}/c", tmp_path)
    assert [(p.id, p.text) for p in loaded] == [
        ("x/1", "1"),
        ("x/2", "2"),
        ("y/1", "3"),
    ]


def test_is_built_once_by_content(tmp_path):
    write(tmp_path / "c.jsonl", jsonl(RECORDS))
    write(tmp_path / "copy.jsonl", jsonl(RECORDS))
    first = load(f"jsonl:{tmp_path}/c.jsonl", tmp_path)
    second = load(f"jsonl:{tmp_path}/copy.jsonl", tmp_path)
    assert first.fingerprint == second.fingerprint
    assert len(list((tmp_path / "cache" / "passages").glob("[0-9a-f]*"))) == 1
    write(tmp_path / "c.jsonl", jsonl(RECORDS[:2]))
    third = load(f"jsonl:{tmp_path}/c.jsonl", tmp_path)
    assert len(third) == 2 and third.fingerprint != first.fingerprint


def test_a_megabyte_is_a_passage(tmp_path):
    text = 'word "ä" ' * 120_000
    write(tmp_path / "c.jsonl", jsonl([Passage("x", "t", text)]))
    quoted = text.replace('"', '""')
    write(tmp_path / "c.tsv", f'id\ttext\ttitle\nx\t"{quoted}"\tt\n')
    for name in ("jsonl:{}/c.jsonl", "dpr:{}/c.tsv"):
        assert list(load(name.format(tmp_path), tmp_path)) == [Passage("x", "t", text)]


def test_ids_of_one_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(passages, "_hash", lambda id_: 1)
    write(tmp_path / "c.jsonl", jsonl(RECORDS))
    loaded = load(f"jsonl:{tmp_path}/c.jsonl", tmp_path)
    assert loaded.rows_of(["b/ä", "a", "7", "x"]).tolist() == [2, 0, 1, -1]


def test_title_and_text():
    assert [p.joined for p in RECORDS[:2]] == [
        "Zürich A city.\nTwo lines.",
        "No title.",
    ]


@pytest.mark.parametrize(
    ("file", "content", "kind", "message"),
    [
        (
            "c.jsonl",
            jsonl([RECORDS[0], RECORDS[1], RECORDS[0]]),
            "jsonl",
            "id 'a' .* 1 an",
        ),
        ("c.jsonl", "\n", "jsonl", "no passages"),
        ("c.jsonl", "", "jsonl", "c.jsonl is empty"),
        ("c.jsonl", '{"text": "x"}\n{"title": "x"}', "jsonl", "Line 2 of .*c.jsonl"),
        ("c.jsonl", '{"text": "x"}\n{"text"', "jsonl", "Line 2 of .*c.jsonl"),
        ("c.jsonl", '{"text": "x", "id": [1]}', "jsonl", 'plain "id"'),
        (
            "c.jsonl",
            b'{"text": "x"}\n{"text": "\xff"}',
            "jsonl",
            "c.jsonl .*UTF-8.*line 2",
        ),
        ("c.jsonl", '{"text": "\\ud800"}', "jsonl", "half a character"),
        ("c.jsonl.gz", b"", "jsonl", None),
        ("c.tsv", "id\ttext\ttitle\n1\tx\n", "dpr", "Line 2 of .*c.tsv"),
        ("c.tsv", "id\ttext\ttitle\n", "dpr", "no passages"),
        ("c.txt", "x", "beir", "neither .*corpus.jsonl nor .*corpus.jsonl.gz"),
        ("c.txt", "x", "text", "no passages 'text:"),
    ],
    ids=range(13),
)
def test_bad_input(tmp_path, file, content, kind, message):
    write(tmp_path / file, content)
    with pytest.raises(UserError, match=message):
        load(f"{kind}:{tmp_path}/{file}", tmp_path)
    left = tmp_path / "cache" / "passages"
    assert not left.exists() or not [p for p in left.iterdir() if p.is_dir()]


def test_cut_off_gzip_is_named(tmp_path):
    write(tmp_path / "c.jsonl.gz", jsonl(RECORDS * 1))
    data = (tmp_path / "c.jsonl.gz").read_bytes()
    (tmp_path / "c.jsonl.gz").write_bytes(data[:-12])
    with pytest.raises(UserError, match="not a whole gzip"):
        load(f"jsonl:{tmp_path}/c.jsonl.gz", tmp_path)
    with pytest.raises(UserError, match="no file"):
        load(f"jsonl:{tmp_path}/missing.jsonl", tmp_path)


@pytest.mark.parametrize("file", ["text", "offsets", "hashes", "rows", "manifest.json"])
def test_damage_is_found(tmp_path, file):
    write(tmp_path / "c.jsonl", jsonl(RECORDS))
    load(f"jsonl:{tmp_path}/c.jsonl", tmp_path)
    (path,) = (tmp_path / "cache" / "passages").glob(f"*/{file}")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="delete the folder"):
        load(f"jsonl:{tmp_path}/c.jsonl", tmp_path)
