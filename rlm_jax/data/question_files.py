"""Files of questions in the layouts of BEIR, DPR and FiD, as JSON lines; docstrings.

A reader returns what tells its content apart, and a function that streams the records.
"""

import ast
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlm_jax.data import docstrings, files, sources
from rlm_jax.data.passage_files import Passage
from rlm_jax.errors import UserError

SPLITS = ("train", "validation", "test")
# The first lines that name the columns of a file of judgements; a file may have none.
_HEADERS = [
    [question, passage, grade]
    for question in ("query-id", "query_id", "qid", "question-id", "question_id")
    for passage in ("corpus-id", "corpus_id", "docid", "doc-id", "doc_id", "passage_id")
    for grade in ("score", "grade", "label", "relevance", "rel")
]
_GRADE = re.compile(r"[+-]?[0-9]{1,18}")
_LARGEST_GRADE = 10_000  # trec_eval keeps a count for each grade up to the largest
BLANK = "[MASK]"  # in a question that is a statement, the place of the answer


class Question(NamedTuple):
    """A question with the strings that answer it; there may be none."""

    id: str
    text: str
    answers: tuple[str, ...] = ()


class Record(NamedTuple):
    """A question as a file has it."""

    question: Question
    grades: dict[str, int]
    carried: tuple[tuple[Passage, int], ...] = ()  # with grades; ids may be empty
    given: tuple[tuple[Passage, float], ...] = ()  # to be read, best first, with scores


Reader = tuple[Any, Callable[[], Iterator[Record]]]  # (content, stream of records)


def split_of(name: str) -> str:
    """train, validation or test (80/10/10), by the SHA-256 of a name."""
    digest = hashlib.sha256(name.encode(errors="replace")).digest()
    percent = int.from_bytes(digest[:8], "big") % 100
    return "train" if percent < 80 else "validation" if percent < 90 else "test"


def stdlib(split: str) -> Reader:
    """The first paragraph of each docstring, answered by its function or class."""
    return _stdlib(split, lambda id_: ())


def stdlib_names(split: str) -> Reader:
    """The questions of `stdlib`, with the plain name of the function or class."""
    return _stdlib(split, lambda id_: (id_.partition("#")[0].rpartition(".")[2],))


def _stdlib(split: str, answers: Callable[[str], tuple[str, ...]]) -> Reader:
    if split not in SPLITS:
        raise UserError(
            f"There is no split '{split}' of stdlib: choose one of {', '.join(SPLITS)}."
        )
    return [docstrings.fingerprint(), split], lambda: (
        Record(Question(d.id, d.question, answers(d.id)), {d.id: 1})
        for d in docstrings.extract()
        if sources.stdlib_split(d.module) == split
    )


def beir(folder: Path, split: str) -> Reader:
    """The questions of queries.jsonl[.gz] that qrels/SPLIT.tsv[.gz] judges."""
    queries = files.either(folder / "queries.jsonl")
    judgements = folder / "qrels"
    listed = files.listed(judgements, ".tsv")[0] if os.path.isdir(judgements) else []
    names = {files.stem(path, ".tsv"): path for path in listed}
    wanted = "dev" if split == "validation" and split not in names else split
    if wanted not in names:
        raise UserError(
            f"There is no split '{split}' in {folder / 'qrels'}: choose one of "
            f"{', '.join(sorted(names)) or 'none, for it holds no .tsv files'}."
        )
    judged = names[wanted]

    def read() -> Iterator[Record]:
        grades = _judgements(judged)
        for number, record in files.json_records(queries):
            id_ = record.get("_id")
            id_ = record.get("id") if id_ is None else id_
            text = record.get("text")
            if not isinstance(id_, str | int) or not isinstance(text, str):
                wanted = 'a JSON object with "_id" and "text"'
                raise files.bad_record(queries, number, wanted)
            if str(id_) in grades:
                yield Record(Question(str(id_), text), grades.pop(str(id_)))
        if grades:
            raise UserError(
                f"The question '{next(iter(grades))}' of {judged} is not in {queries}: "
                "give both files of one collection."
            )

    return [files.digest(queries), files.digest(judged)], read


def _judgements(path: Path) -> dict[str, dict[str, int]]:
    """Question -> passage -> grade. The same judgement twice counts once."""
    grades: dict[str, dict[str, int]] = {}
    for number, row in files.rows(path):
        if number == 1 and [field.strip().lower() for field in row] in _HEADERS:
            continue
        if len(row) != 3 or _GRADE.fullmatch(row[2].strip(" ")) is None:
            wanted = "a question's id, a passage's id and a whole grade, by tabs"
            raise files.bad_record(path, number, wanted)
        question, passage, grade = row[0], row[1], int(row[2].strip(" "))
        if abs(grade) > _LARGEST_GRADE:
            wanted = f"a grade from -{_LARGEST_GRADE:,} to {_LARGEST_GRADE:,}"
            raise files.bad_record(path, number, wanted)
        judged = grades.setdefault(question, {})
        if judged.setdefault(passage, grade) != grade:
            raise UserError(
                f"Line {number} of {path} judges the passage {passage!r} for the "
                f"question {question!r} with the grade {grade}, and an earlier line "
                f"with {judged[passage]}: remove one of them."
            )
    return grades


def dpr(path: Path, split: str) -> Reader:
    """DPR's training file (.json), or a question and a list of answers on each line."""
    del split
    training = path.name.lower().removesuffix(".gz").endswith(".json")
    read = _dpr_training if training else _dpr_questions
    return [training, files.digest(path)], lambda: read(path)


def _dpr_training(path: Path) -> Iterator[Record]:
    for number, record in files.json_array(path):
        try:
            carried = tuple(
                (_carried(context), grade)
                for name, grade in (("positive_ctxs", 1), ("hard_negative_ctxs", 0))
                for context in _contexts(record, name)
            )
            question = _question(record, number)
        except _Malformed as error:
            raise UserError(
                f"Element {number} of {path} is not a question of DPR's ({error}): "
                "correct or remove it."
            ) from error
        yield Record(question, {}, carried)


def _contexts(record: dict, name: str) -> list:
    contexts = record.get(name) or []
    if not isinstance(contexts, list):
        raise _Malformed(f'"{name}" is no list')
    return contexts


def _dpr_questions(path: Path) -> Iterator[Record]:
    for number, row in files.rows(path):
        try:
            text, literal = row
            answers = ast.literal_eval(literal)
            question = _question({"question": text, "answers": answers}, number)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            wanted = "a question, a tab and a Python list of answers"
            raise files.bad_record(path, number, wanted) from error
        yield Record(question, {})


def jsonl(path: Path, split: str) -> Reader:
    """A JSON object on each line; `questions.load` names its fields."""
    del split
    return files.digest(path), lambda: _jsonl_questions(path)


def _jsonl_questions(path: Path) -> Iterator[Record]:
    for number, record in files.json_records(path):
        try:
            ids = _listed(_first(record, "passage_id", "positive_ids"))
            if not all(isinstance(id_, str | int) for id_ in ids):
                raise _Malformed("a passage's id is neither a string nor a number")
            texts = _listed(_first(record, "passage", "sentence", "positive"))
            carried = tuple((_carried(text), 1) for text in texts)
            question = _question(record, number)
        except _Malformed as error:
            wanted = f"a question ({error})"
            raise files.bad_record(path, number, wanted) from error
        yield Record(question, {str(id_): 1 for id_ in ids}, carried)


def fid(path: Path, split: str) -> Reader:
    """The files of FiD's readers: a question, its answers, and passages in order."""
    del split
    return files.digest(path), lambda: _fid_questions(path)


def _fid_questions(path: Path) -> Iterator[Record]:
    for number, record in files.json_objects(path):
        try:
            question = _question(record, number)
            target = record.get("target")
            if not question.answers and isinstance(target, str):
                question = question._replace(answers=(target,))
            given = tuple(
                (_carried(context), _score(context, rank))
                for rank, context in enumerate(_contexts(record, "ctxs"), 1)
            )
        except _Malformed as error:
            raise UserError(
                f"Record {number} of {path} is not a question of FiD's ({error}): "
                "correct or remove it."
            ) from error
        yield Record(question, {}, (), given)


def _score(context: Any, rank: int) -> float:
    # Without a score, 1 / rank: what the released code means by its default.
    score = context.get("score") if isinstance(context, dict) else None
    try:
        value = 1 / rank if score is None else float(score)
    except (OverflowError, TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise _Malformed(f"the score {score!r} is no finite number")
    return value


class _Malformed(ValueError):
    """What is wrong with a record; whoever knows its file and line tells the user."""


def _question(record: dict[str, Any], number: int) -> Question:
    text = _first(record, "question", "text", "query")
    id_ = _first(record, "id", "_id")
    answers = _listed(_first(record, "answers", "answer", "golden_answers"))
    if not isinstance(text, str) or not text.strip():
        raise _Malformed('it has no string "question"')
    if not all(isinstance(answer, str) for answer in answers):
        raise _Malformed("an answer is not a string")
    return Question(str(number if id_ is None else id_), text, tuple(answers))


def _carried(context: Any) -> Passage:
    fields = {"text": context} if isinstance(context, str) else context
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise _Malformed("a passage has no text")
    id_ = _first(fields, "passage_id", "psg_id", "id", "_id")
    title = str(fields.get("title") or "")
    return Passage("" if id_ is None else str(id_), title, fields["text"])


def _first(record: dict[str, Any], *names: str) -> Any:
    return next((record[n] for n in names if record.get(n) is not None), None)


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
