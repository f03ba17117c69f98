"""Closed sets: texts with a blank that is filled with a label, by the label's words.

The files are those of kNN-Prompt and NPM. A label's words (fuzzy verbalisers) come with
the files of AG News and SST; where a task has none, they are a few words named here.

Source: Shi et al. 2022, kNN-Prompt, appendix A; Min et al. 2023, section 4.1. Our
statements with a blank are below; the released ones are other sentences of their kind.
"""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlm_jax import characters
from rlm_jax.data import files, names
from rlm_jax.data.question_files import BLANK
from rlm_jax.errors import UserError

NAMES = "agn:FOLDER, sst2:FOLDER, mr:FOLDER, subj:FOLDER, rte:FOLDER, cb:FOLDER"
_SENTIMENT = "sst2/label_names_sentidict.txt"

_Rows = Iterator[tuple[str, str]]  # (text with a blank, label)


class ClosedSet(NamedTuple):
    """A task: texts, each with a blank, and the label of each."""

    name: str
    texts: list[str]
    labels: list[str]
    words: dict[str, list[str]]  # label -> the words that stand for it


def load(name: str, *, count: int = 0, seed: int = 0) -> ClosedSet:
    """A task by name, as "sst2:FOLDER"; FOLDER is that of the task or the one above.

    Args:
      name: one of `NAMES`.
      count: texts that are drawn; 0: all.
      seed: of the draw.

    Raises:
      UserError: an unknown name, a missing or damaged file, or no text.
    """
    kind, path = names.parse(name)
    if kind not in _READERS or not path:
        raise UserError(f"There is no closed set '{name}': choose one of {NAMES}.")
    folder = Path(path)
    if folder.name != kind:
        folder = folder / kind
    rows, words = _READERS[kind](folder)
    pairs = [pair for pair in rows if pair[1] in words]
    if not pairs:
        raise UserError(f"The closed set {name} has no text; check its files.")
    if count and count < len(pairs):
        drawn = np.random.default_rng(seed).permutation(len(pairs))[:count]
        pairs = [pairs[i] for i in drawn.tolist()]
    return ClosedSet(kind, [text for text, _ in pairs], [y for _, y in pairs], words)


def _agn(folder: Path) -> tuple[_Rows, dict[str, list[str]]]:
    labels = "1", "2", "3", "4"

    def rows() -> _Rows:
        for record in _csv(
            folder / "test.csv", ("Class Index", "Title", "Description")
        ):
            text = f"{record['Title']} {record['Description']}"
            yield f"{text} This topic is about {BLANK}.", record["Class Index"]

    return rows(), _words(folder / "label_names_kb.txt", labels)


def _sst2(folder: Path) -> tuple[_Rows, dict[str, list[str]]]:
    of_stars = {"1": "negative", "2": "negative", "4": "positive", "5": "positive"}

    def rows() -> _Rows:
        for line in _lines(folder / "dev.tsv"):
            stars, _, text = line.partition("\t")
            label = of_stars.get(stars.removeprefix("__label__"), "neutral")
            yield f"{text} It was {BLANK}.", label

    return rows(), _words(folder.parent / _SENTIMENT, ("negative", "positive"))


def _mr(folder: Path) -> tuple[_Rows, dict[str, list[str]]]:
    def rows() -> _Rows:
        for record in _csv(folder / "test.csv", ("label", "text")):
            label = {"0": "negative", "1": "positive"}.get(record["label"], "")
            yield f"{record['text']} It was {BLANK}.", label

    return rows(), _words(folder.parent / _SENTIMENT, ("negative", "positive"))


def _subj(folder: Path) -> tuple[_Rows, dict[str, list[str]]]:
    def rows() -> _Rows:
        for line in _lines(folder / "subj.all.txt"):
            yield f"{line[2:].strip()} This is a {BLANK}.", line[:1]

    words = {"0": ["review", "opinion"], "1": ["summary", "fact", "plot", "story"]}
    return rows(), words


def _rte(folder: Path) -> tuple[_Rows, dict[str, list[str]]]:
    words = {"entailment": ["yes", "true"], "not_entailment": ["no", "false"]}
    return _inferences(folder / "val.jsonl"), words


def _cb(folder: Path) -> tuple[_Rows, dict[str, list[str]]]:
    words = {
        "entailment": ["yes", "true"],
        "contradiction": ["no", "false"],
        "neutral": ["maybe", "perhaps"],
    }
    return _inferences(folder / "dev.jsonl"), words


def _inferences(path: Path) -> _Rows:
    for number, record in files.json_records(path):
        parts = [record.get(name) for name in ("premise", "hypothesis", "label")]
        told = [part for part in parts if isinstance(part, str)]
        if len(told) != len(parts):
            wanted = 'strings "premise", "hypothesis" and "label"'
            raise files.bad_record(path, number, wanted)
        premise, hypothesis, label = told
        yield f"{premise} {hypothesis.rstrip('.')}? The answer is {BLANK}.", label


_Reader = Callable[[Path], tuple[_Rows, dict[str, list[str]]]]
_READERS: dict[str, _Reader] = {
    "agn": _agn, "sst2": _sst2, "mr": _mr, "subj": _subj, "rte": _rte, "cb": _cb,
}  # fmt: skip


def _words(path: Path, labels: tuple[str, ...]) -> dict[str, list[str]]:
    """Line i has the words of label i, by commas."""
    lines = [
        [word.strip() for word in line.split(",") if word.strip()]
        for line in _lines(path)
    ]
    if len(lines) < len(labels):
        raise UserError(
            f"{path} has words of {len(lines)} labels, and there are {len(labels)}; "
            "give a line of words for each."
        )
    return dict(zip(labels, lines, strict=False))


def _csv(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(_records(path), 2):
        if any(record.get(name) is None for name in columns):
            raise files.bad_record(path, number, f"columns {', '.join(columns)}")
        yield record


def _records(path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from csv.DictReader(_lines(path))
    except csv.Error as error:
        raise UserError(
            f"{path} is not CSV ({error}); give the closed set's own file."
        ) from error


def _lines(path: Path) -> list[str]:
    characters.check_file(path)
    try:
        # The released files of reviews hold single bytes of other encodings.
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); check the closed set's folder."
        ) from error
    lines = characters.lines(text.removeprefix(characters.MARK))
    return [line for line in lines if line.strip()]
