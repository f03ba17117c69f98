"""Damage of files, drawn by hypothesis: of JSON at one place, of bytes anywhere."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import hypothesis
from hypothesis import strategies as st

DEEP = "[" * 100_000  # nested more deeply than Python goes
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 2**31 - 1, 2**31, 2**63, 10**20, 10**400),
    *(0.0, 0.5, -0.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "0",
        "a",
        "\0",
        "\x1b[2J",
        "\u202e",
        "\ud800",
        "a/b",
        "../..",
        "é" * 300,
    ),
    *([], {}, [[]], [None], [0], ["a"], {"": None}, {"a": 0}, {"content": 3}),
)
"""Values that a field may not expect."""

_TOKENS = (
    *(b"", b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r\n", b"\t", b" "),
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"'", b"(", b"-", b"1e999"),
    *(b"NaN", b"null", b"true", b"99999999999999999999", b"\\ud800", b"\x1b[2J"),
    *(b"9" * 5000, b"(" * 500, b"[" * 5000),
    *(b"\xff" * 8, b"\x80" + b"\0" * 7, b"\xe2\x80\xae", b"query-id\tcorpus-id\tscore"),
)


def _places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    inner = value.items() if isinstance(value, dict) else (
        enumerate(value) if isinstance(value, list) else ()
    )  # fmt: skip
    for key, x in inner:
        yield from _places(x, (*path, key))


@st.composite
def changed_json(draw: st.DrawFn, seed: Any) -> Any:
    """The value with one or two of its places changed, removed or named otherwise."""
    value = copy.deepcopy(seed)
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(value))
        *above, last = draw(st.sampled_from(places)) or (None,)
        if last is None:  # the whole
            value = copy.deepcopy(draw(st.sampled_from([value, value, *STRANGE])))
            continue
        holder = value
        for key in above:
            holder = holder[key]
        action = draw(st.sampled_from(("replace", "replace", "remove", "double")))
        if action == "remove":
            del holder[last]
        elif action == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        elif action == "double":
            holder[f"{last}s"] = holder[last]
        else:
            holder[last] = copy.deepcopy(draw(st.sampled_from(STRANGE)))
    return value


def spelled(value: Any) -> bytes:
    """JSON as Python writes it, NaN and half characters among it."""
    return json.dumps(value).encode()


@st.composite
def changed_bytes(draw: st.DrawFn, seed: bytes) -> bytes:
    """The bytes with one to three of: a cut, a change, an insertion, a repetition."""
    data = seed
    for _ in range(draw(st.integers(1, 3))):
        # The beginning of a file of arrays says what the rest is.
        at = draw(st.integers(0, min(len(data), 400)) | st.integers(0, len(data)))
        end = draw(st.integers(at, min(len(data), at + 40)))
        action = draw(
            st.sampled_from(("cut", "flip", "insert", "write", "end", "twice"))
        )
        if action == "cut":
            data = data[:at] + data[end:]
        elif action == "end":
            data = data[:at]
        elif action == "twice":
            data = data[:end] + data[at:]
        elif action == "flip":
            byte = bytes([draw(st.integers(0, 255))])
            data = data[:at] + byte + data[at + 1 :]
        else:
            token = draw(st.sampled_from(_TOKENS) | st.binary(max_size=8))
            data = data[:at] + token + data[at + len(token) * (action == "write") :]
    return data


def examples(count: int) -> hypothesis.settings:
    """So many, without a database of those that failed, and the same ones each time."""
    return hypothesis.settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),  # type: ignore
    )
