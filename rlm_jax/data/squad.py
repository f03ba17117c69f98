"""SQuAD's own JSON: articles of paragraphs, each with its questions."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlm_jax.data import files
from rlm_jax.data.passage_files import Passage
from rlm_jax.data.question_files import Question, Reader, Record
from rlm_jax.errors import UserError

SPLIT = "{split}"


def passages(path: Path) -> tuple[Any, Iterator[Passage]]:
    """The paragraphs, with ids such as ``Super_Bowl_50#0`` and titles in words.

    Where ``{split}`` stands in the file's name they are those of all its splits.
    """
    paths = [path]
    if SPLIT in path.name:
        before, after = map(glob.escape, path.name.split(SPLIT, 1))
        paths = sorted(path.parent.glob(f"{before}*{after}"))
        if not paths:
            raise UserError(f"There is no file {path} of any split: check the path.")
    return [files.digest(file) for file in paths], (
        passage for file in paths for passage, _ in _paragraphs(file)
    )


def questions(path: Path, split: str) -> Reader:
    """The questions with their answers, each once, and their own paragraph's id."""
    del split
    return files.digest(path), lambda: _questions(path)


def _questions(path: Path) -> Iterator[Record]:
    for passage, asked in _paragraphs(path):
        for one in asked:
            try:
                id_, text = one["id"], one["question"]
                # Equal answers of several people are one; SQuAD 2 also has none.
                answers = tuple(dict.fromkeys(a["text"] for a in one["answers"]))
            except (KeyError, TypeError) as error:
                raise _bad(path, f"a question of {passage.id}") from error
            if not all(isinstance(x, str) for x in (id_, text, *answers)):
                raise _bad(path, f"a question of {passage.id}")
            yield Record(Question(id_, text, answers), {passage.id: 1})


def _paragraphs(path: Path) -> Iterator[tuple[Passage, list[Any]]]:
    articles = files.json_object(path).get("data")
    if not isinstance(articles, list):
        raise _bad(path, '"data"')
    for number, article in enumerate(articles, 1):
        try:
            title, paragraphs = article["title"], list(article["paragraphs"])
            pairs = [(p["context"], list(p["qas"])) for p in paragraphs]
        except (KeyError, TypeError) as error:
            raise _bad(path, f"article {number}") from error
        if not all(isinstance(text, str) for text in (title, *(t for t, _ in pairs))):
            raise _bad(path, f"article {number}")
        for place, (text, asked) in enumerate(pairs):
            yield Passage(f"{title}#{place}", title.replace("_", " "), text), asked


def _bad(path: Path, what: str) -> UserError:
    return UserError(
        f"In {path} {what} is not of SQuAD's form (data, paragraphs, context, qas): "
        "give SQuAD's own JSON."
    )
