"""Questions, their answers, and the passages that are known to answer them.

Everything points to passages by id. A training file that carries its passages' texts
(DPR's, or pairs of a question and a sentence) has them as a small collection of its
own, `Questions.passages`, so whoever trains or evaluates meets ids alone; `resolve`
turns them into the rows of one pool of passages.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from rlm_jax import characters
from rlm_jax.data import files, google_re, names, question_files, squad, trex
from rlm_jax.data import passages as passages_lib
from rlm_jax.data.passages import Passage, Passages
from rlm_jax.data.question_files import Question, Record
from rlm_jax.errors import UserError
from rlm_jax.storage import cache

_FORMAT = 1
NAMES = (
    "stdlib, stdlib_names, beir:FOLDER, dpr:FILE, fid:FILE, jsonl:FILE, squad:FILE, "
    "trex:PATH or google_re:PATH"
)


@dataclass(frozen=True)
class Questions:
    """The questions of one split.

    Attributes:
      questions: in the order of the file.
      relevance: question id -> passage id -> grade. A grade above 0 is a passage that
        answers; 0 is one judged not to, such as DPR's hard negatives. A question that
        nobody judged is absent.
      passages: the passages whose texts came with the questions; empty for most files.
      fingerprint: SHA-256 of the content behind them.
      given: question id -> passage id -> score: the passages that a file gives a reader
        to read, in its order, best first; nobody has judged them. Empty for most files.
    """

    questions: tuple[Question, ...]
    relevance: dict[str, dict[str, int]]
    passages: Sequence[Passage]
    fingerprint: str
    given: dict[str, dict[str, float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.questions)


class Pairs(NamedTuple):
    """Questions against the rows of one pool of passages."""

    pool: Sequence[Passage]
    positives: tuple[np.ndarray, ...]  # int32 rows per question, the best grade first
    negatives: tuple[np.ndarray, ...]  # int32 rows per question
    num_missing: int  # judged passages that are not in the pool


class _Chained(Sequence[Passage]):
    """The passages of two collections, one after the other."""

    def __init__(self, first: Sequence[Passage], second: Sequence[Passage]):
        self.parts = first, second

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        index = int(index) + (len(self) if index < 0 else 0)
        first, second = self.parts
        return first[index] if index < len(first) else second[index - len(first)]


def load(
    name: str, split: str, *, cache_dir: str | os.PathLike | None = None
) -> Questions:
    """Opens the questions of a split by name, prepared in the cache by the first call.

    * ``stdlib``: the first paragraph of a docstring, answered by its function or class;
      train, validation and test differ by module.
    * ``stdlib_names``: the same, with the function's or class's plain name as answer.
    * ``beir:FOLDER``: ``queries.jsonl[.gz]``, with ``qrels/SPLIT.tsv[.gz]``; only the
      questions judged there.
    * ``dpr:FILE``: DPR's training file (.json[.gz]), or its question files (.tsv, .csv,
      ``.gz``): a question, a tab and a Python list of answers.
    * ``jsonl:FILE``: ``{"question", "text" or "query"}``, and where there are any
      "id"; "answers", "answer" or "golden_answers"; "passage_id" or "positive_ids"; and
      "passage", "sentence" or "positive", the text of a passage that answers.
    * ``squad:FILE``: SQuAD's own JSON; a question's own paragraph answers it.
    * ``trex:PATH``: LAMA's T-REx, a folder or a file (see `trex.questions`), and
      ``relations.jsonl`` beside or above it; train, validation and test differ by
      subject. The question is the relation's template, "[MASK]" in the object's place.
    * ``google_re:PATH``: LAMA's Google-RE, likewise, by LAMA's three templates.
    * ``fid:FILE``: the files of FiD's readers, a JSON list or JSON lines of
      ``{"question", "answers" or "target", "ctxs"}``; the passages of "ctxs", ``{"id",
      "title", "text", "score"}``, are to be read in their order (`Questions.given`).

    A FILE holds one split, whichever is asked for, unless ``{split}`` stands in its
    name and is filled in. A question without an id has its number from 1. A passage
    that is carried keeps its id, or has one made of its content; where files give two
    texts one id, the second has its content's. Equal passages are one.

    Raises:
      UserError: an unknown name or split, a file that is missing, damaged or not UTF-8,
        a record that is no question, an id that occurs twice, no question at all, or a
        full disk.
    """
    kind, path = names.parse(name)
    path = path.replace("{split}", split)
    readers = {
        "beir": question_files.beir,
        "dpr": question_files.dpr,
        "fid": question_files.fid,
        "jsonl": question_files.jsonl,
        "squad": squad.questions,
        "trex": trex.questions,
        "google_re": google_re.questions,
    }
    if name == "stdlib":
        content, read = question_files.stdlib(split)
    elif name == "stdlib_names":
        content, read = question_files.stdlib_names(split)
    elif kind in readers and path:
        content, read = readers[kind](Path(path), split)
    else:
        meant = names.spelling(name, names.QUESTIONS)
        raise UserError(
            f"There are no questions '{name}'{meant}: choose one of {NAMES}."
        )
    key = cache.fingerprint(_FORMAT, kind, content)
    directory = cache.folder("questions", key, cache_dir)
    cache.once(directory, lambda folder: _write(folder, read(), name))
    return _read(directory, name, key)


def resolve(questions: Questions, passages: Passages | None = None) -> Pairs:
    """Finds the judged passages of each question in one pool.

    The pool is `passages` followed by those that came with the questions; an id that
    both have is taken from the former.

    Arguments:
      questions: N questions; their order is that of the result.
      passages: the collection that is searched, or None.

    Raises:
      UserError: not one positive passage is in the pool.
    """
    carried = questions.passages
    parts = [part for part in (passages, carried) if part is not None and len(part)]
    pool = parts[0] if len(parts) == 1 else _Chained(passages or (), carried)
    judged = [questions.relevance.get(q.id, {}) for q in questions.questions]
    ids = [id_ for grades in judged for id_ in grades]
    rows = np.full(len(ids), -1, np.int32)
    if isinstance(carried, Passages):
        rows = carried.rows_of(ids)
        rows = np.where(rows >= 0, rows + len(passages or ()), -1).astype(np.int32)
    if passages is not None:
        first = passages.rows_of(ids)
        rows = np.where(first >= 0, first, rows).astype(np.int32)
    positives, negatives, start = [], [], 0
    for grades in judged:
        own = rows[start : start + len(grades)]
        values = np.fromiter(grades.values(), np.int64, len(grades))
        start += len(grades)
        best = np.argsort(-values, kind="stable")
        positives.append(own[best][(own >= 0)[best] & (values > 0)[best]])
        negatives.append(own[(own >= 0) & (values <= 0)])
    if not any(map(len, positives)):
        raise UserError(
            "None of the questions has a passage that answers it in "
            f"{'their own file' if passages is None else passages.name}: give the "
            "passages that the questions were judged on."
        )
    return Pairs(pool, tuple(positives), tuple(negatives), int((rows < 0).sum()))


class Answerable(NamedTuple):
    """Questions that each have a passage which answers them."""

    texts: list[str]
    answers: list[tuple[str, ...]]  # of each question; there may be none
    pairs: Pairs
    num_left_out: int  # questions without such a passage
    fingerprint: str  # of questions and passages


def answerable(questions: Questions, passages: Passages | None = None) -> Answerable:
    """Those of the questions that have a passage, `resolve`d: others teach nothing."""
    pairs = resolve(questions, passages)
    kept = [i for i, rows in enumerate(pairs.positives) if len(rows)]
    pool = passages.fingerprint[:16] if passages else "own"
    return Answerable(
        [questions.questions[i].text for i in kept],
        [questions.questions[i].answers for i in kept],
        pairs._replace(
            positives=tuple(pairs.positives[i] for i in kept),
            negatives=tuple(pairs.negatives[i] for i in kept),
        ),
        len(questions) - len(kept),
        f"{questions.fingerprint[:16]}-{pool}",
    )


# --- in the cache --------------------------------------------------------------------


def _write(directory: Path, records: Iterator[Record], name: str) -> None:
    """Questions as lines of JSON, and the passages that they carry as a collection."""
    with open(directory / "questions.jsonl", "wb") as file:
        carried = _write_questions(file, records, name)
        first = next(carried, None)
        if first is not None:
            folder = directory / "passages"
            folder.mkdir()
            passages_lib.write(folder, itertools.chain([first], carried), name)
    if not (directory / "questions.jsonl").stat().st_size:
        raise UserError(f"There are no questions in {name}: give at least one.")
    cache.write_manifest(directory, {"carries": first is not None})


def _write_questions(
    file: BinaryIO, records: Iterator[Record], name: str
) -> Iterator[Passage]:
    """Writes each question and yields the passages that came with it, each once."""
    seen: set[str] = set()
    kept: dict[str, str] = {}  # passage id -> id of its content
    for question, grades, carried, given in records:
        if not question.id:
            raise UserError(
                f"Question {len(seen) + 1} of {name} has an empty id: give it one."
            )
        if question.id in seen:
            raise UserError(
                f"The id '{question.id}' of {name} belongs to two questions: give each "
                "an id of its own."
            )
        seen.add(question.id)
        try:
            " ".join([question.id, question.text, *question.answers]).encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"The question '{ascii(question.id)}' of {name} holds half a character "
                f"({error.reason}): correct or remove it."
            ) from error
        grades, to_read = dict(grades), {}
        # Those with a grade first: the two kinds of value do not mix.
        for passage, grade, score in [
            *((passage, grade, None) for passage, grade in carried),
            *((passage, None, score) for passage, score in given),
        ]:
            content = _content_id(passage)
            # Files number passages, but not always those of one collection.
            same = kept.get(passage.id, content) == content
            id_ = passage.id if passage.id and same else content
            if grade is not None:
                grades[id_] = max(grade, grades.get(id_, 0))
            else:
                to_read.setdefault(id_, score)
            if id_ not in kept:
                kept[id_] = content
                yield passage._replace(id=id_)
        line = [*question, grades, to_read] if to_read else [*question, grades]
        file.write(characters.encode(json.dumps(line) + "\n"))


def _content_id(passage: Passage) -> str:
    content = f"{passage.title}\0{passage.text}".encode(errors="replace")
    return "text-" + hashlib.sha256(content).hexdigest()[:24]


def _read(directory: Path, name: str, fingerprint: str) -> Questions:
    what = f"set of questions {name}"
    manifest = cache.read_manifest(directory, what, {"carries": bool})
    questions, relevance, given = [], {}, {}
    for line in files.lines(directory / "questions.jsonl"):
        id_, text, answers, grades, *to_read = json.loads(line)
        questions.append(Question(id_, text, tuple(answers)))
        if grades:
            relevance[id_] = grades
        if to_read:
            given[id_] = to_read[0]
    folder = directory / "passages"
    carried = (
        passages_lib.read(folder, name, cache.fingerprint(fingerprint, "passages"))
        if manifest["carries"]
        else ()
    )
    return Questions(tuple(questions), relevance, carried, fingerprint, given)
