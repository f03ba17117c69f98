"""Text from the world and back: bytes, lines and words, by one rule for all.

What each reader and writer decides is decided here; docs/text.md tells it in words.

* Files are UTF-8, with or without a byte order mark. Other bytes are refused.
* A line ends at a line feed, before which a carriage return may stand, and nowhere
  else: U+2028, U+0085 and form feeds are characters of a line.
* What is typed, piped or given by flag is kept, blanks among it; a byte that is no text
  becomes U+FFFD.
* What is written is UTF-8. A path of other bytes stands in JSON so that it is read back
  as it was.
* What is shown at a terminal or on a page commands neither: escape sequences and marks
  of direction stand in it as they are spelled.
* Words are runs of letters, marks and digits, whatever the script; where a script puts
  no blanks between words, each of its characters is one.
"""

import codecs
import functools
import json
import os
import re
import stat
import sys
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from rlm_jax.errors import UserError

MARK = "\ufeff"  # the byte order mark, which editors put at the start of a file
_OTHER_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
_HALF = re.compile("[\ud800-\udfff]")
# Control characters but tabs and line feeds, and those that turn the direction of text.
_COMMANDS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
# What stands between words in some scripts stands inside them in others: joiners.
_JOINERS = "\u200c\u200d"
_SOFT_HYPHEN = "\u00ad"
# Scripts without blanks between words: Thai, Lao, Tibetan, Myanmar, Khmer, the scripts
# of Tai and Java, kana, Han with its extensions and compatibility forms.
_UNSPACED = (
    (0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF),
    (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x3005, 0x3007), (0x3021, 0x3029),
    (0x3031, 0x3035), (0x3038, 0x303C), (0x3041, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA980, 0xA9DF), (0xA9E0, 0xA9FF),
    (0xAA60, 0xAADF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x1B000, 0x1B16F),
    (0x20000, 0x323AF),
)  # fmt: skip


# --- bytes ---------------------------------------------------------------------------


def decode(data: bytes, where: str) -> str:
    """The text of some bytes, without a byte order mark.

    Raises:
      UserError: they are not UTF-8; ``where`` names what they are of.
    """
    for mark, name in _OTHER_MARKS.items():
        if data.startswith(mark):
            raise UserError(f"{where} is {name}: save it again as UTF-8.")
    try:
        return data.decode("utf-8").removeprefix(MARK)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not UTF-8 text (see byte {error.start}): convert it, or name "
            "another file."
        ) from error


def encode(text: str) -> bytes:
    """UTF-8; half characters as ``\\udXXX``, which JSON reads back as they were.

    A path of other bytes has such halves, by which Python keeps them.
    """
    return text.encode("utf-8", "backslashreplace")


def check_file(path: str | os.PathLike) -> None:
    """Whether a file can be read to its end: a device or a pipe may have none.

    What is not there, and a folder, is told by whoever opens it.

    Raises:
      UserError: it is a device, a pipe or a socket.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(
            f"{shown(str(path))} is a device or a pipe and may never end: give a file."
        )


def read(path: str | os.PathLike) -> str:
    """The text of a file.

    Raises:
      UserError: it is not UTF-8, or a device or a pipe.
      OSError: it cannot be read.
    """
    check_file(path)
    return decode(Path(path).read_bytes(), f"The file {shown(str(path))}")


def write(path: str | os.PathLike, text: str) -> None:
    """Writes a file of text."""
    Path(path).write_bytes(encode(text))


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds.

    Raises:
      ValueError: it is not UTF-8, or not JSON, or a device.
      OSError: it cannot be read.
    """
    try:
        text = read(path)
    except UserError as error:
        raise ValueError(str(error)) from error
    return from_json(text)


def from_json(text: str) -> Any:
    """What JSON says.

    Raises:
      ValueError: it is not JSON, or nested more deeply than Python goes.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Plain JSON; NaN and infinity are a ValueError."""
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def write_json(path: str | os.PathLike, value: Any, *, indent: int | None = 1) -> None:
    """Writes a file of JSON."""
    write(path, to_json(value, indent=indent))


def lines(text: str) -> list[str]:
    """The lines of a text, without their ends."""
    parts = text.split("\n")
    parts = parts[:-1] if parts[-1] == "" else parts
    return [part.removesuffix("\r") for part in parts]


def half_character(value: Any) -> str | None:
    """The first half of a surrogate pair in plain JSON, keys included, or None."""
    found = _HALF.search(json.dumps(value, ensure_ascii=False, default=str))
    return None if found is None else ascii(found[0]).strip("'")


def visible(text: str) -> str:
    """A text whose control characters and marks of direction are seen, not obeyed.

    They stand as JSON spells them (``\\u001b``), so JSON stays the same JSON. Tabs and
    the ends of lines stay.
    """
    if _COMMANDS.search(text) is None:
        return text
    text = text.replace("\r\n", "\n")
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shown(text: str) -> str:
    """A text that can be written anywhere: other bytes of a path stand as \\xNN."""
    if _HALF.search(text) is None:
        return text
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return encode(text).decode()
    return data.decode("utf-8", "backslashreplace")


def repaired(text: str) -> tuple[str, bool]:
    """What was typed or given by flag, and whether a part of it was no text.

    Each byte that is not UTF-8 becomes U+FFFD.
    """
    if _HALF.search(text) is None:
        return text, False
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return _HALF.sub("\ufffd", text), True
    text = data.decode("utf-8", "replace")
    return text, "\ufffd" in text


# --- words ---------------------------------------------------------------------------


def words(text: str, *, inside: str = "", underscore: bool = False) -> list[str]:
    """The words of a text, in lower case and composed (NFC).

    Runs of letters, digits and combining marks. A character of a script without blanks
    between words, with its marks, is a word of its own.

    Args:
      text: any text.
      inside: characters that belong to a word between two letters, as an apostrophe.
      underscore: whether "_" is a letter, as in program text.
    """
    if text.isascii():
        return _ascii_pattern(inside, underscore).findall(text.lower())
    text = unicodedata.normalize("NFC", text).replace(_SOFT_HYPHEN, "")
    # Lower case of the dotted capital I is two characters, of which the second is none.
    text = text.replace("İ", "i").lower()
    return _pattern(inside, underscore).findall(text)


def with_parts(text: str) -> str:
    """A program text (NFC), its names followed by the words that they are made of.

    Names are read at their underscores and where capitals begin or end: ``_read_file``
    becomes ``_read_file read file``, ``HTTPError`` becomes ``HTTPError HTTP Error``.
    """

    def told(name: re.Match[str]) -> str:
        parts = [part for part in _parts(name[0]) if part]
        return name[0] if parts in ([], [name[0]]) else " ".join((name[0], *parts))

    return _names().sub(told, unicodedata.normalize("NFC", text))


@functools.cache
def _names() -> re.Pattern[str]:
    return re.compile(rf"[\w{marks()}{_JOINERS}]+")


def _parts(name: str) -> Iterator[str]:
    for word in name.split("_"):
        # `re` knows no class of the capitals of all scripts.
        begins = [
            i
            for i in range(1, len(word))
            if word[i].isupper()
            and (not word[i - 1].isupper() or word[i + 1 : i + 2].islower())
        ]
        yield from (word[i:j] for i, j in pairwise([0, *begins, len(word)]))


@functools.cache
def unspaced() -> str:
    """The characters of scripts without blanks between words, as of a class in `re`."""
    return "".join(f"{chr(low)}-{chr(high)}" for low, high in _UNSPACED)


@functools.cache
def _ascii_pattern(inside: str, underscore: bool) -> re.Pattern[str]:
    run = "[a-z0-9_]+" if underscore else "[a-z0-9]+"
    return re.compile(_joined(run, inside), re.ASCII)


@functools.cache
def _pattern(inside: str, underscore: bool) -> re.Pattern[str]:
    with_marks = marks()
    under = "" if underscore else "_"
    # A letter or digit of a script with blanks, then such letters, marks and joiners.
    run = (
        rf"[^\W{under}{unspaced()}]"
        rf"(?:[^\W{under}{unspaced()}]|(?![{unspaced()}])[{with_marks}]|[{_JOINERS}])*"
    )
    alone = rf"[{unspaced()}](?<=\w)[{with_marks}{_JOINERS}]*"
    return re.compile(f"{_joined(run, inside)}|{alone}")


def _joined(run: str, inside: str) -> str:
    return f"{run}(?:[{re.escape(inside)}]{run})*" if inside else run


@functools.cache
def marks() -> str:
    """All combining marks, which ``\\w`` does not hold, as of a class in `re`."""
    points = [
        point
        for point in range(0x300, 0x20000)
        if unicodedata.category(chr(point))[0] == "M"
    ]
    points += range(0xE0100, 0xE01F0)  # selectors of variants
    ranges: list[list[int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    assert points[-1] <= sys.maxunicode
    return "".join(f"{chr(low)}-{chr(high)}" for low, high in ranges)
