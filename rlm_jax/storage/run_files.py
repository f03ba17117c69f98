"""Run files in TREC's format: what a search found for each question.

A run is {question id: {passage id: score}}. Spaces part the columns, so white space in
an id, and a "%" that could be taken for it, is written as in a URL ("Blue%20Whale#1")
and read back as it was.
"""

import codecs
import gzip
import math
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from rlm_jax import characters
from rlm_jax.errors import UserError
from rlm_jax.storage import atomic

_SPACE = re.compile(r"\s")
# UTF-8 bytes of white space and of "%" itself, as `_escaped` writes them.
_WRITTEN = [chr(i) for i in (*range(9, 14), *range(28, 33), 0x25, 0x85, 0xA0, 0x1680)]
_WRITTEN += [chr(i) for i in (*range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F)]
_WRITTEN += ["\u3000"]
_UNESCAPED = {"".join(f"%{byte:02X}" for byte in c.encode()): c for c in _WRITTEN}
_ESCAPE = re.compile("|".join(_UNESCAPED))

Run = Mapping[str, Mapping[str, float]]


def write(run: Run, path: str | os.PathLike, *, tag: str = "rlm_jax") -> None:
    """Writes ``question Q0 passage rank score tag`` lines, gzipped if `path` ends so.

    Scores are written so that they are read back as they are; ranks follow the scores,
    and the order in the run where they are equal.

    Raises:
      UserError: an id or the tag is empty, or the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as partial, _open(path, partial, "wb") as file:
            for question, scores in run.items():
                ranking = sorted(scores.items(), key=lambda item: -item[1])
                for rank, (passage, score) in enumerate(ranking, 1):
                    fields = _escaped(question), "Q0", _escaped(passage)
                    fields += str(rank), repr(float(score)), _escaped(tag)
                    file.write(characters.encode(" ".join(fields) + "\n"))
    except OSError as error:
        raise UserError(
            f"The run cannot be written to {path} ({error.strerror}): choose another "
            "place or free some space."
        ) from error


def check_place(path: str | os.PathLike) -> None:
    """Before the work: whether a file can be written there.

    Raises:
      UserError: it is a folder, or a folder of its path is none or may not be written.
    """
    path = Path(path)
    there = next(p for p in (*path.absolute().parents,) if os.path.lexists(p))
    if path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"No file can be written at {path}: choose another place.")


def read(path: str | os.PathLike) -> dict[str, dict[str, float]]:
    """Reads a run in TREC's format, plain or .gz; ranks and tag are not kept.

    Raises:
      UserError: there is no such file, it is empty or damaged, or a line is not of that
        form.
    """
    path = Path(path)
    run: dict[str, dict[str, float]] = {}
    number = 0
    try:
        with _open(path, path, "rb") as file:
            for number, raw in enumerate(file, 1):
                raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
                # White space of ASCII alone parts columns; ids may hold any other.
                if fields := [field.decode("utf-8") for field in raw.split()]:
                    question, _, passage, _, score, _ = fields
                    found = run.setdefault(_read(question), {})
                    found[_read(passage)] = _score(score, number, path)
    except FileNotFoundError as error:
        raise UserError(f"There is no run at {path}: check the path.") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"The run {path} is no whole gzip file ({error}): make or copy it again."
        ) from error
    except ValueError as error:
        raise UserError(
            f"Line {number} of {path} is not 'question Q0 passage rank score tag': "
            "give a whole run in TREC's format."
        ) from error
    except OSError as error:
        raise UserError(
            f"The run {path} cannot be read ({error.strerror}): check the path."
        ) from error
    if not run:
        raise UserError(f"The run {path} is empty: make or copy it again.")
    return run


def _open(name: Path, path: Path, mode: str) -> IO[bytes]:
    if mode == "rb":
        characters.check_file(path)
    opener: Any = gzip.open if name.name.lower().endswith(".gz") else open
    return opener(path, mode)


def _score(field: str, number: int, path: Path) -> float:
    score = float(field)
    if not math.isfinite(score):
        raise UserError(
            f"Line {number} of {path} has the score {field}, which is not finite: give "
            "finite scores."
        )
    return score


def _escaped(text: str) -> str:
    if not text:
        raise UserError("An empty id cannot stand in a run; give every id a character.")
    if "%" not in text and _SPACE.search(text) is None:
        return text
    # "%" where it would be read as one of the escapes, and there alone.
    text = _ESCAPE.sub(lambda found: f"%25{found[0][1:]}", text)
    return _SPACE.sub(lambda found: _percent(found[0]), text)


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())


def _read(field: str) -> str:
    return _ESCAPE.sub(lambda found: _UNESCAPED[found[0]], field)
