"""Files of text, read as a stream: lines, JSON records, rows of tab-separated fields.

Every reader takes a plain file or a gzip file (by its ending .gz), holds one record at
a time, and names the file and the line of what it cannot read. How bytes become text is
decided in `rlm_jax.characters`. Endings are known in capitals too, and a file whose
name begins with a dot is no text of anybody's.
"""

import codecs
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rlm_jax import characters
from rlm_jax.errors import UserError

# A field of a row: quoted, with its quotes doubled, or as it stands.
_FIELD = re.compile(r'(?:"((?:[^"]|"")*)"|([^\t]*))(\t|$)')
_OPENING = re.compile(r"\s*\[?\s*")
_COMMA = re.compile(r"\s*,?\s*")
_CHUNK = 1 << 22  # characters
_OTHER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # as JSON spells it


def digest(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file's bytes.

    Raises:
      UserError: there is no such file, it is empty, or it may not be read.
    """
    if not os.path.isfile(path):
        raise UserError(f"There is no file {path}: check the path.")
    if path.stat().st_size == 0:
        raise UserError(f"The file {path} is empty: give a file with text.")
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError as error:
        raise UserError(
            f"The file {path} may not be read: change its permissions."
        ) from error


def either(path: Path) -> Path:
    """The file `path`, or where only that exists its compressed copy ``path.gz``."""
    compressed = path.with_name(path.name + ".gz")
    if os.path.isfile(path):
        return path
    beside = sorted(path.parent.iterdir()) if os.path.isdir(path.parent) else []
    for wanted in (path, compressed):
        for file in beside:
            if file.name.lower() == wanted.name.lower() and file.is_file():
                return file
    raise UserError(f"There is neither {path} nor {compressed}: check the path.")


def stem(path: Path, *suffixes: str) -> str:
    """A file's name without ``.gz`` and the first of the suffixes that it ends with.

    It can be written everywhere: bytes that are no text stand as \\xNN.
    """
    name = path.name
    for suffix in (".gz", *suffixes):
        if len(name) > len(suffix) and name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            if suffix != ".gz":
                break
    return characters.shown(name)


def listed(folder: Path, *suffixes: str) -> tuple[list[Path], dict[str, list[str]]]:
    """The files of a folder with one of the suffixes, each also with ``.gz`` after it.

    Returns:
      (files in the order of their names, reason -> names of those that are passed
      over). A compressed copy beside its own file is passed over, and so are files
      whose name begins with a dot, which systems leave in folders, and sub-folders.
    """
    endings = (*suffixes, *(f"{suffix}.gz" for suffix in suffixes))
    found, skipped = [], {}
    for path in sorted(folder.iterdir()):
        name = path.name.lower()
        if name.startswith("."):
            reason = "a dot file"
        elif path.is_dir():
            reason = "a folder"
        elif not name.endswith(endings):
            reason = f"not {' or '.join(suffixes)}"
        else:
            found.append(path)
            continue
        skipped.setdefault(reason, []).append(characters.shown(path.name))
    names = {path.name.lower() for path in found}
    copies = [p for p in found if p.name.lower().removesuffix(".gz") in names]
    copies = [p for p in copies if p.name.lower().endswith(".gz")]
    if copies:
        told = [characters.shown(path.name) for path in copies]
        skipped["a compressed copy of another"] = told
    return [path for path in found if path not in copies], skipped


def lines(path: Path) -> Iterator[str]:
    """Lines of UTF-8 with their ends; names the first byte that is not text.

    A byte order mark at the start is no text.
    """
    position = 0
    try:
        with _open(path) as file:
            for number, raw in enumerate(file, 1):
                if number == 1 and raw.startswith(_OTHER_MARKS):
                    raise UserError(
                        f"The file {path} is UTF-16: save it again as UTF-8."
                    )
                if number == 1 and raw.startswith(codecs.BOM_UTF8):
                    raw = raw.removeprefix(codecs.BOM_UTF8)
                    position += len(codecs.BOM_UTF8)
                zero = raw.find(0)
                if zero >= 0:
                    raise _not_text(path, number, position + zero)
                try:
                    yield raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise _not_text(path, number, position + error.start) from error
                position += len(raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _not_gzip(path, error) from error


def json_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, JSON object) of each line that is not blank."""
    for number, line in enumerate(lines(path), 1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if not isinstance(record, dict):
                raise bad_record(path, number, "a JSON object")
            if half := _half(line, record):
                wanted = f"text: it holds half a character ({half})"
                raise bad_record(path, number, wanted)
            yield number, record


def json_array(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, JSON object) of each element of one array that fills the file.

    Elements are decoded as they arrive: the files that DPR trains on are larger than
    memory.
    """
    decoder, buffer, number = json.JSONDecoder(), "", 0
    separators = _OPENING
    for chunk in _chunks(path):
        buffer, position = buffer + chunk, 0
        while True:
            position = separators.match(buffer, position).end()  # type: ignore[union-attr]
            if position == len(buffer) or buffer[position] == "]":
                break
            separators = _COMMA
            begin = position
            try:
                element, position = decoder.raw_decode(buffer, position)
            except RecursionError as error:
                raise _bad_element(path, number + 1) from error
            except ValueError:
                break  # an element that goes on in the next chunk, or a broken one
            number += 1
            if not isinstance(element, dict):
                raise _bad_element(path, number)
            if half := _half(buffer[begin:position], element):
                raise UserError(
                    f"Element {number} of {path} holds half a character ({half}): "
                    "correct or remove it."
                )
            yield number, element
        buffer = buffer[position:]
    if buffer.strip() != "]":
        raise _bad_element(path, number + 1)


def json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """`json_array` where the file begins with a bracket, else `json_records`."""
    first = next((line.lstrip() for line in lines(path) if line.strip()), "")
    return json_array(path) if first.startswith("[") else json_records(path)


def json_object(path: Path) -> dict[str, Any]:
    """The one JSON object that fills a file, read into memory as a whole."""
    content = "".join(lines(path))
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(
            f"The file {path} is not one JSON object: give a whole file of the form "
            "{..}."
        )
    if half := _half(content, value):
        raise UserError(
            f"The file {path} holds half a character ({half}): correct or remove it."
        )
    return value


def rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each tab-separated line, quoted as the csv module does.

    The csv module itself refuses fields over 128 KiB.
    """
    for number, line in enumerate(lines(path), 1):
        line = line.rstrip("\r\n")
        if not line:
            continue
        if '"' not in line:
            yield number, line.split("\t")
            continue
        fields = []
        for match in _FIELD.finditer(line):
            quoted, plain, end = match.groups()
            fields.append(plain if quoted is None else quoted.replace('""', '"'))
            if not end:
                break
        yield number, fields


def bad_record(path: Path, number: int, wanted: str) -> UserError:
    """The error for line `number` of a file that is not what it should be."""
    return UserError(f"Line {number} of {path} is not {wanted}: correct or remove it.")


def compressed(path: Path) -> bool:
    """Whether a file is one of gzip, by its name."""
    return path.name.lower().endswith(".gz")


def _open(path: Path) -> IO[bytes]:
    characters.check_file(path)
    # The annotation of gzip.open knows less than it returns.
    return gzip.open(path) if compressed(path) else open(path, "rb")  # type: ignore[return-value]


def _half(spelled: str, value: Any) -> str | None:
    """A half character in what JSON spells, which no file of text can hold."""
    return characters.half_character(value) if _HALF.search(spelled) else None


def _chunks(path: Path) -> Iterator[str]:
    parts, size = [], 0
    for line in lines(path):
        parts.append(line)
        size += len(line)
        if size >= _CHUNK:
            yield "".join(parts)
            parts, size = [], 0
    yield "".join(parts)


def _bad_element(path: Path, number: int) -> UserError:
    return UserError(
        f"Element {number} of {path} is not a JSON object in an array: give a whole "
        "file of the form [{..}, {..}]."
    )


def _not_gzip(path: Path, error: Exception) -> UserError:
    return UserError(
        f"The file {path} is not a whole gzip file ({error}): copy it again."
    )


def _not_text(path: Path, number: int, position: int) -> UserError:
    return UserError(
        f"The file {path} is not UTF-8 text (see byte {position}, in line {number}"
        "): convert it, or name another file."
    )
