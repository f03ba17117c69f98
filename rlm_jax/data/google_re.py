"""LAMA's Google-RE: where and when people were born, and where they died.

A fact's passage is its sentences about the person, with the object filled in and the
person's name as title; its question is LAMA's template with the object left blank.

Source: Petroni et al. 2019, LAMA, section 4.1.1.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlm_jax.data import files
from rlm_jax.data.passage_files import Passage
from rlm_jax.data.question_files import (
    BLANK,
    SPLITS,
    Question,
    Reader,
    Record,
    split_of,
)
from rlm_jax.errors import UserError

TEMPLATES = {
    "place_of_birth": "[X] was born in [Y] .",
    "date_of_birth": "[X] (born [Y]).",
    "place_of_death": "[X] died in [Y] .",
}
"""LAMA's own (lama/scripts/run_experiments.py)."""


class _Fact(NamedTuple):
    relation: str
    subject: str
    object: str
    passage: Passage


def passages(path: Path) -> tuple[Any, Iterator[Passage]]:
    """The sentences of each fact, once each; the id is made of the text.

    Args:
      path: a file of LAMA's Google-RE, or a folder with such files in it or in its
        folder Google_RE.

    Raises:
      UserError: there is no such file or folder, or no fact in it.
    """
    paths = _files(path)

    def read() -> Iterator[Passage]:
        seen: set[str] = set()
        for fact in _facts(path, paths):
            if fact.passage.id not in seen:
                seen.add(fact.passage.id)
                yield fact.passage

    return [files.digest(file) for file in paths], read()


def questions(path: Path, split: str) -> Reader:
    """The facts as questions, in a mixed order.

    The facts of one person and relation are one question. Persons, by their names, are
    divided 80/10/10 into train, validation and test.

    Raises:
      UserError: another split, or no such file or folder.
    """
    if split not in SPLITS:
        raise UserError(
            f"There is no split '{split}' of Google-RE: choose one of "
            f"{', '.join(SPLITS)}."
        )
    paths = _files(path)

    def read() -> Iterator[Record]:
        grouped: dict[tuple[str, str], list[_Fact]] = {}
        for fact in _facts(path, paths):
            if split_of(fact.subject) == split:
                grouped.setdefault((fact.relation, fact.subject), []).append(fact)
        for (relation, subject), facts in sorted(
            grouped.items(), key=lambda item: _id(" ".join(item[0]))
        ):
            text = TEMPLATES[relation].replace("[Y]", BLANK).replace("[X]", subject)
            answers = tuple(dict.fromkeys(fact.object for fact in facts))
            grades = {fact.passage.id: 1 for fact in facts}
            id_ = f"{relation}-{_id(subject)}"
            yield Record(Question(id_, text, answers), grades)

    return [*(files.digest(file) for file in paths), split], read


def _facts(path: Path, paths: list[Path]) -> Iterator[_Fact]:
    any_fact = False
    for file in paths:
        for _, record in files.json_records(file):
            names = "relation", "sub_label", "obj_label"
            relation, subject, object_ = (record.get(name) for name in names)
            sentences = record.get("masked_sentences")
            if not (
                isinstance(relation, str)
                and relation in TEMPLATES
                and isinstance(subject, str)
                and isinstance(object_, str)
                and isinstance(sentences, list)
            ):
                continue  # of another probe of LAMA's
            text = " ".join(map(str, sentences)).replace(BLANK, object_)
            any_fact = True
            yield _Fact(relation, subject, object_, Passage(_id(text), subject, text))
    if not any_fact:
        raise UserError(
            f"There are no facts of Google-RE in {path}: give LAMA's folder Google_RE, "
            "or records with relation, sub_label, obj_label and masked_sentences."
        )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [
        file
        for folder in (path, path / "Google_RE")
        if folder.is_dir()
        for file in sorted(folder.iterdir())
        if file.name.endswith((".jsonl", ".jsonl.gz"))
        and ("google_re" in file.name.lower() or folder.name == "Google_RE")
    ]
    if not found:
        raise UserError(
            f"There are no files of Google-RE in {path}: give a file, or a folder with "
            "google_re.jsonl or Google_RE in it."
        )
    return found


def _id(text: str) -> str:
    return "google_re-" + hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
