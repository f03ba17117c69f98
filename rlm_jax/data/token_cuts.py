"""The first or the last tokens of long texts, without tokenizing all of them.

A text is cut where white space begins, so that no word is cut, and the cut is moved
until there are more tokens than are kept. So the tokens are those of the whole text,
whatever stands in it: long words, runs of blanks, characters that make no token.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Row = TypeVar("Row")

_PER_TOKEN = 16  # characters a kept token, to begin with
_BLANK = re.compile(r"(?<=\S)\s")


def encoded(
    encode: Callable[[Any], list[Row]],
    texts: Sequence[str],
    count: int,
    *,
    enough: Callable[[Row], bool],
    last: bool = False,
    numbered: bool = False,
) -> list[Row]:
    """What ``encode`` makes of each text, as far as ``count`` tokens depend on it.

    Args:
      encode: texts -> a row for each.
      texts: N texts.
      count: tokens that are kept.
      enough: whether a row that was made of a part of its text has more tokens than
        are kept.
      last: whether the last tokens are kept, and not the first ones.
      numbered: whether ``encode`` takes pairs (number of the text, text).

    Returns:
      N rows.
    """
    size = _PER_TOKEN * count
    parts = [part(text, size, last=last) for text in texts]
    rows = encode(list(enumerate(parts)) if numbered else parts)
    while True:
        short = [
            i
            for i, (row, text) in enumerate(zip(rows, texts, strict=True))
            if len(parts[i]) < len(text) and not enough(row)
        ]
        if not short:
            return rows
        size *= 8
        for i in short:
            parts[i] = part(texts[i], size, last=last)
        again = [(i, parts[i]) if numbered else parts[i] for i in short]
        for i, row in zip(short, encode(again), strict=True):
            rows[i] = row


def part(text: str, size: int, *, last: bool = False) -> str:
    """The first (or last) ``size`` characters and what is left of a word there."""
    if len(text) <= size:
        return text
    if not last:
        found = _BLANK.search(text, size - 1)
        return text if found is None else text[: found.start()]
    start = len(text) - size
    while start > 0 and not (text[start].isspace() and not text[start - 1].isspace()):
        start -= 1
    return text[start:]


def first_tokens(encode: Callable[[str], Any], text: str, count: int) -> Any:
    """The first ``count`` tokens of a text, by a function from a text to its tokens."""
    (row,) = encoded(
        lambda texts: [encode(x) for x in texts],
        [text],
        count,
        enough=lambda tokens: len(tokens) > count + 1,
    )
    return row[:count]
