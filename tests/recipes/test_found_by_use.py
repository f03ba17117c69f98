"""Recipes that compile nothing, tried as a new user does: BM25 and its search."""

import io
import json
import os
import pathlib
import sys
from typing import Any

import pytest

from experiments import bm25, dpr, fid, search
from rlm_jax.data.collections import CollectionConfig
from rlm_jax.errors import UserError
from rlm_jax.recipes.retrievers.ranking_report import JudgeConfig
from rlm_jax.storage import run_files

PASSAGES = [
    {"id": "w", "title": "Whale", "text": "the blue whale is the largest animal"},
    {"id": "f", "title": "Fox", "text": "the red fox hunts mice at night"},
    {"id": "m", "title": "Mouse", "text": "mice fear foxes and owls"},
]
ASKED = [
    {"id": "1", "question": "largest animal", "answers": ["whale"], "passage_id": "w"},
    {"id": "2", "question": "who hunts mice", "answers": ["fox"], "passage_id": "f"},
]


def write(path: pathlib.Path, records: list[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(x) + "\n" for x in records))
    return f"jsonl:{path}"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLM_CACHE", str(tmp_path / "cache"))


def run(folder, passages=PASSAGES, asked=ASKED, workdir="run", k=3, **judge):
    config = bm25.Config(
        CollectionConfig(
            write(folder / "p.jsonl", passages), write(folder / "q.jsonl", asked)
        ),
        k=k,
        judge=JudgeConfig(**judge),
    )
    report = bm25.run(config, folder / workdir)
    assert report is not None
    return report


# --- figures -------------------------------------------------------------------------


def test_one_question_has_no_control_shuffled(tmp_path, capsys):
    report = run(tmp_path, asked=ASKED[:1])
    assert report["controls"] == {}
    assert "the control shuffled" in capsys.readouterr().err
    assert "shuffled" in run(tmp_path / "two")["controls"]


ARGUMENTS = [
    {"id": "a1", "text": "sugar taxes make people healthier"},
    {"id": "a2", "text": "sugar taxes hurt people"},
    {"id": "b1", "text": "zoos protect animals"},
    {"id": "b2", "text": "zoos lock animals up"},
]


def beir(folder: pathlib.Path, queries=("a1", "b1"), graded=(("a1", "a2"),
         ("b1", "b2")), changed=lambda text: text) -> str:  # fmt: skip
    texts = {x["id"]: x["text"] for x in ARGUMENTS}
    named = [{"_id": x["id"], "title": "", "text": x["text"]} for x in ARGUMENTS]
    write(folder / "corpus.jsonl", named)
    asked = [{"_id": id_, "text": changed(texts[id_])} for id_ in queries]
    write(folder / "queries.jsonl", asked)
    (folder / "qrels").mkdir()
    rows = ["query-id\tcorpus-id\tscore", *(f"{q}\t{p}\t1" for q, p in graded)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n")
    return f"beir:{folder}"


@pytest.mark.parametrize(
    ("options", "own", "recall", "left_out"),
    [
        ({}, "left_out", 1.0, 2),
        ({}, "kept", 0.0, 0),
        ({"changed": str.upper}, "left_out", 1.0, 2),  # the id alone decides
        # Judged to answer itself: it is what is looked for.
        ({"graded": (("a1", "a1"), ("b1", "b1"))}, "left_out", 1.0, 0),
        ({"queries": ("a1",), "graded": (("a1", "a2"),)}, "left_out", 1.0, 1),
    ],
)
@pytest.mark.parametrize("k", [1, 3])
def test_a_question_does_not_find_itself(tmp_path, k, options, own, recall, left_out):
    name = beir(tmp_path / "c", **options)
    judge = JudgeConfig(("recall@1", "ndcg@3"), own=own)
    config = bm25.Config(CollectionConfig(name), k=k, judge=judge)
    report = bm25.run(config, tmp_path / "run")
    assert report is not None
    assert report["metrics"]["recall@1"] == recall
    assert report["protocol"]["own_passages_left_out"] == left_out
    assert report["protocol"]["depth"] == k


def test_numbers_of_lines_are_equal_by_chance(tmp_path):
    """Questions without an id are numbered, and so may passages be."""
    passages = [{"id": str(i), "text": x["text"]} for i, x in enumerate(PASSAGES, 1)]
    asked = [
        {"question": "largest animal", "passage_id": "1"},
        {"question": "hunts mice", "passage_id": "2"},
    ]
    report = run(tmp_path, passages, asked, measures=("recall@1",))
    assert report["protocol"]["own_passages_left_out"] == 0
    assert report["metrics"]["recall@1"] == 1.0


# --- checks before the work ----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measures": ("recall",)}, "needs a cutoff"),
        ({"measures": ("ndgc@10",)}, "no measure 'ndgc@10'"),
        ({"measures": ("recall@100", "ndcg@10")}, "can be told of 3 passages"),
        ({"measures": ()}, "No measure"),
        ({"k": 0}, "k is 0"),
        ({"own": "dropped"}, "own is 'dropped'; choose one of"),
        (
            {"asked": [{**ASKED[0], "id": ""}, ASKED[1]]},
            "has an empty id",
        ),
        ({"passages": [{**PASSAGES[0], "id": ""}]}, "has an empty id"),
    ],
)
def test_what_the_judging_would_refuse_is_refused_first(
    tmp_path, monkeypatch, options, message
):
    monkeypatch.setattr("rlm_jax.retrievers.lexical.open_index", None)  # the work
    with pytest.raises(UserError, match=message):
        run(tmp_path, **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "asked", "message"),
    [
        ("questions", ASKED, "2 questions of .*, train, with a passage, too few"),
        ("validation", ASKED, "2 questions of .*, validation, with a passage, too few"),
        ("questions", [{**x, "passage_id": "none"} for x in ASKED], "[Pp]assage"),
        ("validation", None, "There is no file"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_questions_to_learn_from_are_counted_first(
    tmp_path, monkeypatch, field, asked, message, dry_run
):
    monkeypatch.setattr("rlm_jax.recipes.retrievers.dpr.hard_negatives", None)
    monkeypatch.setattr("rlm_jax.recipes.retrievers.dpr.dpr", None)
    name = f"jsonl:{tmp_path}/none.jsonl"
    if asked is not None:
        name = write(tmp_path / "asked.jsonl", asked)
    many = [{**ASKED[i % 2], "id": f"m{i}"} for i in range(40)]
    config = dpr.tiny()
    config.collection.passages = config.pairs.passages = write(
        tmp_path / "p.jsonl", PASSAGES
    )
    config.collection.questions = config.pairs.questions = write(
        tmp_path / "q.jsonl", many
    )
    config.judge.measures = ("recall@1",)
    config.search.k = 3
    setattr(config.pairs, field, name)
    with pytest.raises(UserError, match=message):
        dpr.run(config, tmp_path / "run", dry_run=dry_run)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "size", "message"),
    [
        ([ASKED[0], {**ASKED[1], "answers": []}], 1, "'2' has no answer to learn"),
        (ASKED, 3, "2 questions to learn from, which make no batch of 3"),
        ([{**x, "answers": []} for x in ASKED], 1, "has an answer"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_reader_is_told_before_the_search(
    tmp_path, monkeypatch, asked, size, message, dry_run
):
    monkeypatch.setattr("rlm_jax.recipes.readers.fid.reader", None)
    config = fid.tiny()
    config.batch_size = size
    config.data.passages = write(tmp_path / "p.jsonl", PASSAGES)
    config.data.questions = write(tmp_path / "q.jsonl", asked)
    with pytest.raises(UserError, match=message):
        fid.run(config, tmp_path / "run", dry_run=dry_run)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("id_", ["Blue Whale", "a\tb", "蓝 鲸", "x\u2028y", "50% off"])
def test_ids_may_hold_anything(tmp_path, id_):
    passages = [{**PASSAGES[0], "id": id_}, *PASSAGES[1:]]
    asked = [{**ASKED[0], "id": f"q {id_}", "passage_id": id_}, ASKED[1]]
    run(tmp_path, passages, asked)
    (found,) = (tmp_path / "run" / "runs").iterdir()
    assert id_ in run_files.read(found)[f"q {id_}"]


# --- what a run leaves ---------------------------------------------------------------


def refuse(workdir: pathlib.Path) -> None:
    config = bm25.Config(CollectionConfig("jsonl:/none.jsonl"))
    with pytest.raises(UserError, match="There is no file /none.jsonl"):
        bm25.run(config, workdir)


def test_a_refused_run_leaves_no_folders(tmp_path):
    refuse(tmp_path / "a" / "b" / "run")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("there", [[], ["mine.txt"], ["config.json", "tokenizer.json"]])
def test_a_workdir_that_was_there_stays_as_it_was(tmp_path, there):
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in there:
        (workdir / name).write_text("{}")
    refuse(workdir)
    assert sorted(path.name for path in workdir.iterdir()) == sorted(there)


def test_a_workdir_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    refuse(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").is_dir()
    run(tmp_path, workdir="link")
    assert (tmp_path / "real" / "report.json").is_file()


@pytest.mark.parametrize("place", ["file", "file/run", "nowhere", "nowhere/a/run"])
def test_a_workdir_that_cannot_be_a_folder(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="a file or a link to nothing stands in its"):
        run(tmp_path, workdir=place)
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"file", "nowhere", "p.jsonl", "q.jsonl", "cache"}


@pytest.mark.parametrize("place", ["run/", "a/../run", "link/run", ".", "ж b=#+"])
def test_workdirs_of_every_spelling(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "a").mkdir()
    refuse(pathlib.Path(place))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").is_dir()
    run(tmp_path, workdir=place)
    assert (tmp_path / place / "report.json").is_file()


def test_a_workdir_is_named_in_utf_8(tmp_path):
    with pytest.raises(UserError, match=r"caf\\xe9 is not named in UTF-8"):
        run(tmp_path, workdir="caf\udce9")


def test_a_collection_may_be_named_in_other_bytes(tmp_path):
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    config = bm25.Config(
        CollectionConfig(
            write(folder / "p\udcff.jsonl", PASSAGES), write(folder / "q.jsonl", ASKED)
        )
    )
    bm25.run(config, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["corpus"] == config.collection.passages
    stored = json.loads((tmp_path / "run" / "searcher.json").read_text())
    assert stored["passages"] == config.collection.passages


# --- names, from another folder ------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "jsonl:p.jsonl",
        "jsonl:p.jsonl+jsonl:d/more.jsonl",
        "corpus:text:t",
        "corpus:text:t#test+jsonl:p.jsonl",
        "jsonl:d",
        "corpus:jsonl:d/more.jsonl",
    ],
)
def test_a_run_is_searched_from_another_folder(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p.jsonl", PASSAGES)
    more = [{"id": i, "text": f"whales and foxes {i}"} for i in "xyz"]
    write(tmp_path / "d" / "more.jsonl", more)
    (tmp_path / "t").mkdir()
    for i in range(4):
        (tmp_path / "t" / f"{i}.txt").write_text(f"a fox and a whale {i}\n")
    asked = write(tmp_path / "q.jsonl", ASKED)
    bm25.run(bm25.Config(CollectionConfig(name, asked)), tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    search.run(search.Config(question="whale"), tmp_path / "run")
    assert "1. " in capsys.readouterr().out


# --- asking --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["q.jsonl/found.trec", "q.jsonl/a/b.trec", "run", "", "link/x.trec"]
)
def test_a_run_file_that_cannot_be_is_refused_first(tmp_path, monkeypatch, place):
    run(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr("rlm_jax.retrievers.published_index.open_run", None)
    config = search.Config(question="whale", run_file=str(tmp_path / place))
    with pytest.raises(UserError, match="No file can be written at"):
        search.run(config, tmp_path / "run")


@pytest.fixture
def searched(tmp_path):
    run(tmp_path)
    return tmp_path / "run"


def pipe(monkeypatch, data: bytes):
    stream = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stream)


@pytest.mark.parametrize(
    ("data", "questions"),
    [
        (b"whale\nfox\n", ["whale", "fox"]),
        (b"whale\n\nfox", ["whale"]),
        (b"caf\xe9 animal\nfox\n", ["caf\ufffd animal", "fox"]),
        (b"\xef\xbb\xbfwhale\r\n", ["whale"]),
        (b"", []),
    ],
)
def test_questions_of_a_pipe_are_echoed(searched, monkeypatch, capsys, data, questions):
    pipe(monkeypatch, data)
    search.run(search.Config(), searched)
    shown = capsys.readouterr().out.split("\n")
    assert [x[2:] for x in shown if x.startswith("? ")] == questions


@pytest.mark.parametrize(
    ("name", "data", "ids"),
    [
        ("q.txt", "whale\n\nfox\n", ["1", "3"]),
        (
            "q.jsonl",
            '{"id": "a b", "question": "whale"}\n{"text": "fox"}',
            ["a b", "2"],
        ),
        ("Q.JSONL", '{"_id": 7, "query": "whale"}\n', ["7"]),
    ],
)
def test_questions_of_a_file(searched, tmp_path, capsys, name, data, ids):
    (tmp_path / name).write_text(data)
    trec = tmp_path / "found.trec"
    config = search.Config(
        questions=str(tmp_path / name), json=True, run_file=str(trec), k=2
    )
    search.run(config, searched)
    told = [json.loads(line) for line in capsys.readouterr().out.strip().split("\n")]
    assert [x["id"] for x in told] == ids
    assert told[0]["passages"][0]["id"] == "w"
    assert told[0]["passages"][0].keys() == {"id", "title", "text", "score"}
    assert list(run_files.read(trec)) == ids
    assert list(run_files.read(trec)[ids[0]])[0] == "w"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": "a", "questions": "b"}, "not both"),
        ({"k": 0}, "k is 0"),
        ({"lines": -1}, "lines is -1"),
        ({"questions": "/none.txt"}, "There is no file /none.txt"),
    ],
)
def test_asking_is_checked_first(searched, changes, message):
    with pytest.raises(UserError, match=message):
        search.run(search.Config(**changes), searched)
    assert os.listdir(searched)
