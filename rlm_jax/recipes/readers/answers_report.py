"""The report of what a reader answers."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rlm_jax.data.question_answering import AnsweringConfig
from rlm_jax.evaluate import exact_match
from rlm_jax.readers.answering import REAL, Asked
from rlm_jax.recipes import reporting
from rlm_jax.recipes.runs import Run
from rlm_jax.report import report, tables
from rlm_jax.storage import atomic

READING = {
    **dict.fromkeys(("data", "search", "text"), dict[str, Any]),
    **{"split": str, "passage_length": int, "target_length": int},
}
"""Fields of a run that trained a reader, for `runs.require`."""


def finish(
    run: Run,
    data: AnsweringConfig,
    split: str,
    given: Asked,
    by_control: Mapping[str, exact_match.Figures],
    said: Mapping[str, Sequence[str]],
    seconds: Mapping[str, float],
    *,
    protocol: Mapping[str, Any],
    curves: Mapping[str, pathlib.Path],
) -> report.Report:
    """Write and show what a reader achieves.

    Args:
      given: the test questions, as they read under "real".
      by_control: figures under "real" and each control.
      said: the answers under each of them, for answers.jsonl.
      curves: name -> workdir of what was trained.
    """
    figures = {name: x.means for name, x in by_control.items()}
    result = report.build(
        system=run.system,
        preset=run.preset,
        corpus=data.passages or data.questions,
        metrics=figures.pop(REAL),
        controls=figures,
        seconds=seconds,
        commit=report.commit_of(pathlib.Path(__file__).parent),
        protocol={
            "questions": data.questions or data.passages,
            "split": split,
            "num_questions": len(given.questions),
            "num_passages": len(given.collection.passages),
            "counts": {name: x.counts for name, x in by_control.items()},
            **given.reading.facts,
            **given.rows.facts,
            **protocol,
        },
    )
    report.write(run.workdir / "report.json", result)
    lines = [
        {
            "id": question.id,
            "question": question.text,
            "answers": list(question.answers),
            **{name: texts[place] for name, texts in said.items()},
        }
        for place, question in enumerate(given.questions)
    ]
    atomic.write_json_lines(run.workdir / "answers.jsonl", lines)
    reporting.show(
        run,
        tables.row_of_ranking(result),
        metric="exact_match",
        bars="The reader, and under each control",
        curves=curves,
        loss="loss (nats per token of an answer)",
        title=f"{len(given.questions):,} questions of "
        f"{data.questions or data.passages}, {given.reading.ids.shape[1]} passages "
        "each",
        left="answers",
    )
    return result
