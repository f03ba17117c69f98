import json
import os
import pathlib

import pytest

from rlm_jax.errors import UserError
from rlm_jax.evaluate import answers

FOLDER = pathlib.Path(
    os.environ.get("RLM_GOLDEN") or pathlib.Path(__file__).parents[1] / "golden"
)
CASES = json.loads((FOLDER / "text_metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "case", CASES["has_answer"], ids=range(len(CASES["has_answer"]))
)
def test_has_answer_golden(case):
    expected = case["expected"]
    assert answers.tokens(case["text"]) == expected["tokens"]
    found = answers.has_answer(case["text"], case["answers"])
    assert found == expected["dpr_has_answer"]


@pytest.mark.parametrize("case", CASES["regex"], ids=range(len(CASES["regex"])))
def test_patterns_golden(case):
    found = answers.matches_pattern(case["text"], [case["pattern"]])
    assert found == case["expected"]["dpr_regex"]


def test_answer_recall():
    found = [["no", "it is Paris."], ["in Rome"], ["nothing"]]
    wanted = [["Paris", "Lutetia"], ["rome"], ["Oslo"]]
    assert answers.answer_recall(found, wanted, (1, 2, 100)) == {
        "answer_recall@1": pytest.approx(1 / 3),
        "answer_recall@2": pytest.approx(2 / 3),
        "answer_recall@100": pytest.approx(2 / 3),
    }
    by_pattern = answers.answer_recall(
        [["in 1969"]], [["19[0-9]{2}"]], (1,), holds=answers.matches_pattern
    )
    assert by_pattern == {"answer_recall@1": 1.0}


def test_fewer_passages_than_depth_is_no_answer():
    assert answers.answer_recall([[]], [["x"]], (5,)) == {"answer_recall@5": 0.0}


@pytest.mark.parametrize(
    ("wanted", "depths", "message"),
    [([[]], (1,), "answers to every"), ([], (1,), "answers"), ([["x"]], (0,), "ranks")],
    ids=["none", "no-questions", "depth"],
)
def test_bad_input(wanted, depths, message):
    with pytest.raises(UserError, match=message):
        answers.answer_recall([["x"]] * len(wanted), wanted, depths)
