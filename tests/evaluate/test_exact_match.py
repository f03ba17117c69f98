import json
import os
import pathlib

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.evaluate import answers, exact_match

FOLDER = pathlib.Path(
    os.environ.get("RLM_GOLDEN") or pathlib.Path(__file__).parents[1] / "golden"
)
CASES = json.loads((FOLDER / "text_metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES["qa"], ids=range(len(CASES["qa"])))
def test_predictions_golden(case):
    expected, prediction = case["expected"], case["prediction"]
    for system, text in expected["normalized"].items():
        protocol = "orqa" if system == "orqa" else "squad"
        assert exact_match.normalise(prediction, protocol) == text
    for system in ("squad", "fid", "dpr", "atlas", "npm", "ralm", "orqa"):
        protocol = "orqa" if system == "orqa" else "squad"
        found = exact_match.exact_match(prediction, case["answers"], protocol=protocol)
        assert found == expected[f"{system}_em"], system
    f1 = exact_match.f1(prediction, case["answers"])
    assert f1 == pytest.approx(expected["squad_f1"], abs=1e-9)
    wordless = not expected["normalized"]["squad"]  # where Atlas differs
    assert expected["atlas_f1"] == pytest.approx(0.0 if wordless else f1, abs=1e-9)
    contained = exact_match.contains_answer(prediction, case["answers"])
    assert contained == expected["ralm_text_has_answer"]


@pytest.mark.parametrize(
    "case", CASES["has_answer"], ids=range(len(CASES["has_answer"]))
)
def test_texts_golden(case):
    expected = case["expected"]
    contained = exact_match.contains_answer(case["text"], case["answers"])
    assert contained == expected["ralm_text_has_answer"]
    assert (
        answers.has_answer(case["text"], case["answers"])
        == (expected["fid_has_answer"])
    )


@pytest.mark.parametrize("case", CASES["regex"], ids=range(len(CASES["regex"])))
def test_patterns_golden(case):
    found = exact_match.pattern_match(case["text"], [case["pattern"]])
    assert found == case["expected"]["orqa_regex"]


PREDICTIONS = ["Paris", "the Rome", "Berlin now", "x"]
ANSWERS = [["paris"], ["Rome", "Roma"], ["Berlin"], ["y"]]
PASSAGES = [["no", "in Paris"], ["nothing"], ["Berlin"], []]


def test_figures_of_a_reader():
    figures = exact_match.judge(PREDICTIONS, ANSWERS, PASSAGES, depths=(1, 2, 5))
    assert figures.means == {
        "exact_match": 0.5,
        "f1": pytest.approx((1 + 1 + 2 / 3 + 0) / 4),
        "answer_recall@1": 0.25,
        "answer_recall@2": 0.5,
        "exact_match_where_found": 0.5,
        "exact_match_where_not": 0.5,
    }
    assert figures.counts == {
        "questions": 4,
        "found": 2,
        "not_found": 2,
        "without_passages": 1,
    }
    assert figures.per_question["answer_found"].tolist() == [1, 0, 1, 0]
    assert figures.per_question["exact_match"].tolist() == [1, 1, 0, 0]
    closed = exact_match.judge(PREDICTIONS, ANSWERS)
    assert set(closed.means) == {"exact_match", "f1"}
    assert closed.counts == {"questions": 4}


def test_answers_that_are_patterns():
    """A pattern is matched, not spelt; F1 of words says nothing about it."""
    said, wanted = ["1969", "19xx"], [[r"19\d\d"], [r"19\d\d"]]
    assert exact_match.judge(said, wanted).means["exact_match"] == 0
    told = exact_match.judge(said, wanted, matches=exact_match.pattern_match)
    assert told.means == {"exact_match": 0.5}
    by_number = exact_match.by_number(
        {1: said}, wanted, [["a"], ["b"]], matches=exact_match.pattern_match
    )
    assert by_number[1].means["exact_match"] == 0.5


def test_the_mean_over_no_question_is_left_out():
    found = exact_match.judge(["a"], [["b"]], [["b"]]).means
    assert "exact_match_where_found" in found and "exact_match_where_not" not in found
    assert all(np.isfinite(value) for value in found.values())


def test_figures_by_the_number_of_passages():
    by_number = exact_match.by_number(
        {2: PREDICTIONS, 0: [""] * 4, 1: PREDICTIONS}, ANSWERS, PASSAGES, depths=(1, 2)
    )
    assert list(by_number) == [0, 1, 2]
    assert by_number[0].counts["without_passages"] == 4
    assert "answer_recall@1" not in by_number[0].means
    assert by_number[1].counts["found"] == 1 and by_number[2].counts["found"] == 2
    assert "answer_recall@2" not in by_number[1].means


@pytest.mark.parametrize(
    ("predictions", "wanted", "passages"),
    [
        ([], [], None),
        (["x"], [[]], None),
        (["x"], [["x"], ["y"]], None),
        (["x"], [["x"]], [["a"], ["b"]]),
    ],
    ids=["no-questions", "no-answers", "predictions", "passages"],
)
def test_what_cannot_be_judged(predictions, wanted, passages):
    with pytest.raises(UserError, match="give as many of each"):
        exact_match.judge(predictions, wanted, passages)
    with pytest.raises(UserError, match="squad or orqa"):
        exact_match.normalise("x", "nfc")  # type: ignore[arg-type]
