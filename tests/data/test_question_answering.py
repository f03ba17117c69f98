import json

import numpy as np
import pytest

from rlm_jax.data import passages, question_answering
from rlm_jax.data.question_answering import AnsweringConfig
from rlm_jax.data.question_files import SPLITS, split_of
from rlm_jax.errors import UserError


def write(path, records):
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("RLM_CACHE", str(tmp_path / "cache"))
    write(
        tmp_path / "p.jsonl",
        [
            *({"id": f"p{i}", "title": f"T{i // 2}", "text": "x"} for i in range(80)),
            {"id": "bare", "text": "x"},
        ],
    )
    write(
        tmp_path / "q.jsonl",
        [
            *(
                {"question": f"q{i}?", "answers": ["a"], "passage_id": f"p{i}"}
                for i in range(80)
            ),
            {"question": "of no title?", "answers": ["a"], "passage_id": "bare"},
            {"question": "of no passage?", "answers": ["a"]},
        ],
    )
    return f"jsonl:{tmp_path}/p.jsonl", f"jsonl:{tmp_path}/q.jsonl"


def test_titles_divide_a_file_that_has_one_split(files, capsys):
    config = AnsweringConfig(*files, divide="titles")
    loaded = [question_answering.load(config, split) for split in SPLITS]
    assert "2 questions" in capsys.readouterr().err
    numbers = [[int(q.text[1:-1]) for q in c.questions.questions] for c in loaded]
    assert sorted(np.concatenate(numbers)) == list(range(80))
    for split, own in zip(SPLITS, numbers, strict=True):
        assert own and all(split_of(f"T{n // 2}") == split for n in own)
    assert len({c.questions.fingerprint for c in loaded}) == 3
    assert all(len(c.questions.relevance) == len(c.questions) for c in loaded)
    whole = question_answering.load(AnsweringConfig(*files), "anything")
    assert len(whole.questions) == 82 and len(whole.passages) == 81
    assert whole.fingerprint != loaded[0].fingerprint


def test_passages_may_come_with_the_questions(files, tmp_path):
    record = {"question": "q?", "target": "a", "ctxs": [{"id": "1", "text": "t"}]}
    write(tmp_path / "fid.jsonl", [record])
    config = AnsweringConfig("", f"fid:{tmp_path}/fid.jsonl")
    assert [p.text for p in question_answering.load(config, "x").passages] == ["t"]
    closed = question_answering.load(AnsweringConfig("", files[1]), "x")
    assert len(closed.passages) == 0 and closed.passages.rows_of(["p1"]) == -1
    assert list(passages.none()) == []


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({"divide": "titles"}, "dev", "no split 'dev' by titles"),
        ({"divide": "titles", "questions": ""}, "train", "Not one question"),
        ({"divide": "words"}, "train", "divide"),
        ({"passages": "", "questions": ""}, "train", "without a name"),
        ({"passages": "", "divide": "titles"}, "train", "Not one question"),
        ({"questions": "none"}, "train", "has an answer"),
        ({"divide": "titles", "questions": "split"}, "train", "splits already"),
        ({"divide": "titles", "questions": "one"}, "validation", "falls into"),
    ],
    ids=range(8),
)
def test_bad_input(files, tmp_path, changes, split, message):
    write(tmp_path / "none.jsonl", [{"question": "q?"}])
    write(tmp_path / "split-train.jsonl", [{"question": "q?", "answer": "a"}])
    title = next(i for i in range(40) if split_of(f"T{i}") != "validation")
    one = {"question": "q?", "answer": "a", "passage_id": f"p{2 * title}"}
    write(tmp_path / "one.jsonl", [one])
    name = changes.get("questions")
    if name:
        file = {"split": "split-{split}"}.get(name, name)
        changes = {**changes, "questions": f"jsonl:{tmp_path}/{file}.jsonl"}
    config = AnsweringConfig(**{"passages": files[0], "questions": files[1], **changes})
    with pytest.raises(UserError, match=message):
        question_answering.load(config, split)
