"""Seeded damage to files: bytes that flip or are gone, and JSON of other content."""

import json
import pathlib
import random
from collections.abc import Iterator
from typing import Any

OTHERS = (None, True, -7, 1e300, "other", [], {}, [1], {"a": 1})


def of_bytes(data: bytes, seed: int, flips: int) -> Iterator[tuple[str, bytes | None]]:
    """(what was done, the damaged content); None: the file is gone."""
    rng = random.Random(seed)
    yield "gone", None
    yield "empty", b""
    yield "another file", b"\x80\x00 no file of ours"
    if not data:
        return
    for at in (rng.randrange(len(data)), len(data) - 1):
        yield f"cut at {at}", data[:at]
    for at in rng.choices(range(len(data)), k=flips):
        flipped = bytearray(data)
        flipped[at] ^= 1 << rng.randrange(8)
        yield f"byte {at} is {flipped[at]}", bytes(flipped)


def of_json(content: Any, seed: int, count: int) -> Iterator[tuple[str, Any]]:
    """(what was done, other content): numbers, types, fields that lack, empty lists."""
    rng = random.Random(seed)
    places = list(_places(content))
    for place in rng.sample(places, min(count, len(places))):
        value = _at(content, place)
        for other in _others(value, rng):
            yield f"{place} is {other!r}", _with(content, place, other)
        if place:
            yield f"{place} is gone", _with(content, place)


def texts(path: pathlib.Path, seed: int, flips: int, count: int):
    """All damage to one file: (what was done, its content or None)."""
    data = path.read_bytes()
    yield from of_bytes(data, seed, flips)
    if path.suffix == ".json":
        for done, content in of_json(json.loads(data), seed, count):
            yield done, json.dumps(content).encode()


def _others(value: Any, rng: random.Random) -> Iterator[Any]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield 2 * value + 1
    if isinstance(value, list | dict) and value:
        yield type(value)()
    yield rng.choice([x for x in OTHERS if type(x) is not type(value)])


def _places(content: Any, place: tuple = ()) -> Iterator[tuple]:
    yield place
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from _places(value, (*place, key))


def _at(content: Any, place: tuple) -> Any:
    for key in place:
        content = content[key]
    return content


def _with(content: Any, place: tuple, *value: Any) -> Any:
    """A copy with another value at a place, or without it."""
    if not place:
        return value[0]
    copy = json.loads(json.dumps(content))
    holder = _at(copy, place[:-1])
    if value:
        holder[place[-1]] = value[0]
    else:
        del holder[place[-1]]
    return copy
