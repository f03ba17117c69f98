"""LAMA's T-REx: facts of Wikidata, each with sentences of Wikipedia that state it.

A fact is a subject, a relation and an object, all three with labels. Its passages are
the sentences, its question is the relation's template with the object left blank.

Source: Petroni et al. 2019, LAMA, section 4.1.2; Elsahar et al. 2018, T-REx.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlm_jax import terminal
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

TEMPLATES = "relations.jsonl"


class _Fact(NamedTuple):
    relation: str
    subject: str
    subject_id: str  # of Wikidata, or the label where there is none
    object: str
    sentences: tuple[str, ...]  # with the object filled in


def passages(path: Path) -> tuple[Any, Iterator[Passage]]:
    """The sentences of all facts, each once; the id is made of the text.

    Raises:
      UserError: there is no such file or folder, or no fact in it.
    """
    paths = _files(path)
    return _digests(paths), _passages(path, paths)


def questions(path: Path, split: str) -> Reader:
    """The facts that have a sentence and whose relation has a template, as questions.

    The facts of one subject and relation are one question, with all their objects as
    answers and all their sentences as passages that answer. Subjects, by their labels,
    are divided 80/10/10 into train, validation and test: nothing about a subject of one
    split is in another. The order is mixed, so that the first questions are a sample.

    Raises:
      UserError: another split, no such file or folder, or no relations.jsonl.
    """
    if split not in SPLITS:
        raise UserError(
            f"There is no split '{split}' of T-REx: choose one of {', '.join(SPLITS)}."
        )
    paths, relations = _files(path), _relations(path)
    content = [_digests(paths), files.digest(relations), split]
    return content, lambda: _questions(path, paths, relations, split)


def _passages(path: Path, paths: list[Path]) -> Iterator[Passage]:
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for fact in _facts(path, paths, left_out):
        for sentence in fact.sentences:
            id_ = _id(sentence)
            if id_ not in seen:
                seen.add(id_)
                yield Passage(id_, "", sentence)
    _tell(left_out, path)


def _questions(
    path: Path, paths: list[Path], relations: Path, split: str
) -> Iterator[Record]:
    templates = _templates(relations)
    left_out: Counter[str] = Counter()
    grouped: dict[tuple[str, str], list[_Fact]] = {}
    for fact in _facts(path, paths, Counter()):
        if fact.relation not in templates:
            left_out[f"of relations without a template in {relations}"] += 1
        elif split_of(fact.subject) == split:
            grouped.setdefault((fact.relation, fact.subject), []).append(fact)
    for (relation, subject), facts in sorted(grouped.items(), key=_mixed):
        # Another subject may bear the same label: it is the same question then.
        text = templates[relation].replace("[Y]", BLANK).replace("[X]", subject)
        answers = tuple(dict.fromkeys(fact.object for fact in facts))
        grades = {_id(sentence): 1 for fact in facts for sentence in fact.sentences}
        id_ = f"{relation}-{facts[0].subject_id}"
        yield Record(Question(id_, text, answers), grades)
    if split == SPLITS[0]:
        _tell(left_out, path)


def _mixed(group: tuple[tuple[str, str], list[_Fact]]) -> str:
    return _id(" ".join(group[0]))


def _facts(path: Path, paths: list[Path], left_out: Counter[str]) -> Iterator[_Fact]:
    """The facts of all files in turn; why others are left out is counted."""
    owners: dict[str, str] = {}  # subject's id -> its first label
    any_fact = False
    for file in paths:
        for _, record in files.json_records(file):
            names = ("predicate_id", "sub_label", "obj_label")
            relation, subject, object_ = (record.get(name) for name in names)
            if not (
                isinstance(relation, str)
                and isinstance(subject, str)
                and isinstance(object_, str)
            ):
                continue  # of another probe of LAMA's
            sentences = tuple(dict.fromkeys(_sentences(record)))
            if not sentences:
                left_out[f"of {file.name} without a sentence that states them"] += 1
                continue
            any_fact = True
            subject_id = str(record.get("sub_uri") or _id(subject))
            subject = owners.setdefault(subject_id, subject)
            yield _Fact(relation, subject, subject_id, object_, sentences)
    if not any_fact:
        raise UserError(
            f"There are no facts of T-REx with sentences in {path}: give LAMA's folder "
            "TREx, or records with predicate_id, sub_label, obj_label, masked_sentence "
            "and obj_surface."
        )


def _sentences(record: dict[str, Any]) -> Iterator[str]:
    listed = record.get("evidences")
    for evidence in listed if isinstance(listed, list) else [record]:
        if isinstance(evidence, dict):
            masked, surface = (
                evidence.get(name) for name in ("masked_sentence", "obj_surface")
            )
            if isinstance(masked, str) and isinstance(surface, str) and BLANK in masked:
                yield masked.replace(BLANK, surface)


def _tell(left_out: Counter[str], path: Path) -> None:
    if left_out:
        told = ", ".join(f"{count:,} facts {why}" for why, count in left_out.items())
        terminal.say(f"left out of {path}: {told}")


def _files(path: Path) -> list[Path]:
    """The files of JSON lines that are in the folder or in its TREx."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"There is no file or folder {path}: check the path.")
    found = [
        file
        for folder in (path, path / "TREx")
        for file in (files.listed(folder, ".jsonl")[0] if folder.is_dir() else [])
        if file.name.lower().removesuffix(".gz") != TEMPLATES and file.stat().st_size
    ]
    if not found:
        raise UserError(f"The folder {path} holds no .jsonl or .jsonl.gz files.")
    return found


def _digests(paths: list[Path]) -> list[str]:
    return [files.digest(file) for file in paths]


def _relations(path: Path) -> Path:
    folder = path if path.is_dir() else path.parent
    for there in (folder, folder.resolve().parent):
        try:
            return files.either(there / TEMPLATES)
        except UserError:
            continue
    raise UserError(
        f"There is no {TEMPLATES} in {folder} or above it: put LAMA's there, with the "
        "template of each relation."
    )


def _templates(path: Path) -> dict[str, str]:
    templates = {}
    for number, record in files.json_records(path):
        relation, template = record.get("relation"), record.get("template")
        if (
            not isinstance(relation, str)
            or not isinstance(template, str)
            or "[X]" not in template
            or "[Y]" not in template
        ):
            wanted = 'a "relation" with a "template" that has [X] and [Y]'
            raise files.bad_record(path, number, wanted)
        templates[relation] = template
    return templates


def _id(text: str) -> str:
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    return f"trex-{digest[:16]}"
