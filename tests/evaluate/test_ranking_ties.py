"""Equal scores: one order, by passage id, descending, whatever the measure."""

import itertools
import math

import pytest

from rlm_jax.errors import UserError
from rlm_jax.evaluate import ranking


def by_hand(measure: str, scores: dict[str, float], grades: dict[str, int]) -> float:
    kind, _, cutoff = measure.partition("@")
    order = sorted(scores, key=lambda id_: (scores[id_], id_), reverse=True)
    k = int(cutoff or len(order))
    gains = [grades.get(id_, 0) for id_ in order[:k]]
    relevant = sum(grade > 0 for grade in grades.values())
    hits = [gain > 0 for gain in gains]
    if kind == "mrr":
        return next((1 / rank for rank, hit in enumerate(hits, 1) if hit), 0.0)
    if kind == "recall":
        return sum(hits) / relevant
    if kind == "precision":
        return sum(hits) / k
    if kind == "success":
        return float(any(hits))
    if kind == "map":
        found = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]
        return sum(found) / relevant
    best = sorted(grades.values(), reverse=True)[:k]
    dcg = lambda values: sum(g / math.log2(i + 2) for i, g in enumerate(values))
    return dcg(gains) / dcg(best)


RUNS = {
    "all equal": {"a": 1.0, "b": 1.0, "c": 1.0},
    "two equal": {"a": 0.5, "b": 1.0, "c": 0.5, "d": 0.2},
    "none equal": {"a": 3.0, "b": 2.0, "c": 1.0},
    "equal below": {"a": 0.0, "b": 0.0, "c": 0.0, "d": 1.0},
    "negative": {"a": -1.0, "b": -1.0, "c": -0.5},
    "many": {f"{i:02}": float(i // 5) for i in range(20)},
}
MEASURES = (
    "mrr", "mrr@1", "mrr@2", "mrr@10", "recall@1", "recall@2", "success@1",
    "success@2", "precision@1", "precision@2", "ndcg", "ndcg@2", "ndcg@10", "map",
    "map@2",
)  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("relevant", [{"a": 1}, {"a": 1, "c": 2}, {"00": 1, "07": 3}])
def test_ties_follow_the_ids(name, relevant):
    scores = RUNS[name]
    grades = {id_: grade for id_, grade in relevant.items() if id_ in scores}
    if not grades:
        return
    for order in itertools.islice(itertools.permutations(scores.items()), 0, 30, 7):
        found = ranking.evaluate({"q": dict(order)}, {"q": grades}, MEASURES).means
        for measure in MEASURES:
            expected = by_hand(measure, scores, grades)
            assert found[measure] == pytest.approx(expected, abs=1e-5), measure


@pytest.mark.parametrize(
    ("measures", "depth", "kept"),
    [
        (("ndcg@10", "recall@1"), 5, ["recall@1"]),
        (("mrr", "map@7"), 1, ["mrr"]),
        (("success@5",), 5, ["success@5"]),
    ],
)
def test_measures_within_a_depth(measures, depth, kept):
    ranking.check(measures, depth)
    assert ranking.within(measures, depth) == kept
    with pytest.raises(UserError, match="can be told of 0 passages"):
        ranking.check(["recall@1"], 0)
