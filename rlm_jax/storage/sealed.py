"""JSON files that vouch for themselves: their content, and a digest over it.

A file holds one object. Its field ``checksum`` is the SHA-256 of the other fields, as
JSON with sorted keys. What is read is also held to the types that its reader needs.
"""

import errno
import hashlib
import json
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rlm_jax import characters
from rlm_jax.errors import UserError
from rlm_jax.storage import atomic

CHECKSUM = "checksum"

Made = TypeVar("Made")


class Maybe(NamedTuple):
    """The kind of a field that may be missing."""

    kind: Any


def write(
    path: str | os.PathLike, fields: Mapping[str, Any], *, indent: int | None = 1
) -> dict[str, Any]:
    """Writes the fields and their digest atomically; returns what `read` will give.

    Raises:
      ValueError: the fields are not plain JSON.
      OSError: the file cannot be written.
    """
    # As it is read back: keys are strings, tuples lists.
    plain = json.loads(characters.to_json(dict(fields)))
    # Without a line feed at the end, so that not even that can be cut off unseen.
    text = characters.to_json(sealed(plain), indent=indent)
    atomic.write_bytes(Path(path), characters.encode(text))
    return plain


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Plain JSON fields with their digest, in the place of one they had."""
    body = {field: x for field, x in fields.items() if field != CHECKSUM}
    return {**body, CHECKSUM: digest(body)}


def digest(fields: Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) of all fields but the digest itself."""
    body = {field: x for field, x in fields.items() if field != CHECKSUM}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read(
    path: str | os.PathLike,
    kinds: Mapping[str, Any],
    *,
    remedy: str,
    older: bool = False,
) -> dict[str, Any]:
    """The fields of a file, without their digest.

    Args:
      path: what `write` wrote.
      kinds: field -> what it has to be, as for `misfit`; there may be other fields.
      remedy: what to do about a damaged file, as the second half of a sentence.
      older: whether a file without a digest is read too: of a version that wrote none.

    Raises:
      UserError: the file cannot be read, was changed, or a field is of another type.
      OSError: there is no such file, nor can there be one of that name.
    """
    characters.check_file(path)
    try:
        fields = characters.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise
        raise damaged(path, error.strerror or "it cannot be read", remedy) from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, "it is not JSON", remedy) from error
    return unsealed(fields, kinds, path, remedy=remedy, older=older)


def unsealed(
    fields: Any,
    kinds: Mapping[str, Any],
    path: str | os.PathLike,
    *,
    remedy: str,
    older: bool = False,
) -> dict[str, Any]:
    """`read` of fields that were read already; ``path`` is named in the error."""
    if not isinstance(fields, dict):
        raise damaged(path, "it is no object of JSON", remedy)
    if CHECKSUM not in fields and not older:
        raise damaged(path, "it has no checksum", remedy)
    if CHECKSUM in fields and fields[CHECKSUM] != digest(fields):
        raise damaged(path, "its checksum is wrong", remedy)
    require(fields, kinds, path, remedy)
    return {field: x for field, x in fields.items() if field != CHECKSUM}


def damaged(path: str | os.PathLike, reason: str, remedy: str) -> UserError:
    """The error of a file that cannot be used."""
    return UserError(
        f"The file {characters.shown(str(path))} is damaged ({reason}); {remedy}."
    )


def require(
    value: Any, kind: Any, path: str | os.PathLike, remedy: str, name: str = ""
) -> None:
    """Raises the `damaged` file's error where a value in it is a `misfit`."""
    if wrong := misfit(value, kind, name):
        raise damaged(path, wrong, remedy)


def made_of(
    kind: Callable[..., Made],
    fields: Mapping[str, Any],
    path: str | os.PathLike,
    remedy: str,
) -> Made:
    """A dataclass of the fields that a file has of it.

    Raises:
      UserError: it has no such field, or one of another type than the default.
    """
    try:
        made = kind(**fields)
    except TypeError as error:
        raise damaged(path, str(error), remedy) from error
    for name in fields:
        own, value = getattr(kind, name, None), fields[name]
        if isinstance(own, int | float | str):
            require(value, type(own), path, remedy, name)
    return made


def misfit(value: Any, kind: Any, name: str = "") -> str | None:
    """Where a value is not of a kind, in words; None where it is.

    Args:
      value: plain JSON.
      kind: a type, ``list[kind]``, ``dict[str, kind]``, a union of types, Any, or
        {field: kind} for an object that has these fields, if not `Maybe`. A whole
        number is a float, but a truth value is no number, nor is one that no float is.
      name: of the value, for the words.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, Mapping):
        if not isinstance(value, dict):
            return f"{name or 'it'} is no object"
        for field, of in kind.items():
            path = f"{name}.{field}" if name else field
            needed = not isinstance(of, Maybe)
            if field not in value and needed:
                return f"{path} is missing"
            of = of if needed else of.kind
            if field in value and (wrong := misfit(value[field], of, path)):
                return wrong
        return None
    if origin in (list, dict) and isinstance(value, origin):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        found = (misfit(x, inner[-1], f"{name}[{key!r}]") for key, x in items)
        return next((wrong for wrong in found if wrong), None)
    if origin in (types.UnionType, typing.Union):
        tried = [misfit(value, one, name) for one in inner]
        return None if None in tried else f"{name} is {_shown(value)}"
    if kind is Any:
        return None
    fits = isinstance(value, origin or kind)
    if kind in (int, float):
        fits = isinstance(value, int | kind) and not isinstance(value, bool)
        fits = fits and abs(value) <= sys.float_info.max  # nor NaN
    if fits:
        return None
    called = getattr(origin or kind, "__name__", str(kind))
    return f"{name} is {_shown(value)}, no {called}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
