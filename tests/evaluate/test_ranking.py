import math

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.evaluate import ranking
from rlm_jax.method import Neighbours

RELEVANCE = {
    "q1": {"a": 2, "b": 1, "c": 0},
    "q2": {"d": 1},
    "q3": {"e": 0},  # judged, and nothing is relevant
    "q4": {"f": 1},  # not in the run
}
RUN = {
    "q1": {"c": 3.0, "b": 2.0, "a": 1.0},
    "q2": {"x": 1.0, "d": -2.0},
    "q3": {"e": 1.0},
    "q5": {"a": 1.0},  # not judged
}


def test_measures_are_their_equations():
    measures = ["ndcg@10", "recall@2", "mrr@10", "map", "precision@2", "success@1"]
    result = ranking.evaluate(RUN, RELEVANCE, measures)
    gain = 1 / math.log2(3) + 2 / math.log2(4)
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    expected = {
        "ndcg@10": {"q1": gain / ideal, "q2": 1 / math.log2(3)},
        "recall@2": {"q1": 0.5, "q2": 1.0},
        "mrr@10": {"q1": 0.5, "q2": 0.5},
        "map": {"q1": (1 / 2 + 2 / 3) / 2, "q2": 0.5},
        "precision@2": {"q1": 0.5, "q2": 0.5},
        "success@1": {"q1": 0.0, "q2": 0.0},
    }
    for name, values in expected.items():
        assert result.per_question[name] == pytest.approx({**values, "q4": 0.0})
        assert result.means[name] == pytest.approx(sum(values.values()) / 3)
    assert list(result.means) == measures
    assert (result.num_questions, result.num_unjudged) == (3, 2)


def test_a_question_that_found_nothing_counts_as_nothing():
    result = ranking.evaluate({"q1": {}, "q2": {"d": 1.0}}, RELEVANCE, ["recall@5"])
    assert result.per_question["recall@5"] == {"q1": 0.0, "q2": 1.0, "q4": 0.0}


def test_run_of_neighbours():
    neighbours = Neighbours(
        np.array([[2, 1], [3, -np.inf]], np.float32), np.array([[1, 0], [0, -1]])
    )
    run = ranking.to_run(neighbours, ["q1", "q2"], ["a", "b"])
    assert run == {"q1": {"b": 2.0, "a": 1.0}, "q2": {"a": 3.0}}


@pytest.mark.parametrize(
    ("run", "measures", "message"),
    [
        (RUN, ["bleu"], "no measure 'bleu'"),
        (RUN, ["ndcg@0"], "no measure 'ndcg@0'"),
        (RUN, ["recall"], "needs a cutoff"),
        ({"q9": {"a": 1.0}}, ["map"], "same questions"),
        ({"q1": {"a": math.nan}}, ["map"], "not a finite number"),
    ],
    ids=["measure", "zero", "cutoff", "other", "nan"],
)
def test_bad_runs(run, measures, message):
    with pytest.raises(UserError, match=message):
        ranking.evaluate(run, RELEVANCE, measures)
