"""Measures of rankings against judged passages.

A run is {question id: {passage id: score}}; relevance is {question id: {passage id:
grade}}, where a grade above 0 is relevant.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours

Run = Mapping[str, Mapping[str, float]]
Relevance = Mapping[str, Mapping[str, int]]

MEASURES = ("ndcg@10", "recall@5", "recall@100", "mrr@10")

_NAME = re.compile(r"(ndcg|recall|mrr|map|precision|success)(?:@([1-9][0-9]{0,8}))?")


class Evaluation(NamedTuple):
    """Means over questions, the value of each question, and who was counted."""

    means: dict[str, float]  # measure -> mean over the counted questions
    per_question: dict[str, dict[str, float]]  # measure -> question id -> value
    num_questions: int  # counted: those with a relevant passage
    num_unjudged: int  # of the run's questions, left out


def evaluate(
    run: Run, relevance: Relevance, measures: Iterable[str] = MEASURES
) -> Evaluation:
    """Judges a run, by ir-measures (which calls trec_eval).

    Questions without a relevant passage say nothing about a ranking and are left out; a
    judged question that the run lacks counts as 0. As in trec_eval, nDCG has the grade
    itself as its gain, a ranking is ordered by score alone, and equal scores are
    ordered by passage id, descending, whatever the measure.

    Arguments:
      run: scores of the passages found for each question; larger is better.
      relevance: grades of judged passages.
      measures: of ndcg, recall, mrr, map, precision and success, each with a cutoff
        ("ndcg@10") or without.

    Raises:
      UserError: an unknown measure, a score that is not a number, ir-measures is not
        installed, or no question of the run has a relevant passage.

    Source: Järvelin and Kekäläinen 2002 (nDCG); Thakur et al. 2021, BEIR, section 3.
    """
    names = list(dict.fromkeys(measures))
    wanted = {name: _measure(name) for name in names}
    if not names:
        raise UserError(f"No measure is named; use some of {', '.join(MEASURES)}.")
    judged = {
        question: {passage: int(grade) for passage, grade in grades.items()}
        for question, grades in relevance.items()
        if any(grade > 0 for grade in grades.values())
    }
    kept = {
        question: dict(scores) for question, scores in run.items() if question in judged
    }
    if not kept:
        raise UserError(
            "No question of the run has a relevant passage among those judged; give "
            "the run and the judgements of the same questions."
        )
    for question, scores in kept.items():
        if not all(map(math.isfinite, scores.values())):
            raise UserError(
                f"A score of the question '{question}' is not a finite number; check "
                "what made the run."
            )
    import ir_measures

    every = {str(measure): measure for measure in wanted.values()}
    values = {measure: dict.fromkeys(judged, 0.0) for measure in every}
    for metric in ir_measures.iter_calc(list(every.values()), judged, kept):
        values[str(metric.measure)][metric.query_id] = float(metric.value)
    per_question = {
        name: _cut_off(values[str(measure)], name) for name, measure in wanted.items()
    }
    means = {
        name: math.fsum(values.values()) / len(judged)
        for name, values in per_question.items()
    }
    return Evaluation(means, per_question, len(judged), len(run) - len(kept))


def check(measures: Iterable[str], depth: int) -> None:
    """Whether a search of ``depth`` passages can be judged by some of the measures.

    Raises:
      UserError: an unknown measure, or none whose cutoff is within the depth.
    """
    names = list(measures)
    for name in names:
        _measure(name)
    if not within(names, depth):
        raise UserError(
            f"No measure of {', '.join(names) or 'none'} can be told of {depth} "
            "passages a question: search for more (k), or name one with a smaller "
            "cutoff."
        )


def within(measures: Iterable[str], depth: int) -> list[str]:
    """The measures whose cutoff is within the depth of a search."""
    return [m for m in measures if int(m.partition("@")[2] or 0) <= depth]


def to_run(
    neighbours: Neighbours,
    question_ids: Sequence[str],
    passage_ids: Sequence[str] | Mapping[int, str],
) -> dict[str, dict[str, float]]:
    """What a search found as a run; absent neighbours are left out.

    Arguments:
      neighbours: scores float32 [N, K] and ids int32 [N, K].
      question_ids: N ids.
      passage_ids: the id of each row of the index, or of those that were found.
    """
    return {
        question: {
            passage_ids[int(row)]: float(score)
            for row, score in zip(rows.tolist(), scores.tolist(), strict=True)
            if row >= 0
        }
        for question, rows, scores in zip(
            question_ids, neighbours.ids, neighbours.scores, strict=True
        )
    }


def _cut_off(values: dict[str, float], name: str) -> dict[str, float]:
    """MRR up to its cutoff, of reciprocal ranks: below 1 / cutoff they are 0.

    ir-measures takes another library for it, which orders equal scores otherwise.
    """
    kind, _, cutoff = name.partition("@")
    if kind != "mrr" or not cutoff:
        return values
    least = 1 / (int(cutoff) + 0.5)
    return {question: x if x > least else 0.0 for question, x in values.items()}


def _measure(name: str) -> Any:
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"There is no measure '{name}'; use ndcg, recall, mrr, map, precision or "
            "success, as in ndcg@10."
        )
    kind, cutoff = match.groups()
    if cutoff is None and kind in ("recall", "precision", "success"):
        raise UserError(f"The measure '{name}' needs a cutoff; write {name}@10.")
    try:
        import ir_measures
    except ImportError as error:
        raise UserError(
            "Measures of rankings need ir-measures, which is not installed; run `pip "
            "install ir-measures`."
        ) from error
    measure = {
        "ndcg": ir_measures.nDCG,
        "recall": ir_measures.R,
        "mrr": ir_measures.RR,
        "map": ir_measures.AP,
        "precision": ir_measures.P,
        "success": ir_measures.Success,
    }[kind]
    return measure @ int(cutoff) if cutoff and kind != "mrr" else measure
