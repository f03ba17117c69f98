"""The documented functions and classes of the running Python: questions and passages.

The first paragraph of a docstring asks for the code that it describes. Passages hold
no docstrings, neither their own nor those of methods inside, so that no question is
part of a passage.
"""

import ast
from collections.abc import Iterator
from typing import NamedTuple

from rlm_jax.data import sources
from rlm_jax.errors import UserError
from rlm_jax.storage import cache

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_FEWEST_WORDS = 3


class Documented(NamedTuple):
    """A function, method or class with a docstring."""

    id: str  # module and qualified name; "#2" and so on where it is defined again
    module: str
    question: str  # the docstring's first paragraph, on one line
    source: str  # as it stands, without docstrings


def extract() -> Iterator[Documented]:
    """Every function and class whose docstring starts with three words or more.

    In the order of module names and lines. Modules that this Python cannot parse are
    left out.

    Raises:
      UserError: the standard library has no source files.
    """
    empty = True
    for document in sources.stdlib_documents():
        if document.name.startswith("pydoc_data."):
            continue
        for documented in of_module(document.name, document.text):
            empty = False
            yield documented
    if empty:
        raise UserError(
            "This Python's standard library has no source files to read: use passages "
            "of your own, such as jsonl:FILE."
        )


def fingerprint() -> str:
    """Tells the standard libraries of two Pythons apart by their content."""
    return cache.fingerprint("docstrings", list(sources.stdlib_documents()))


def of_module(name: str, source: str) -> Iterator[Documented]:
    """The documented functions and classes of one module, nested ones included."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    lines = source.encode().splitlines(keepends=True)  # columns count UTF-8 bytes
    times: dict[str, int] = {}
    for qualified, node in _definitions(tree, name):
        paragraph = (ast.get_docstring(node) or "").partition("\n\n")[0]
        question = " ".join(paragraph.split())
        if len(question.split()) < _FEWEST_WORDS:
            continue
        times[qualified] = times.get(qualified, 0) + 1
        again = f"#{times[qualified]}" if times[qualified] > 1 else ""
        yield Documented(
            qualified + again, name, question, _without_docstrings(node, lines)
        )


def _definitions(
    node: ast.AST, name: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _DEFINITIONS):
            yield f"{name}.{child.name}", child
            yield from _definitions(child, f"{name}.{child.name}")
        else:
            yield from _definitions(child, name)


def _without_docstrings(
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, lines: list[bytes]
) -> str:
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
    kept = dict(enumerate(lines[: node.end_lineno]))
    for inner in ast.walk(node):
        if isinstance(inner, _DEFINITIONS) and ast.get_docstring(inner) is not None:
            docstring = inner.body[0]
            low, high = docstring.lineno - 1, (docstring.end_lineno or 0) - 1
            head = kept[low][: docstring.col_offset]
            tail = kept[high][docstring.end_col_offset :]
            for line in range(low, high + 1):
                del kept[line]
            if (head + tail).strip():  # something else stands on the line
                kept[low] = head + tail
    code = [kept[line] for line in sorted(kept) if line >= first]
    margin = min(len(line) - len(line.lstrip()) for line in code if line.strip())
    return b"".join(line[margin:] or b"\n" for line in code).decode().rstrip()
