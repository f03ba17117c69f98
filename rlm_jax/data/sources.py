"""Where documents come from: files of text, files of JSON lines, the running Python."""

import ast
import hashlib
import itertools
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from rlm_jax.data import files, splits
from rlm_jax.data.splits import Document, Source
from rlm_jax.errors import UserError
from rlm_jax.storage import cache

# " = Title = " is a page of WikiText; " = = Section = = " is a part of one.
_TITLE = re.compile(r"\s*= (?!= )(.*\S) =\s*")


def text(path: Path) -> Source:
    """One text file, or a folder of .txt and .txt.gz files."""
    return splits.from_files(path, ".txt", _text_documents, _split_lines)


def jsonl(path: Path) -> Source:
    """One file, or a folder of .jsonl and .jsonl.gz: ``{"text": .., "title": ..}``."""
    return splits.from_files(path, ".jsonl", _jsonl_documents, _whole)


def stdlib() -> Source:
    """The running Python's standard library: one document per module and help topic.

    Tests and installed packages are left out. A document's split follows from the
    SHA-256 of its name (90 : 5 : 5), so it is the same on every machine.
    """
    documents = list(stdlib_documents())
    if not documents:
        raise UserError(
            "This Python's standard library has no source files to read: use "
            "text:PATH with a text of your own."
        )
    by_split: dict[str, list[Document]] = {name: [] for name in splits.NAMES}
    for document in documents:
        by_split[stdlib_split(document.name)].append(document)
    return Source(
        tuple(by_split), by_split.__getitem__, cache.fingerprint("stdlib", documents)
    )


def stdlib_split(name: str) -> str:
    """The split of a module of the standard library, by the SHA-256 of its name."""
    digest = hashlib.sha256(name.encode()).digest()
    percent = int.from_bytes(digest[:8], "big") % 100
    return "train" if percent < 90 else "validation" if percent < 95 else "test"


def stdlib_documents() -> Iterator[Document]:
    """The modules of the running Python by name, and its help topics."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if any(
            part in ("test", "tests", "site-packages", "dist-packages", "__pycache__")
            # Build settings of this very machine.
            or part.startswith(("config-", "_sysconfigdata"))
            for part in parts
        ):
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        try:
            with tokenize.open(path) as file:
                content = file.read()
        except (SyntaxError, UnicodeDecodeError, OSError):
            continue  # a module that this Python could not import either
        if name == "pydoc_data.topics":
            yield from _help_topics(content)
        elif content.strip():
            yield Document(name, content)


def _help_topics(source: str) -> Iterator[Document]:
    # The module is one literal that holds the language reference, escaped; as text it
    # is prose, and each topic stands for itself.
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for topic, content in ast.literal_eval(node.value).items():
                yield Document(f"pydoc_data.topics.{topic}", content)


def _split_lines(document: Document) -> list[str]:
    return re.findall(r"[^\n]*\n|[^\n]+", document.text)


def _whole(document: Document) -> list[str]:
    return [document.text]


def _text_documents(stem: str, path: Path) -> Iterator[Document]:
    """The pages of a WikiText file, or the whole file; joined they are its text."""
    pages: bool | None = None  # unknown before the first line with something on it
    name, lines, blank_before = stem, [], True
    for line, following in itertools.pairwise(itertools.chain(files.lines(path), [""])):
        # A title stands alone: formulas and scores also look like " = 2 - 1 = ".
        title = _TITLE.fullmatch(line) if blank_before else None
        title = None if following.strip() else title
        blank_before = not line.strip()
        if pages and title:
            yield Document(name, "".join(lines))
            lines = []
        if pages is None and not blank_before:
            pages = title is not None
        if pages and title:
            name = title[1]
        lines.append(line)
    if pages is None:
        raise UserError(f"The file {path} has no text in it: give a file with text.")
    yield Document(name, "".join(lines))


def _jsonl_documents(stem: str, path: Path) -> Iterator[Document]:
    empty = True
    for number, record in files.json_records(path):
        content = record.get("text")
        if not isinstance(content, str):
            raise files.bad_record(path, number, 'a JSON object with a string "text"')
        labels = (record.get(field) for field in ("title", "name", "id"))
        name = next((label for label in labels if label is not None), None)
        yield Document(f"{stem}/{number}" if name is None else str(name), content)
        empty = False
    if empty:
        raise UserError(f"The file {path} has no records: give one JSON object a line.")
