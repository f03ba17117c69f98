"""What each field of a configuration is for, as its own source says it."""

import ast
import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Field(NamedTuple):
    """One field of a preset."""

    path: str  # "train.steps"
    value: Any
    told: str  # a line about it, and its choices


def fields(config: Any, path: str = "") -> Iterator[Field]:
    """Every field of a configuration, those of its parts among them."""
    told = lines_of(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{name}.")
        else:
            yield Field(name, value, told.get(field.name, ""))


@functools.cache
def lines_of(kind: type) -> Mapping[str, str]:
    """Field -> its comment, or what the docstring says of it, and its choices."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _of_class(base)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        line = " ".join(found.get(field.name, "").split())
        choices = _choices(hints[field.name])
        if choices and not all(word in line for word in choices):
            line = f"{line}; {', '.join(choices)}" if line else ", ".join(choices)
        found[field.name] = line
    return found


def _choices(hint: Any) -> list[str]:
    is_literal = typing.get_origin(hint) is typing.Literal
    return [str(x) for x in typing.get_args(hint)] if is_literal else []


def _of_class(kind: type) -> dict[str, str]:
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return {}
    lines = inspect.cleandoc("\n" + source).split("\n")
    (node,) = ast.parse("\n".join(lines)).body
    assert isinstance(node, ast.ClassDef)
    docstring = ast.get_docstring(node) or ""
    found = {}
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign):
            continue
        assert isinstance(statement.target, ast.Name)
        name, last = statement.target.id, statement.end_lineno or statement.lineno
        own = [_comment(x) for x in lines[statement.lineno - 1 : last]]
        above = statement.lineno - 2
        before: list[str] = []
        while above >= 0 and lines[above].strip().startswith("#"):
            before.insert(0, lines[above].strip().lstrip("# "))
            above -= 1
        told = " ".join(filter(None, own)) or " ".join(before)
        found[name] = told or _in_docstring(docstring, name)
    return found


def _comment(line: str) -> str:
    match = re.search(r"""(?:^|[^"'#])  ?# (.*)$""", line)
    return "" if match is None or match[1].startswith(("type:", "noqa", "fmt")) else (
        match[1]
    )  # fmt: skip


def _in_docstring(docstring: str, name: str) -> str:
    """Of "Attributes:" in a docstring, the entry of a field."""
    match = re.search(rf"^  +{name}: (.*(?:\n {{6,}}.*)*)", docstring, re.MULTILINE)
    if match is not None:
        return match[1]
    for sentence in re.split(r"(?<=[.;])\s+", docstring):
        if f"``{name}``" in sentence:
            return sentence
    return ""
