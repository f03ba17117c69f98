import gzip
import itertools
import json
import os
import subprocess
import sys
import threading

import pytest

from rlm_jax.data import corpora
from rlm_jax.errors import UserError

WIKITEXT = (
    " \n = First = \n \n One @-@ two . \n = 2 - 1 = \n Three . \n \n = = Part = = \n"
    " \n Four = 4 . \n \n = 5 = \n is . \n \n = Second <unk> = \n \n Five . \n \n"
)


@pytest.fixture
def load(tmp_path_factory):
    cache_dir = tmp_path_factory.mktemp("cache")
    return lambda name: corpora.load(str(name), cache_dir=cache_dir)


def put(folder, **files):
    """Writes files; the name's "__" is a full stop, and ".gz" compresses."""
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return folder


def texts(corpus, split="train"):
    return [document.text for document in corpus.documents(split)]


def names(corpus, split="train"):
    return [document.name for document in corpus.documents(split)]


def test_folder_of_named_files(tmp_path, load):
    put(
        tmp_path,
        train__txt__gz="a b\n",
        test__txt__gz="d\u2028e",
        valid__txt="c\n",
        valid__raw__txt__gz="raw\n",
        test__txt="d\u2028e",
        README__txt="not a split\n",
    )
    corpus = load(f"text:{tmp_path}")
    assert corpus.splits == ("train", "validation", "test")
    assert [texts(corpus, split) for split in corpus.splits] == [
        ["a b\n"],
        ["c\n"],
        ["d\u2028e"],
    ]
    assert corpus.documents("train")[-1] == ("train", "a b\n")
    assert len(corpus.documents("train")) == 1
    # One file of the folder stands for the folder, so that a shell can complete it.
    same = load(f"text:{tmp_path / 'train.txt.gz'}")
    assert same.fingerprint == corpus.fingerprint


def test_folder_of_folders_keeps_documents_in_order(tmp_path, load):
    for folder in ("train", "dev"):
        (tmp_path / folder).mkdir()
        put(tmp_path / folder, **{f"{i:02}__txt": f"{folder} {i}\n" for i in range(30)})
    corpus = load(f"text:{tmp_path}")
    assert corpus.splits == ("train", "validation")
    assert names(corpus) == [f"{i:02}" for i in range(30)]
    assert texts(corpus, "validation") == [f"dev {i}\n" for i in range(30)]


def test_wikitext_is_cut_into_pages_and_loses_nothing(tmp_path, load):
    put(tmp_path, train__txt=WIKITEXT, test__txt=WIKITEXT.replace(" = ", " # "))
    corpus = load(f"text:{tmp_path}")
    assert "".join(texts(corpus)) == WIKITEXT
    assert names(corpus) == ["First", "Second <unk>"]
    assert names(corpus, "test") == ["test"]


@pytest.mark.parametrize("content", [WIKITEXT * 9, "x\n" * 41 + "no end", "\n\n" * 30])
def test_one_file_gives_its_last_lines_away(tmp_path, load, content):
    path = put(tmp_path, book__txt=content) / "book.txt"
    if not content.strip():
        with pytest.raises(UserError, match="no text"):
            load(f"text:{path}")
        return
    corpus = load(f"text:{path}")
    parts = ["".join(texts(corpus, split)) for split in corpus.splits]
    assert "".join(parts) == content
    held = len(content.splitlines()) // 20
    assert [len(part.splitlines()) for part in parts[1:]] == [held, held]


def test_short_file_is_all_train(tmp_path, load):
    put(tmp_path, enwik="one line")
    assert load(f"text:{tmp_path / 'enwik'}").splits == ("train",)


def test_jsonl(tmp_path, load):
    records: list[dict] = [{"text": f"t{i}\n", "title": f"n{i}"} for i in range(40)]
    records[1] = {"text": "", "id": 7}
    records[2] = {"text": "no name"}
    lines = "\n".join(map(json.dumps, records))
    put(tmp_path, some__jsonl__gz=lines)
    corpus = load(f"jsonl:{tmp_path}")
    assert [len(corpus.documents(split)) for split in corpus.splits] == [36, 2, 2]
    assert names(corpus)[:4] == ["n0", "7", "some/3", "n3"]
    every = itertools.chain.from_iterable(texts(corpus, s) for s in corpus.splits)
    # Whole records, divided by a hash of their text; each split keeps their order.
    assert sorted(every) == sorted(record["text"] for record in records)
    train = texts(corpus)
    assert train == [x["text"] for x in records if x["text"] in set(train)]


@pytest.mark.parametrize(
    ("kind", "name", "data", "message"),
    [
        ("text", "a.txt", b"fine\nw\xffrong", r"a\.txt is not UTF-8 text \(see byte 6"),
        ("text", "a.txt", b"\x7fELF\x01\x00", r"a\.txt is not UTF-8 text \(see byte 5"),
        ("text", "a.txt", b"", r"a\.txt is empty"),
        ("text", "a.txt", b" \n\n", r"a\.txt has no text"),
        ("text", "a.txt.gz", b"not compressed", r"a\.txt\.gz is not a whole gzip"),
        (
            "text",
            "a.txt.gz",
            gzip.compress(b"x" * 99, mtime=0)[:-9],
            "not a whole gzip file",
        ),
        ("jsonl", "a.jsonl", b'{"text": "a"}\n\n{"text": 1}', r"Line 3 of .*a\.jsonl"),
        ("jsonl", "a.jsonl", b'{"text": "a"}\n{"text"', r"Line 2 of .*a\.jsonl"),
        ("jsonl", "a.jsonl", b'["text"]', r"Line 1 of .*a\.jsonl"),
        ("jsonl", "a.jsonl", b'{"text": "\\ud800"}', r"Line 1 of .*a\.jsonl"),
        ("jsonl", "a.jsonl", b"\n\n", r"a\.jsonl has no records"),
    ],
)
def test_bad_files(tmp_path, load, kind, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        load(f"{kind}:{tmp_path / name}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text:{0}/missing", "no corpus at .*missing"),
        ("text:{0}", "holds no training text"),
        ("jsonl:{0}", "holds no training text"),
        ("text:", "lacks its path"),
        ("no_such_data_set", "Unknown corpus 'no_such_data_set'"),
        ("tfds:no_such_data_set", "Unknown corpus 'no_such_data_set'"),
        ("not a name/", "Unknown corpus 'not a name/'"),
    ],
)
def test_bad_names(tmp_path, load, name, message):
    put(tmp_path, valid__txt="only validation\n", picture__png="")
    with pytest.raises(UserError, match=message):
        load(name.format(tmp_path))


def test_unknown_split(tmp_path, load):
    put(tmp_path, train__txt="a\n" * 9, test__txt="b\n")
    with pytest.raises(UserError, match="no split 'validation'.*train, test"):
        load(f"text:{tmp_path}").documents("validation")


def test_threads_that_cannot_be_started_are_told(tmp_path, load, monkeypatch):
    """array_record starts 64 at once, and waited for ever where it got fewer."""
    (tmp_path / "text.txt").write_text("one\ntwo\n")
    corpus = load(f"text:{tmp_path / 'text.txt'}")
    corpora._check_threads.cache_clear()
    start, begun = threading.Thread.start, []

    def start_some(thread):
        begun.append(thread)
        if len(begun) > 20:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start_some)
        with pytest.raises(UserError, match="No 64 threads can be started to read"):
            corpus.documents("train")
    assert len(begun) == 21 and not any(thread.is_alive() for thread in begun)
    assert len(corpus.documents("train")) == 1


def test_fingerprint_is_of_the_content(tmp_path, load):
    for folder in ("one", "two", "other"):
        put_in = tmp_path / folder
        put_in.mkdir()
        put(put_in, train__txt="x\n" if folder == "other" else "y\n", test__txt="z\n")
    one, two, other = (load(f"text:{tmp_path / f}") for f in ("one", "two", "other"))
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_catalogue_name(load):
    import tensorflow_datasets as tfds

    class RlmToyText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None
        field = "text"

        def _info(self):
            features = {self.field: tfds.features.Text(), "label": tfds.features.Text()}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {
                "train": self._generate_examples(9),
                "valid": self._generate_examples(2),
            }

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {self.field: f"text {i}", "label": ""}

    class RlmToyQuestions(RlmToyText):
        field = "question"

    corpus = load("rlm_toy_text")
    assert corpus.splits == ("train", "validation")
    assert sorted(texts(corpus)) == [f"text {i}" for i in range(9)]
    assert names(corpus, "validation") == ["validation/0", "validation/1"]
    assert load("tfds:rlm_toy_text").fingerprint == corpus.fingerprint
    with pytest.raises(UserError, match=r"no field 'text' \(it has .*question"):
        load("rlm_toy_questions")


def test_stdlib_without_tensorflow(tmp_path):
    program = (
        "import sys\n"
        "from rlm_jax.data import corpora\n"
        "assert 'tensorflow_datasets' not in sys.modules, 'imported too early'\n"
        "corpus = corpora.load('stdlib', cache_dir=sys.argv[1])\n"
        "names = {s: [d.name for d in corpus.documents(s)] for s in corpus.splits}\n"
        "bytes = sum(len(d.text) for d in corpus.documents('train'))\n"
        "loaded = [m for m in ('tensorflow', 'jax') if m in sys.modules]\n"
        "import json; print(json.dumps([names, bytes, loaded, corpus.fingerprint]))\n"
    )

    def run(hash_seed):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONHASHSEED": hash_seed,
        }
        command = [sys.executable, "-c", program, str(tmp_path / hash_seed)]
        output = subprocess.run(
            command, env=environment, check=True, capture_output=True
        )
        return json.loads(output.stdout)

    names, size, loaded, fingerprint = run("1")
    assert loaded == []
    assert size > 5_000_000
    assert run("2")[-1] == fingerprint  # stable across runs
    every = list(itertools.chain.from_iterable(names.values()))
    assert len(set(every)) == len(every) > 500
    assert 0.85 < len(names["train"]) / len(every) < 0.95
    assert "argparse" in names["train"]  # by the hash of its name, on every machine
    assert "asyncio" in every and "pydoc_data.topics.with" in every
    assert not any("test" in name.split(".") for name in every)
    assert not any(
        "site-packages" in name or "_sysconfigdata" in name for name in every
    )
