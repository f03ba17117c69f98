import gzip
import json

import numpy as np
import pytest

from rlm_jax.data import passage_files, passages
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


def blocks(text, size=100):
    """The texts of disjoint blocks of words, their white space made single spaces."""
    words = text.split()
    return [" ".join(words[i : i + size]) for i in range(0, len(words), size)]


def all_train(folder, lines):
    """A folder whose training text is these records, and all of them."""
    (folder / "c").mkdir()
    write(folder / "c" / "train.jsonl", "\n".join(lines))
    write(folder / "c" / "test.jsonl", '{"text": "other"}')
    return folder / "c"


def test_a_corpus_is_cut_into_blocks_of_100_words(tmp_path):
    texts = [
        "  one\n\n " + "\u3000ä-b,\t".join(map(str, range(120))) + " \n",
        " ".join(["w"] * 100),
        " \n\t ",
        "w\n" * 101,
        "x" * 100_000,
    ]
    lines = [json.dumps({"title": f"T {i}", "text": t}) for i, t in enumerate(texts)]
    loaded = load(f"corpus:jsonl:{all_train(tmp_path, lines)}", tmp_path)
    assert [" ".join(p.text.split()) for p in loaded] == sum(map(blocks, texts), [])
    # Each is a piece of its document, from a word to a word.
    assert all(p.text in texts[int(p.title[2:])] for p in loaded)
    assert all(p.text == p.text.strip() for p in loaded)
    assert [p.id for p in loaded] == [
        *("T 0#1", "T 0#2", "T 0#3", "T 1#1", "T 3#1", "T 3#2", "T 4#1")
    ]
    assert [p.title for p in loaded] == [p.id.partition("#")[0] for p in loaded]
    assert loaded.rows_of(["T 3#2"]).tolist() == [5]


def test_documents_of_one_name_keep_their_passages_apart(tmp_path):
    names = ["a", "b", "a", "a#3", "a", "", ""]
    lines = [json.dumps({"title": n, "text": f"text {i}"}) for i, n in enumerate(names)]
    loaded = load(f"corpus:jsonl:{all_train(tmp_path, lines)}", tmp_path)
    assert [p.id for p in loaded] == [
        *("a#1", "b#1", "a#3#1", "a#3#4#1", "a#5#1", "#1", "#7#1")
    ]
    assert [p.title for p in loaded] == names
    assert [p.text for p in loaded] == [f"text {i}" for i in range(len(names))]


def test_a_corpus_has_passages_by_split(tmp_path):
    for split, words in [("train", 150), ("valid", 250), ("test", 3)]:
        write(tmp_path / "c" / f"{split}.txt", f"{split} " * words)
    write(tmp_path / "c#x.txt", "read this")
    write(tmp_path / "d#" / "train.txt", "read that")
    fingerprints = set()
    for split, sizes in [
        ("", [100, 50]),
        ("#train", [100, 50]),
        ("#validation", [100, 100, 50]),
        ("#test", [3]),
    ]:
        loaded = load(f"corpus:text:{tmp_path}/c{split}", tmp_path)
        assert [len(p.text.split()) for p in loaded] == sizes
        fingerprints.add(loaded.fingerprint)
    assert len(fingerprints) == 3
    for name, text in [("c#x.txt", "read this"), ("d#", "read that")]:
        loaded = load(f"corpus:text:{tmp_path}/{name}", tmp_path)
        assert [p.text for p in loaded] == [text]
    with pytest.raises(UserError, match="no split 'tests': choose one of train, val"):
        load(f"corpus:text:{tmp_path}/c#tests", tmp_path)
    write(tmp_path / "blank.jsonl", '{"text": " "}')
    with pytest.raises(UserError, match="There are no passages in corpus:jsonl:"):
        load(f"corpus:jsonl:{tmp_path}/blank.jsonl", tmp_path)
    with pytest.raises(UserError, match="no corpus at .*missing"):
        load(f"corpus:text:{tmp_path}/missing#test", tmp_path)


def test_a_corpus_is_cut_once(tmp_path, monkeypatch):
    write(tmp_path / "c.txt", "a b c")
    first = load(f"corpus:text:{tmp_path}/c.txt", tmp_path)
    monkeypatch.setattr(passages, "write", None)
    assert list(load(f"corpus:text:{tmp_path}/c.txt", tmp_path)) == list(first)


def test_joined_collections(tmp_path):
    write(tmp_path / "a+b.jsonl", jsonl(RECORDS))
    write(tmp_path / "c.jsonl", jsonl([Passage("c", "", "3"), Passage("d", "", "4")]))
    write(tmp_path / "t.txt", "some text")
    names = [f"jsonl:{tmp_path}/a+b.jsonl", f"jsonl:{tmp_path}/c.jsonl"]
    names.append(f"corpus:text:{tmp_path}/t.txt")
    parts = [load(name, tmp_path) for name in names]
    joined = load("+".join(names), tmp_path)
    assert list(joined) == [passage for part in parts for passage in part]
    assert joined.rows_of(["t#1", "c", "a"]).tolist() == [5, 3, 0]
    assert joined.name == "+".join(names)
    assert load("+".join(names), tmp_path).fingerprint == joined.fingerprint
    turned = load("+".join(names[::-1]), tmp_path)
    assert turned.fingerprint not in {p.fingerprint for p in [joined, *parts]}
    assert turned[-1] == RECORDS[-1]


def test_ids_of_joined_collections_get_a_prefix_where_they_clash(tmp_path):
    write(tmp_path / "a.jsonl", '{"text": "1"}\n{"text": "2"}\n{"id":"2/1","text":"3"}')
    write(tmp_path / "b.jsonl", '{"text": "4"}\n{"id": "own", "text": "5"}')
    write(tmp_path / "c.jsonl", '{"id": "other", "text": "6"}')
    name = "+".join(f"jsonl:{tmp_path}/{x}.jsonl" for x in "abcb")
    loaded = load(name, tmp_path)
    assert [(p.id, p.text) for p in loaded] == [
        *(("1", "1"), ("2", "2"), ("2/1", "3")),
        # "2/1" is taken already.
        *(("2/2/1", "4"), ("2/2/own", "5")),
        ("other", "6"),
        *(("4/1", "4"), ("4/own", "5")),
    ]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("stdlib+corpus:stdlib#test", ["stdlib", "corpus:stdlib#test"]),
        ("stdlib+stdlib", ["stdlib", "stdlib"]),
        ("jsonl:a+b/c++.jsonl", ["jsonl:a+b/c++.jsonl"]),
        ("jsonl:a+stdlib.jsonl", ["jsonl:a+stdlib.jsonl"]),
        ("jsonl:C++dpr:x+beir:y", ["jsonl:C+", "dpr:x", "beir:y"]),
    ],
    ids=range(5),
)
def test_names_are_joined_before_a_kind_alone(tmp_path, monkeypatch, name, parts):
    write(tmp_path / "c.jsonl", jsonl(RECORDS))
    asked = []

    def read_named(name, cache_dir):
        asked.append(name)
        return "jsonl", *passage_files.jsonl(tmp_path / "c.jsonl")

    monkeypatch.setattr(passages, "_read_named", read_named)
    loaded = load(name, tmp_path)
    assert asked == parts and len(loaded) == len(parts) * len(RECORDS)


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
        ("c.txt", "x", "corpus:+jsonl", "no passages 'corpus:'"),
    ],
    ids=range(14),
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
