"""A search judged by passages and by answers, and what is written of it."""

import json
from typing import NamedTuple

import numpy as np
import pytest

from rlm_jax.evaluate import judging
from rlm_jax.method import Neighbours


class Passage(NamedTuple):
    id: str
    joined: str


PASSAGES = [Passage(f"p{i}", f"word{i} of passage {i}") for i in range(6)]
IDS = np.array([[2, 0, 1], [3, 5, -1], [4, 0, 2]], np.int32)
FOUND = Neighbours(np.array([[3, 2, 1]] * 3, np.float32), IDS)
ASKED = judging.Asked(
    ["a", "b", "c"],
    ["which a ?", "which b ?", "which ç ?"],
    {"a": {"p0": 1}, "c": {"p4": 2, "p5": 1}},
    [(), ("passage 5",), ("word9",)],
)


def test_judged_passages_and_answers_are_told_together():
    measures = ("recall@1", "recall@3", "mrr@3", "recall@20")
    means, each = judging.judge(FOUND, PASSAGES, ASKED, measures)
    # Of questions a and c: p0 stands second of one, p4 first of two.
    assert means["recall@1"] == pytest.approx((0 + 1 / 2) / 2)
    assert means["recall@3"] == pytest.approx((1 + 1 / 2) / 2)
    assert means["mrr@3"] == pytest.approx((1 / 2 + 1) / 2)
    assert each["mrr@3"] == pytest.approx({"a": 0.5, "c": 1.0})
    # Of questions b and c, whose second passage holds the answer, and whose none does;
    # depths beyond the search's are left out.
    assert {k: x for k, x in means.items() if k.startswith("answer")} == {
        "answer_recall@1": 0.0
    }
    deeper = Neighbours(*(np.tile(x, (1, 2))[:, :5] for x in FOUND))
    means, _ = judging.judge(deeper, PASSAGES, ASKED._replace(relevance={}), measures)
    assert means == {"answer_recall@1": 0.0, "answer_recall@5": 0.5}


def test_answers_may_be_patterns():
    asked = ASKED._replace(relevance={}, answers=[("w.rd2",), ("w.rd3",), ("w.rd9",)])
    means, each = judging.judge(FOUND, PASSAGES, asked, (), patterns=True)
    assert means == {"answer_recall@1": pytest.approx(2 / 3)} and each == {}


def test_a_run_is_told_by_ids_without_what_is_absent():
    assert judging.as_run(FOUND, PASSAGES, ASKED.ids) == {
        "a": {"p2": 3.0, "p0": 2.0, "p1": 1.0},
        "b": {"p3": 3.0, "p5": 2.0},
        "c": {"p4": 3.0, "p0": 2.0, "p2": 1.0},
    }


def test_a_line_of_each_question(tmp_path):
    figures = {"real": {"mrr@3": {"a": 0.5, "c": 1.0}}, "bm25": {"mrr@3": {"a": 0.25}}}
    judging.write_per_question(tmp_path / "each.jsonl", ASKED, figures)
    text = (tmp_path / "each.jsonl").read_text("utf-8")
    assert "which ç ?" in text
    assert [json.loads(line) for line in text.splitlines()] == [
        {"id": "a", "question": "which a ?", "real": {"mrr@3": 0.5},
         "bm25": {"mrr@3": 0.25}},
        {"id": "b", "question": "which b ?", "real": {"mrr@3": None},
         "bm25": {"mrr@3": None}},
        {"id": "c", "question": "which ç ?", "real": {"mrr@3": 1.0},
         "bm25": {"mrr@3": None}},
    ]  # fmt: skip
