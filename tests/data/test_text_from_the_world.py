"""Files as editors, systems and other programs leave them, through every reader."""

import gzip
import json

import pytest

from rlm_jax.data import closed_sets, names, passages, questions, sources
from rlm_jax.errors import UserError
from rlm_jax.storage import run_files

MARK = b"\xef\xbb\xbf"
RECORD = {"id": "1", "title": "Apples", "text": "apples are red"}
ASKED = {"id": "q", "question": "apples?", "answers": ["red"]}
SQUAD = {
    "data": [{"title": "A", "paragraphs": [{"context": "apples are red", "qas": [
        {"id": "q", "question": "apples?", "answers": [{"text": "red"}]}]}]}]
}  # fmt: skip
FACT = {"predicate_id": "P1", "sub_label": "apples", "obj_label": "red",
        "masked_sentence": "apples are [MASK]", "obj_surface": "red"}  # fmt: skip
RELATION = {"relation": "P1", "template": "[X] are [Y] ."}


def line(record) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


# Kind -> files of one passage and one question.
FILES = {
    "jsonl": {"p.jsonl": line(RECORD), "q.jsonl": line(ASKED)},
    "dpr": {
        "p.tsv": b"id\ttext\ttitle\n1\tapples are red\tApples\n",
        "q.csv": b"apples?\t['red']\n",
    },
    "beir": {
        "c/corpus.jsonl": line(RECORD),
        "c/queries.jsonl": line({"_id": "q", "text": "apples?"}),
        "c/qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq\t1\t1\n",
    },
    "squad": {"s.json": json.dumps(SQUAD).encode()},
    "fid": {"f.json": json.dumps([{**ASKED, "ctxs": [RECORD]}]).encode()},
    "trex": {"t/x.jsonl": line(FACT), "t/relations.jsonl": line(RELATION)},
}
NAMES = {
    "jsonl": ("jsonl:{}/p.jsonl", "jsonl:{}/q.jsonl"),
    "dpr": ("dpr:{}/p.tsv", "dpr:{}/q.csv"),
    "beir": ("beir:{}/c", "beir:{}/c"),
    "squad": ("squad:{}/s.json", "squad:{}/s.json"),
    "fid": ("", "fid:{}/f.json"),
    "trex": ("trex:{}/t", "trex:{}/t"),
}


def put(folder, files, change=lambda data: data):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(change(data))


def load(folder, kind):
    """(texts of the passages, texts of the questions)."""
    of_passages, of_questions = (name.format(folder) for name in NAMES[kind])
    cache, found = folder / "cache", []
    if of_passages:
        pool = passages.load(of_passages, cache_dir=cache, progress=False)
        found = [passage.text for passage in pool]
    asked = []
    for split in ("train", "validation", "test") if kind == "trex" else ("test",):
        try:
            loaded = questions.load(of_questions, split, cache_dir=cache)
        except UserError:
            continue
        asked += [question.text for question in loaded.questions]
    return found, asked


CHANGES = {
    "a byte order mark": lambda data: MARK + data,
    "line ends of Windows": lambda data: data.replace(b"\n", b"\r\n"),
    "both": lambda data: MARK + data.replace(b"\n", b"\r\n"),
    "no last line end": lambda data: data.rstrip(b"\n"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", FILES)
def test_files_of_other_editors(tmp_path, kind, change):
    (tmp_path / "as_they_are").mkdir()
    put(tmp_path / "as_they_are", FILES[kind])
    wanted = load(tmp_path / "as_they_are", kind)
    assert wanted[1]
    (tmp_path / "changed").mkdir()
    put(tmp_path / "changed", FILES[kind], CHANGES[change])
    assert load(tmp_path / "changed", kind) == wanted


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("data", ["apples\u2028red", "a\x85b", "a\x0cb", "a\u2029b"])
def test_separators_are_part_of_a_line(tmp_path, kind, data):
    # JSON spells control characters.
    spelled = data.replace("\x0c", "\\f") if kind != "dpr" else data
    swap = lambda content: content.replace(b"apples are", spelled.encode() + b" are")
    put(tmp_path, FILES[kind], swap)
    found, _ = load(tmp_path, kind)
    assert not found or any(data in text for text in found)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("data", [b"caf\xe9", b"\x80", b"\xed\xa0\xbd"])
def test_other_bytes_are_refused(tmp_path, kind, data):
    put(tmp_path, FILES[kind], lambda content: content.replace(b"apples", data))
    with pytest.raises(UserError, match=r"not UTF-8 text \(see byte"):
        for name, loader in zip(NAMES[kind], (passages, questions), strict=True):
            if name:
                options = ("test",) if loader is questions else ()
                loader.load(name.format(tmp_path), *options, cache_dir=tmp_path / "c")


@pytest.mark.parametrize(
    ("kind", "file", "record"),
    [
        ("jsonl", "p.jsonl", {**RECORD, "id": "\ud83d"}),
        ("jsonl", "p.jsonl", {**RECORD, "title": "\ud83d"}),
        ("jsonl", "p.jsonl", {**RECORD, "text": "a\udc00"}),
        ("jsonl", "p.jsonl", {**RECORD, "url": "\udfff"}),
        ("jsonl", "q.jsonl", {**ASKED, "id": "\ud83d"}),
        ("jsonl", "q.jsonl", {**ASKED, "answers": ["a", "\ud83d"]}),
        ("jsonl", "q.jsonl", {**ASKED, "passage_id": "\ud83d"}),
        ("jsonl", "q.jsonl", {**ASKED, "passage": {"text": "\ud83d"}}),
        ("beir", "c/queries.jsonl", {"_id": "q", "text": "\ud83d"}),
        ("fid", "f.json", {**ASKED, "ctxs": [{"text": "\ud83d"}]}),
        ("fid", "f.json", {**ASKED, "target": "\ud83d"}),
        ("trex", "t/x.jsonl", {**FACT, "sub_label": "\ud83d"}),
        ("trex", "t/relations.jsonl", {**RELATION, "template": "[X] \ud83d [Y]"}),
    ],
)
def test_half_characters_are_refused(tmp_path, kind, file, record):
    put(tmp_path, FILES[kind])
    (tmp_path / file).write_text(json.dumps(record))
    with pytest.raises(UserError, match="half a character"):
        for name, loader in zip(NAMES[kind], (passages, questions), strict=True):
            if name:
                options = ("train",) if loader is questions else ()
                options = ("test",) if kind != "trex" and options else options
                loader.load(name.format(tmp_path), *options, cache_dir=tmp_path / "c")


@pytest.mark.parametrize("field", ["text", "title", "name", "id"])
def test_half_characters_of_documents(tmp_path, field):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"text": "a", field: "\ud83d"}))
    with pytest.raises(UserError, match=r"Line 1 of .*half a character \(.ud83d\)"):
        sources.jsonl(path)


def test_whole_pairs_are_characters(tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({**RECORD, "text": "a 😀"}))
    pool = passages.load(f"jsonl:{tmp_path}/p.jsonl", cache_dir=tmp_path / "c")
    assert pool[0].text == "a 😀"


@pytest.mark.parametrize(
    ("present", "read"),
    [
        (["a.TXT", "b.txt", "c.Txt"], ["a", "b", "c"]),
        (["a.txt", "._a.txt", ".DS_Store", ".hidden.txt"], ["a"]),
        (["a.txt.GZ", "b.TXT.gz"], ["a", "b"]),
        (["a.txt", "a.txt.gz"], ["a"]),
        (["a.txt", "notes.md", "b.pdf", "x.jsonl"], ["a"]),
        (["caf\udce9.txt", "b.txt"], ["b", "caf\\xe9"]),
    ],
)
def test_which_files_of_a_folder_are_read(tmp_path, present, read):
    for name in present:
        data = f"the text of {name.partition('.')[0]!a}\n".encode() * 30
        compressed = name.lower().endswith(".gz")
        (tmp_path / name).write_bytes(gzip.compress(data) if compressed else data)
    (tmp_path / "folder.txt").mkdir()
    source = sources.text(tmp_path)
    documents = [d for split in source.splits for d in source.documents(split)]
    assert sorted({document.name for document in documents}) == read
    skipped = source.facts["files_skipped"]
    assert sum(map(len, skipped.values())) == len(present) + 1 - len(read)


@pytest.mark.parametrize("suffix", [".JSONL", ".jsonl.GZ", ".Jsonl"])
def test_suffixes_of_passages_in_capitals(tmp_path, suffix):
    data = line(RECORD)
    data = gzip.compress(data) if suffix.lower().endswith(".gz") else data
    (tmp_path / f"p{suffix}").write_bytes(data)
    (tmp_path / f"._p{suffix}").write_bytes(b"\x00\x05\x16\x07")  # macOS's own
    for name in (tmp_path, tmp_path / f"p{suffix}"):
        pool = passages.load(f"jsonl:{name}", cache_dir=tmp_path / "c")
        assert [passage.id for passage in pool] == ["1"]


def test_capitals_of_a_beir_folder(tmp_path):
    files = {name.upper().replace("C/", "c/").replace("QRELS", "qrels"): data
             for name, data in FILES["beir"].items()}  # fmt: skip
    put(tmp_path, files)
    (tmp_path / "c/qrels/TEST.TSV").rename(tmp_path / "c/qrels/test.TSV")
    assert load(tmp_path, "beir") == (["apples are red"], ["apples?"])


@pytest.mark.parametrize(
    "id_",
    ["Blue Whale#1", "a\tb", "a\u3000b", "\xa0", "50%", "a%20b", "%2520", "x\ny",
     "蓝 鲸", "http://h/a%20b c"],
)  # fmt: skip
def test_ids_of_run_files(tmp_path, id_):
    """White space parts the columns, and no id may be lost for it."""
    run = {id_: {id_: 2.5, "other": 1.0}, "q": {id_: 0.5}}
    for name in ("r.trec", "r.trec.gz", "r.TREC.GZ"):
        run_files.write(run, tmp_path / name)
        assert run_files.read(tmp_path / name) == run
    (tmp_path / "r.trec").write_bytes(MARK + (tmp_path / "r.trec").read_bytes())
    assert run_files.read(tmp_path / "r.trec") == run
    for row in (tmp_path / "r.trec").read_text("utf-8-sig").split("\n")[:-1]:
        assert len(row.split()) == 6


@pytest.mark.parametrize("id_", ["a\xa0b", "a\u3000b", "a\u2028b", "a\x85b", "é\u2009"])
def test_run_files_of_other_programs(tmp_path, id_):
    """Blanks and tabs part the columns; other white space may stand in an id."""
    line = f"{id_} Q0\t{id_}  1 2.5 other\n"
    (tmp_path / "r.trec").write_bytes(line.encode())
    assert run_files.read(tmp_path / "r.trec") == {id_: {id_: 2.5}}


def test_closed_sets_of_other_editors(tmp_path):
    folder = tmp_path / "subj"
    folder.mkdir()
    (folder / "subj.all.txt").write_bytes(MARK + b"0 a fil\xe9m\r\n1 the plot\r\n")
    task = closed_sets.load(f"subj:{folder}")
    assert task.labels == ["0", "1"]
    assert task.texts[0].startswith("a fil\ufffdm This")


@pytest.mark.parametrize(
    ("present", "splits"),
    [
        (["alpha", "beta", "training guide"], "documents"),
        (["alpha", "beta", "test plan"], "documents"),
        (["alpha", "val d'isere", "training-camp"], "documents"),
        (["trainspotting", "testament", "validity"], "documents"),
        (["train", "test", "other"], "documents"),
        (["dev notes", "train of thought", "test"], "documents"),
        (["train", "valid", "test"], "files"),
        (["train-00000-of-00002", "train-00001-of-00002", "dev"], "files"),
        (["Train", "TEST", "Validation"], "files"),
        (["train", "test", "README"], "files"),
        (["train_a", "train_b", "test.raw"], "files"),
    ],
)
def test_files_named_like_splits(tmp_path, present, splits):
    """A folder is divided by its files only if each of them belongs to a split."""
    for name in present:
        (tmp_path / f"{name}.txt").write_text(f"the text of {name}\n" * 30)
    source = sources.text(tmp_path)
    assert source.facts["divided"] == f"by {splits}"
    seen = [d.name for split in source.splits for d in source.documents(split)]
    assert sorted(seen) == sorted(set(present) - {"README"} if splits == "files" else
                                  present)  # fmt: skip


@pytest.mark.parametrize("number", [3, 4, 19, 40, 100])
def test_whole_documents_are_divided(tmp_path, number):
    """No document, and no copy of one, is in two splits."""
    for i in range(number):
        (tmp_path / f"{i:03}.txt").write_text(f"text {i}\n" * (1 + i % 7))
    (tmp_path / "copy.txt").write_text("text 0\n")
    source = sources.text(tmp_path)
    parts = [{d.text for d in source.documents(split)} for split in source.splits]
    assert len(parts) == 3 and all(parts)
    assert len(set.union(*parts)) == sum(map(len, parts)) == number
    assert len(parts[1]) == len(parts[2]) == max(1, number // 20)
    order = [d.name for d in source.documents("train")]
    assert order == sorted(order)


def test_two_documents_give_their_last_lines_away(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text("".join(f"{i} {j}\n" for j in range(100)))
    source = sources.text(tmp_path)
    assert source.facts["divided"] == "by lines"
    assert [len(list(source.documents(s))) for s in source.splits] == [2, 1, 1]


@pytest.mark.parametrize(
    ("name", "resolved"),
    [
        ("stdlib", "stdlib"),
        ("text:a/b", "text:{}/a/b"),
        ("corpus:text:a", "corpus:text:{}/a"),
        ("corpus:text:a#test", "corpus:text:{}/a#test"),
        ("corpus:stdlib#validation", "corpus:stdlib#validation"),
        ("jsonl:a+jsonl:b", "jsonl:{0}/a+jsonl:{0}/b"),
        (
            "corpus:text:x+y#train+squad:s.json",
            "corpus:text:{0}/x+y#train+squad:{0}/s.json",
        ),
        ("jsonl:a+b.jsonl", "jsonl:{}/a+b.jsonl"),
        ("squad:d/{split}.json", "squad:{}/d/{{split}}.json"),
        ("jsonl:/whole/path", "jsonl:/whole/path"),
        ("wikipedia/20230601.en", "wikipedia/20230601.en"),
        ("hf:x/tokenizer.json", "hf:{}/x/tokenizer.json"),
        ("trec:r/{split}.trec.gz", "trec:{}/r/{{split}}.trec.gz"),
        ("beir:", "beir:"),
    ],
)  # fmt: skip
def test_names_are_resolved(tmp_path, monkeypatch, name, resolved):
    monkeypatch.chdir(tmp_path)
    assert names.resolved(name) == resolved.format(tmp_path)
    assert names.resolved(names.resolved(name)) == names.resolved(name)


@pytest.mark.parametrize(
    "folder", ["notes#one", "c++", "a#test", "a=b", "x:y", "50%", "a b+c d", "ж"]
)
def test_paths_may_hold_what_parts_names(tmp_path, folder):
    (tmp_path / folder).mkdir()
    for i in range(3):
        (tmp_path / folder / f"{i}.txt").write_text(f"text {i}\n")
    name = f"corpus:text:{tmp_path / folder}"
    for given in (name, f"{name}#test", f"{name}#test+{name}#validation"):
        assert names.resolved(given) == given
    cache = tmp_path / "cache"
    assert len(passages.load(name, cache_dir=cache, progress=False)) == 1
    other = passages.load(f"{name}#test", cache_dir=cache, progress=False)
    assert len(other) == 1


@pytest.mark.parametrize(
    ("path", "of_passages", "of_questions"),
    [
        ("p.jsonl", "jsonl:p.jsonl", "jsonl:p.jsonl"),
        ("p.tsv.gz", "dpr:p.tsv.gz", "dpr:p.tsv.gz"),
        ("dev.json", "squad:dev.json", "squad:dev.json"),
        ("notes.txt", "corpus:text:notes.txt", None),
        ("c", "beir:c", "beir:c"),
        ("lines", "jsonl:lines", "jsonl:lines"),
    ],
)
def test_a_path_alone_is_answered_with_its_spelling(
    tmp_path, monkeypatch, path, of_passages, of_questions
):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, {"c/corpus.jsonl": b"", "lines/x.jsonl": b""})
    with pytest.raises(UserError, match=f"; write {of_passages}: choose"):
        passages.load(path)
    meant = f"; write {of_questions}: choose" if of_questions else "no questions"
    with pytest.raises(UserError, match=meant):
        questions.load(path, "test")
