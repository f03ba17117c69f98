"""What each question reads: by words, by an encoder, by a run, by a file."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from rlm_jax.data import question_answering
from rlm_jax.data.question_answering import AnsweringConfig
from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval.bm25 import BM25Config
from rlm_jax.retrievers import (
    dense,
    lexical,
    passage_sources,
    published_index,
    reading,
    reading_controls,
)
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.retrievers.reading import Reading, ReadingConfig
from rlm_jax.storage import run_files
from tests.recipes import shrunken

TEXTS = {
    "a": "the river runs to the sea",
    "b": "the river bank of the river",
    "c": "the answer is blue , says the river",
    "d": "a stone",
    "e": "a lamp",
}
ASKED = [
    {"id": "q1", "question": "which river ?", "answers": ["blue"], "passage_id": "b"},
    {"id": "q2", "question": "no answer ?"},
    {
        "id": "q3",
        "question": "stone or lamp ?",
        "answers": ["stone", "lamp"],
        "positive_ids": ["e", "gone"],
    },
    {"id": "q4", "question": "unheard", "answers": ["x"]},
]


def write(path, records):
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")


@pytest.fixture
def collection(tmp_path, monkeypatch):
    monkeypatch.setenv("RLM_CACHE", str(tmp_path / "cache"))
    passages = [{"id": id_, "text": text} for id_, text in TEXTS.items()]
    write(tmp_path / "p.jsonl", passages)
    write(tmp_path / "q.jsonl", ASKED)
    config = AnsweringConfig(f"jsonl:{tmp_path}/p.jsonl", f"jsonl:{tmp_path}/q.jsonl")
    return question_answering.load(config, "train")


def read(collection, folder, retriever, num=2, own: Any = "read", **more):
    config = ReadingConfig(retriever, num, own)
    search, text = SearchConfig(batch_tokens=64), TextConfig()
    return reading.read(config, collection, folder, search, text, **more)


def names(found, collection):
    pool = collection.passages
    return [[pool[int(r)].id for r in row if r >= 0] for row in found.ids]


def test_words_find_what_is_read(collection, tmp_path, capsys):
    found = read(collection, tmp_path / "run", "bm25")
    told = capsys.readouterr().err
    assert "1 questions without an answer" in told and "'q2'" in told
    assert "1 questions have no passage to read" in told
    assert found.questions.tolist() == [0, 2, 3]
    assert found.ids.dtype == np.int32 and found.scores.dtype == np.float32
    expected = lexical.search(
        collection.passages,
        [collection.texts[n] for n in (0, 2, 3)],
        2,
        tmp_path / "run/bm25",
    )
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.scores.tolist() == expected.scores.tolist()
    assert names(found, collection) == [["b", "a"], ["d", "e"], []]
    assert found.facts["questions"] == 3
    assert found.facts["questions_without_answer"] == 1
    assert found.facts["questions_without_passages"] == 1


def test_a_blank_is_not_searched_for(collection, tmp_path):
    write(tmp_path / "p2.jsonl", [{"text": "a mask"}, {"text": "a stone"}])
    write(tmp_path / "q2.jsonl", [{"question": "The stone is [MASK] .", "answer": "x"}])
    config = AnsweringConfig(f"jsonl:{tmp_path}/p2.jsonl", f"jsonl:{tmp_path}/q2.jsonl")
    found = read(question_answering.load(config, "test"), tmp_path, "bm25")
    assert found.ids.tolist() == [[1, -1]]


def test_own_evidence_is_left_out_and_replaced(collection, tmp_path):
    found = read(collection, tmp_path, "bm25", own="left_out")
    assert names(found, collection) == [["a", "c"], ["d"], []]
    assert found.ids.shape == (3, 2)
    read_too = read(collection, tmp_path, "bm25")
    assert found.source == read_too.source  # who gave them, not which are kept
    assert found.facts["own_evidence"] == "left_out"
    own = reading.evidence(collection, found.questions)
    rows = [collection.passages.rows_of(ids) for ids in (["b"], ["e"], [])]
    assert [x.tolist() for x in own] == [x.tolist() for x in rows]
    graded = {"q1": {"a": 1, "gone": 3, "b": 2, "c": 0}}
    judged = dataclasses.replace(collection.questions, relevance=graded)
    best = reading.evidence(collection._replace(questions=judged), found.questions)[0]
    assert best.tolist() == collection.passages.rows_of(["b", "a"]).tolist()


def test_own_evidence_is_added_where_it_was_not_found(collection, tmp_path):
    found = read(collection, tmp_path, "bm25", num=1)
    added = read(collection, tmp_path, "bm25", num=1, own="added", training=True)
    # q1 found its own, q3 did not find e, and nothing is known to answer q4.
    assert names(found, collection) == [["b"], ["d"], []]
    assert names(added, collection) == [["b"], ["e"], []]
    wider = read(collection, tmp_path, "bm25", num=3, own="added", training=True)
    whole = read(collection, tmp_path, "bm25", num=3)
    assert names(whole, collection)[1] == ["d", "e"]  # which was found
    assert names(wider, collection) == names(whole, collection)
    assert added.facts["own_evidence"] == "added" and added.source == found.source
    assert np.isfinite(added.scores[:2]).all()
    judged = read(collection, tmp_path, "bm25", num=1, own="added")
    assert judged.ids.tolist() == found.ids.tolist()
    assert judged.facts == found.facts


def test_what_is_added_takes_the_first_free_place():
    found = Neighbours(
        np.array([[3, 1, -np.inf], [3, 2, 1], [-np.inf] * 3], np.float32),
        np.array([[5, 6, -1], [5, 6, 7], [-1] * 3], np.int32),
    )
    own = [np.array([9, 8]), np.array([9]), np.array([4])]
    scores, ids = reading._with_own(found, own)
    assert ids.tolist() == [[5, 6, 9], [5, 6, 9], [4, -1, -1]]
    assert scores[:2].tolist() == [[3, 1, 1], [3, 2, 2]] and scores[2, 0] == 0


def test_program_text_is_searched_by_parts_of_names(collection, tmp_path):
    other = read(collection, tmp_path, "bm25_code")
    assert (tmp_path / "bm25_code").is_dir()
    assert other.source != read(collection, tmp_path, "bm25").source


def test_a_rerun_does_not_search_again(collection, tmp_path, monkeypatch):
    first = read(collection, tmp_path, "bm25")
    deeper = read(collection, tmp_path, "bm25", num=3)
    assert deeper.source == first.source and deeper.ids.shape == (3, 3)
    monkeypatch.setattr(lexical, "open_index", None)
    again = read(collection, tmp_path, "bm25")
    assert again.ids.tolist() == first.ids.tolist() and again.facts == first.facts
    with pytest.raises(TypeError):
        read(collection, tmp_path, "bm25", num=4)


def test_damaged_and_half_written_readings(collection, tmp_path):
    (tmp_path / "run").mkdir()
    first = read(collection, tmp_path / "run", "bm25")
    (here,) = (tmp_path / "run").glob("reading-*")
    data = (here / "ids.int32").read_bytes()
    (here / "ids.int32").write_bytes(data[:-1] + b"x")
    with pytest.raises(UserError, match="are not those it was saved with"):
        read(collection, tmp_path / "run", "bm25")
    here.rename(here.with_name(here.name + ".partial"))  # as a killed run leaves it
    again = read(collection, tmp_path / "run", "bm25")
    assert again.ids.tolist() == first.ids.tolist()
    manifest = json.loads((here / "manifest.json").read_text())
    manifest["identity"]["num"] = 9
    (here / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="damaged"):
        read(collection, tmp_path / "run", "bm25")


def test_a_closed_book_reads_nothing(collection, tmp_path):
    found = read(collection, tmp_path, "none", own="left_out")
    assert found.ids.shape == (3, 0) and found.facts["passages_a_question"] == 0
    with pytest.raises(UserError, match="closed-book"):
        reading_controls.oracle(found, lambda place, row: True)
    assert reading_controls.shuffled(found).ids.shape == (3, 0)


def test_runs_are_read_by_score(collection, tmp_path, capsys):
    run = {
        "q1": {"a": 1.0, "gone": 5.0, "c": 2.0, "b": 1.5},
        "q3": {"d": 1.0},
        "q9": {"a": 1.0},
    }
    run_files.write(run, tmp_path / "train.trec.gz")
    name = f"trec:{tmp_path}/{{split}}.trec.gz"
    found = read(collection, tmp_path, name, 3, split="train")
    assert names(found, collection) == [["c", "b", "a"], ["d"], []]
    assert found.scores[0].tolist() == [2.0, 1.5, 1.0]
    assert found.facts["unknown_passages"] == found.facts["unknown_questions"] == 1
    assert "1 passages and 1 questions that are not here" in capsys.readouterr().err
    out = read(collection, tmp_path, name, 2, "left_out", split="train")
    assert names(out, collection) == [["c", "a"], ["d"], []]
    with pytest.raises(UserError, match="needs a split"):
        read(collection, tmp_path, name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q9 Q0 a 1 1.0 t", "Not one of the questions"),
        ("q1 Q0 gone 1 1.0 t", "Not one of the passages"),
        ("q1 Q0 a 1 nan t", "score nan, which is not finite"),
        ("q1 a 1", "Line 1"),
        ("", "is empty"),
        (None, "no file"),
    ],
    ids=["questions", "passages", "score", "foreign", "empty", "absent"],
)
def test_bad_runs(collection, tmp_path, content, message):
    if content is not None:
        (tmp_path / "run.trec").write_text(content)
    with pytest.raises(UserError, match=message):
        read(collection, tmp_path, f"trec:{tmp_path}/run.trec")
    assert not list(tmp_path.glob("reading-*"))


def test_passages_that_a_file_gives_keep_their_order(collection, tmp_path):
    scores = {"d": "1", "a": "2", "b": "3"}
    contexts = [{"id": i, "text": TEXTS[i], "score": s} for i, s in scores.items()]
    write(
        tmp_path / "fid.jsonl",
        [
            {"id": "1", "question": "q?", "answers": ["x"], "ctxs": contexts},
            {"id": "2", "question": "q?", "answers": ["x"], "ctxs": contexts[:1]},
        ],
    )
    name = f"fid:{tmp_path}/fid.jsonl"
    for passages in ("", collection.passages.name):  # its own texts, or by their ids
        config = AnsweringConfig(passages, name)
        given = question_answering.load(config, "test")
        found = read(given, tmp_path, "given", 2)
        assert names(found, given) == [["d", "a"], ["d"]]
        assert found.scores[0].tolist() == [1.0, 2.0]
    with pytest.raises(UserError, match="come without passages to read"):
        read(collection, tmp_path, "given")


def test_an_encoder_and_a_run_find_the_same(collection, tmp_path, monkeypatch):
    tower = shrunken.save_encoder(tmp_path / "encoder", collection.passages)
    found = read(collection, tmp_path / "run", str(tmp_path / "encoder"))
    vectors = tower.encode(list(TEXTS.values()))
    queries = tower.encode([collection.texts[n] for n in found.questions])
    order = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :2]
    assert found.ids.tolist() == order.tolist()
    text, search = TextConfig(), SearchConfig(batch_tokens=64)
    workdir = tmp_path / "dpr"
    passages = collection.passages
    dense.encode_collection(
        tower, passages, passages.fingerprint, text, search, workdir / "vectors"
    )
    published_index.keep_trained(
        workdir,
        passages,
        text,
        search,
        published_index.Towers(tower, tower),
        "vectors",
    )
    by_run = read(collection, tmp_path / "other", str(workdir))
    assert by_run.ids.tolist() == found.ids.tolist()
    assert by_run.source == found.source
    with monkeypatch.context() as changed:
        changed.setattr(published_index, "open_run", None)  # nothing is opened again
        assert read(collection, tmp_path / "other", str(workdir)).source == found.source
    shorter = passage_sources.choose(
        str(workdir), collection, tmp_path, search, TextConfig(question_length=5), ""
    )
    assert shorter.fingerprint == found.source  # a run asks as it was made to
    other = passage_sources.choose(
        str(tmp_path / "encoder"),
        collection,
        tmp_path,
        search,
        TextConfig(question_length=5),
        "",
    )
    assert other.fingerprint != found.source


def test_a_run_of_bm25(collection, tmp_path):
    passages, config = collection.passages, BM25Config(k1=1.2, b=0.75)
    lexical.open_index(passages, tmp_path / "r/bm25", config)
    fields = {"k1": 1.2, "b": 0.75, "method": "lucene", "stemmer": "porter"}
    fields["stop_words"] = "english"
    published_index.publish(tmp_path / "r", passages, {"bm25": fields})
    found = read(collection, tmp_path, str(tmp_path / "r"))
    assert names(found, collection)[0] == ["b", "a"]
    assert found.source != read(collection, tmp_path, "bm25").source
    write(tmp_path / "p2.jsonl", [{"id": "b", "text": "other"}])
    config = AnsweringConfig(f"jsonl:{tmp_path}/p2.jsonl", f"jsonl:{tmp_path}/q.jsonl")
    with pytest.raises(UserError, match="searches other passages"):
        changed = question_answering.load(config, "x")
        read(changed, tmp_path, str(tmp_path / "r"))


def test_bad_input(collection, tmp_path):
    with pytest.raises(UserError, match="^num is 0; choose 1 or more"):
        read(collection, tmp_path, "bm25", 0)
    with pytest.raises(UserError, match="no retriever 'bm52'"):
        read(collection, tmp_path, "bm52")
    with pytest.raises(UserError, match="own is 'kept'"):
        read(collection, tmp_path, "bm25", 2, "kept")
    write(tmp_path / "bare.jsonl", [{"question": "q?", "answer": "x"}])
    bare = f"jsonl:{tmp_path}/bare.jsonl"
    without = question_answering.load(AnsweringConfig("", bare), "x")
    with pytest.raises(UserError, match="no passages to read for bm25"):
        read(without, tmp_path, "bm25")
    assert read(without, tmp_path, "none").ids.shape == (1, 0)
    name = collection.passages.name
    unjudged = question_answering.load(AnsweringConfig(name, bare), "x")
    with pytest.raises(UserError, match="so none can be left out"):
        read(unjudged, tmp_path, "bm25", 2, "left_out")


def given(ids):
    ids = np.array(ids, np.int32)
    scores = np.where(ids < 0, -np.inf, -np.arange(ids.shape[1])).astype(np.float32)
    return Reading(np.arange(len(ids), dtype=np.int32), ids, scores, "s", {"num": 1})


def test_shuffled_passages_are_anothers():
    before = given([[i, i + 10] for i in range(9)])
    for seed in range(20):
        after = reading_controls.shuffled(before, seed)
        assert not (after.ids == before.ids).any()
        assert sorted(after.ids.tolist()) == before.ids.tolist()
    assert after.ids.tolist() != reading_controls.shuffled(before, 0).ids.tolist()
    assert after.source != "s" and after.facts == {"num": 1, "control": "shuffled"}
    with pytest.raises(UserError, match="One question alone"):
        reading_controls.shuffled(given([[1]]))


def test_the_oracle_puts_an_answer_first():
    before = given([[1, 2, 3], [4, 5, 6], [7, 8, -1], [-1, -1, -1], [9, 1, 2]])
    hits = {(0, 3), (4, 9)}
    relevant = [np.array(rows, np.int32) for rows in ([9], [8], [8], [5], [3])]
    holds = lambda place, row: (place, row) in hits
    after = reading_controls.oracle(before, holds, relevant)
    assert after.ids.tolist() == [
        [3, 1, 2],  # the first that holds an answer moves
        [8, 4, 5],  # none does: the relevant passage, and the last falls out
        [8, 7, -1],  # it was found already
        [5, -1, -1],
        [9, 1, 2],  # it is first
    ]
    assert np.isfinite(after.scores).tolist() == (after.ids >= 0).tolist()
    assert (after.scores[:, :-1] >= after.scores[:, 1:]).all()
    assert after.facts["moved_to_the_front"] == 1
    assert after.facts["relevant_put_in_front"] == 3
    alone = reading_controls.oracle(before, holds)
    assert alone.ids.tolist() == [[3, 1, 2], *before.ids.tolist()[1:]]
