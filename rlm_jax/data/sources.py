"""Where documents come from: files of text, files of JSON lines, the running Python.

A `Source` is the names of its splits, a function that streams the documents of one of
them, and a fingerprint of the bytes behind it.
"""

import ast
import hashlib
import itertools
import json
import re
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rlm_jax.data import files
from rlm_jax.errors import UserError
from rlm_jax.storage import cache


class Document(NamedTuple):
    """A text with a name; names need not be unique."""

    name: str
    text: str


class Source(NamedTuple):
    """Documents by split, streamed, and what tells two sources apart."""

    splits: tuple[str, ...]
    documents: Callable[[str], Iterable[Document]]
    fingerprint: str


_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_TEXT_SUFFIXES = (".txt", ".txt.gz")
_JSONL_SUFFIXES = (".jsonl", ".jsonl.gz")
# " = Title = " is a page of WikiText; " = = Section = = " is a part of one.
_TITLE = re.compile(r"\s*= (?!= )(.*\S) =\s*")


def text(path: Path) -> Source:
    """One text file, or a folder of .txt and .txt.gz files."""
    return _from_files(path, _TEXT_SUFFIXES, _text_documents, _split_lines)


def jsonl(path: Path) -> Source:
    """One file, or a folder of .jsonl and .jsonl.gz: ``{"text": .., "title": ..}``."""
    return _from_files(path, _JSONL_SUFFIXES, _jsonl_documents, _whole)


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
    by_split: dict[str, list[Document]] = {name: [] for name in _SPLIT_NAMES}
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


# --- files ---------------------------------------------------------------------------

_Reader = Callable[[str, Path], Iterator[Document]]
_Pieces = Callable[[Document], list[str]]


def _from_files(
    path: Path, suffixes: tuple[str, ...], read: _Reader, pieces: _Pieces
) -> Source:
    """Finds the files of each split, or cuts them off the end of the only one."""
    by_split = _find_splits(path, suffixes)
    identity = [
        [split, _stem(file), files.digest(file)]
        for split in by_split
        for file in by_split[split]
    ]

    def documents(split: str) -> Iterator[Document]:
        for file in by_split[split]:
            yield from read(_stem(file), file)

    key = cache.fingerprint(read.__name__, identity)
    if len(by_split) > 1:
        return Source(tuple(by_split), documents, key)
    return _cut(documents, pieces, key)


def _find_splits(path: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    if not path.exists():
        raise UserError(f"There is no corpus at {path}: check the path.")
    if path.is_file():
        if _split_of(_stem(path)) == "train":
            siblings = _by_name(_files(path.parent, suffixes))
            if siblings.get("train") == [path]:
                return siblings
        return {"train": [path]}
    files = _files(path, suffixes)
    by_split = _by_name(files)
    for folder in sorted(p for p in path.iterdir() if p.is_dir()):
        split = _split_of(folder.name)
        if split and (inside := _files(folder, suffixes)):
            by_split.setdefault(split, []).extend(inside)
    if not by_split and files:
        return {"train": files}
    if "train" not in by_split:
        raise UserError(
            f"The folder {path} holds no training text: name a file train{suffixes[0]}"
            f", or put {' or '.join(suffixes)} files there."
        )
    return {name: by_split[name] for name in _SPLIT_NAMES if name in by_split}


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.name.endswith(suffixes))
    # A file beside its own compressed copy is one text, not two.
    return [f for f in files if f.with_suffix("") not in files or f.suffix != ".gz"]


def _by_name(files: list[Path]) -> dict[str, list[Path]]:
    """Files named after a split; "valid.raw" only where there is no plain "valid"."""
    by_split: dict[str, list[Path]] = {}
    for split in _SPLIT_NAMES:
        named = [f for f in files if _split_of(_stem(f)) == split]
        if named:
            plain = [f for f in named if not _stem(f).endswith(".raw")]
            by_split[split] = plain or named
    return by_split


def _split_of(stem: str) -> str | None:
    word = re.split(r"[^a-z]", stem.lower(), maxsplit=1)[0]
    return next((s for s, names in _SPLIT_NAMES.items() if word in names), None)


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name.removesuffix(".txt").removesuffix(".jsonl")


def _cut(
    documents: Callable[[str], Iterator[Document]], pieces: _Pieces, key: str
) -> Source:
    """Keeps the last 5% + 5% of the lines (or records) for validation and test."""
    total = sum(len(pieces(document)) for document in documents("train"))
    held = total // 20
    if held == 0:
        return Source(("train",), documents, key)
    ends = {"train": total - 2 * held, "validation": total - held, "test": total}
    starts = {"train": 0, "validation": ends["train"], "test": ends["validation"]}

    def part(split: str) -> Iterator[Document]:
        position = 0
        for document in documents("train"):
            lines = pieces(document)
            low = max(starts[split] - position, 0)
            high = max(ends[split] - position, 0)
            position += len(lines)
            if kept := lines[low:high]:
                yield Document(document.name, "".join(kept))

    return Source(tuple(ends), part, key)


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
    for number, line in enumerate(files.lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            content = record["text"]
            if not isinstance(content, str):
                raise TypeError
            content.encode()  # JSON can spell half a character, which no file can hold
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'Line {number} of {path} is not a JSON object with a string "text": '
                "correct or remove it."
            ) from error
        labels = (record.get(field) for field in ("title", "name", "id"))
        name = next((label for label in labels if label is not None), None)
        yield Document(f"{stem}/{number}" if name is None else str(name), content)
        empty = False
    if empty:
        raise UserError(f"The file {path} has no records: give one JSON object a line.")
