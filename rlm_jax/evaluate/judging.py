"""A search judged: against judged passages, and by the strings of known answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from rlm_jax.evaluate import answers, ranking
from rlm_jax.method import Neighbours
from rlm_jax.storage import atomic


class Passage(Protocol):
    """What judging reads of a passage."""

    @property
    def id(self) -> str: ...

    @property
    def joined(self) -> str: ...


class Asked(NamedTuple):
    """N questions, and what is known of their answers."""

    ids: Sequence[str]
    texts: Sequence[str]
    relevance: ranking.Relevance  # empty: no passages were judged
    answers: Sequence[Sequence[str]]  # of each question; an empty one: not known


class Judgement(NamedTuple):
    """Means over questions, and the value of each."""

    means: dict[str, float]
    per_question: dict[str, dict[str, float]]  # measure -> question id -> value


def judge(
    neighbours: Neighbours,
    passages: Sequence[Passage],
    asked: Asked,
    measures: Sequence[str],
    *,
    patterns: bool = False,
) -> Judgement:
    """The measures of a search.

    Questions with judged passages give ranking measures, questions with answers DPR's
    answer recall; a collection may have both. Measures whose cutoff is beyond the depth
    of the search are left out.

    Args:
      neighbours: scores and ids [N, K], the rows of passages; -1 = absent.
      passages: the collection by row.
      asked: the questions.
      measures: as for `ranking.evaluate`.
      patterns: whether answers are regular expressions.
    """
    depth = neighbours.ids.shape[1]
    means: dict[str, float] = {}
    per_question: dict[str, dict[str, float]] = {}
    if asked.relevance:
        within = ranking.within(measures, depth)
        run = as_run(neighbours, passages, asked.ids)
        evaluation = ranking.evaluate(run, asked.relevance, within)
        means, per_question = dict(evaluation.means), evaluation.per_question
    answered = [i for i, strings in enumerate(asked.answers) if strings]
    if answered:
        depths = [k for k in answers.DEPTHS if k <= depth]
        means |= answers.answer_recall(
            texts(neighbours.ids[answered, : max(depths)], passages),
            [asked.answers[i] for i in answered],
            depths,
            holds=answers.matches_pattern if patterns else answers.has_answer,
        )
    return Judgement(means, per_question)


def as_run(
    neighbours: Neighbours, passages: Sequence[Passage], question_ids: Sequence[str]
) -> dict[str, dict[str, float]]:
    """What a search found, by the ids of questions and passages."""
    rows = np.unique(neighbours.ids[neighbours.ids >= 0])
    names = {int(row): passages[int(row)].id for row in rows}
    return ranking.to_run(neighbours, question_ids, names)


def write_per_question(
    path: Path,
    asked: Asked,
    by_control: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> None:
    """Writes a line of JSON for each question with its figures under each control.

    Args:
      path: of the file.
      asked: the questions, in the order of the lines.
      by_control: control -> measure -> question id -> value.
    """

    def line(id_: str, text: str) -> dict[str, Any]:
        figures = {
            name: {measure: values.get(id_) for measure, values in each.items()}
            for name, each in by_control.items()
        }
        return {"id": id_, "question": text, **figures}

    atomic.write_json_lines(path, map(line, asked.ids, asked.texts))


def texts(ids: np.ndarray, passages: Sequence[Passage]) -> list[list[str]]:
    """The passages of each question as title and text, absent ones (-1) left out."""
    found = {int(row): passages[int(row)].joined for row in np.unique(ids) if row >= 0}
    return [[found[row] for row in rows if row >= 0] for rows in ids.tolist()]
