"""Run files in TREC's format: what a search found for each question.

A run is {question id: {passage id: score}}.
"""

import gzip
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from rlm_jax.errors import UserError
from rlm_jax.storage import atomic

Run = Mapping[str, Mapping[str, float]]


def write(run: Run, path: str | os.PathLike, *, tag: str = "rlm_jax") -> None:
    """Writes ``question Q0 passage rank score tag`` lines, gzipped if `path` ends so.

    Scores are written so that they are read back as they are; ranks follow the scores,
    and the order in the run where they are equal.

    Raises:
      UserError: an id or the tag is empty or holds white space, or the file cannot be
        written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as partial, _text(path, partial, "wt") as file:
            for question, scores in run.items():
                ranking = sorted(scores.items(), key=lambda item: -item[1])
                for rank, (passage, score) in enumerate(ranking, 1):
                    fields = _plain(question), "Q0", _plain(passage)
                    fields += str(rank), repr(float(score)), _plain(tag)
                    file.write(" ".join(fields) + "\n")
    except OSError as error:
        raise UserError(
            f"The run cannot be written to {path} ({error.strerror}): choose another "
            "place or free some space."
        ) from error


def read(path: str | os.PathLike) -> dict[str, dict[str, float]]:
    """Reads a run in TREC's format, plain or .gz; ranks and tag are not kept.

    Raises:
      UserError: there is no such file, or a line is not of that form.
    """
    path = Path(path)
    run: dict[str, dict[str, float]] = {}
    number = 0
    try:
        with _text(path, path, "rt") as file:
            for number, line in enumerate(file, 1):  # noqa: B007
                if fields := line.split():
                    question, _, passage, _, score, _ = fields
                    run.setdefault(question, {})[passage] = float(score)
    except FileNotFoundError as error:
        raise UserError(f"There is no run at {path}: check the path.") from error
    except (ValueError, EOFError, gzip.BadGzipFile) as error:
        raise UserError(
            f"Line {number} of {path} is not 'question Q0 passage rank score tag': "
            "give a run in TREC's format."
        ) from error
    return run


def _text(name: Path, path: Path, mode: str) -> IO[str]:
    opener: Any = gzip.open if name.suffix == ".gz" else open
    return opener(path, mode, encoding="utf-8")


def _plain(text: str) -> str:
    if not text or len(text.split()) != 1 or text != text.strip():
        raise UserError(
            f"'{text}' cannot stand in a run, where spaces part the columns; use ids "
            "and a tag without spaces."
        )
    return text
