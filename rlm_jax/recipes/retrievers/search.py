"""Ask a collection: type a question, see the passages with their scores.

The workdir is that of a run of BM25, DPR, Contriever or an encoding. Questions come
from the configuration, from a file, from a pipe, one a line, or are asked for, until an
empty line. What was found can be written as a run file too.
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from rlm_jax import terminal
from rlm_jax.data import files
from rlm_jax.errors import UserError
from rlm_jax.evaluate import judging
from rlm_jax.method import Neighbours
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.retrievers import passage_list, published_index
from rlm_jax.storage import run_files


@dataclasses.dataclass
class Config:
    """What is asked, and how much is shown."""

    question: str = ""  # empty: questions are asked for
    # file of questions: a line each, or JSON lines with "question" and "id"
    questions: str = ""
    k: int = 5  # passages a question
    lines: int = 3  # of a passage that is shown
    json: bool = False  # a line of JSON for each question
    run_file: str = ""  # file for what was found, in TREC's format; empty: none

    def check(self) -> None:
        """Raises UserError where questions come from two places."""
        if self.question and self.questions:
            raise UserError("Give question or questions, not both.")


@recipe("search")
def run(config: Config, here: Run) -> None:
    """Answer until there are no more questions."""
    if config.run_file:
        run_files.check_place(config.run_file)
    named = _in_file(pathlib.Path(config.questions)) if config.questions else None
    passages, search = published_index.open_run(here.workdir)
    if not config.json:
        terminal.say(f"{len(passages):,} passages of {passages.name}")
    if here.dry_run:
        return
    if config.question:
        named = [("1", terminal.given(config.question, "the question"))]
    alone = named is None and terminal.asks()
    if alone and not config.json:
        terminal.say("a question a line; an empty line ends")
    found: dict[str, dict[str, float]] = {}
    for id_, question in named if named is not None else _asked():
        scores, ids = search([question], config.k)
        if config.json:
            terminal.write_json(_record(id_, question, passages, scores[0], ids[0]))
        else:
            if not alone:  # who types it has seen it
                terminal.write(f"? {question}\n")
            shown = passage_list.listed(passages, scores[0], ids[0], config.lines)
            terminal.write(shown)
        if config.run_file:
            found |= judging.as_run(Neighbours(scores, ids), passages, [id_])
    if config.run_file:
        run_files.write(found, config.run_file)
        terminal.say(f"what was found: {config.run_file}")


def _asked() -> Iterator[tuple[str, str]]:
    return ((str(i), question) for i, question in enumerate(terminal.asked(), 1))


def _in_file(path: pathlib.Path) -> list[tuple[str, str]]:
    """(id, question) of each line of a file; the line's number where it has no id."""
    files.digest(path)  # names a file that is not there, or is empty
    asked: list[tuple[str, str]] = []
    if path.name.lower().removesuffix(".gz").endswith(".jsonl"):
        for number, record in files.json_records(path):
            texts = [record.get(name) for name in ("question", "text", "query")]
            text = next((x for x in texts if isinstance(x, str) and x.strip()), None)
            if text is None:
                raise files.bad_record(path, number, 'a JSON object with "question"')
            ids = [record.get(name) for name in ("id", "_id")]
            id_ = next((x for x in ids if x is not None), number)
            asked.append((str(id_), text))
    else:
        for number, line in enumerate(files.lines(path), 1):
            if line.strip():
                asked.append((str(number), line.rstrip("\r\n")))
    if len({id_ for id_, _ in asked}) < len(asked):
        raise UserError(f"Two questions of {path} have one id; give each its own.")
    if not asked:
        raise UserError(f"The file {path} has no questions: give a question a line.")
    return asked


def _record(
    id_: str, question: str, passages: Any, scores: np.ndarray, ids: np.ndarray
) -> dict[str, Any]:
    return {
        "id": id_,
        "question": question,
        "passages": [
            {**passages[int(row)]._asdict(), "score": round(float(score), 4)}
            for row, score in zip(ids, scores, strict=True)
            if row >= 0
        ],
    }
