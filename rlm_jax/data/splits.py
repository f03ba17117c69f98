"""Which text is training, validation and test: by files, by whole documents, by lines.

A folder whose every file belongs to a split is divided as it is. Of any other the
documents are divided by a hash of their text: none is in two splits, nor is a copy of
it. A text of fewer than three documents gives its last lines away.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlm_jax import characters
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
    facts: dict[str, Any] = {}  # of a text of one's own: how it was divided, its files


NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_WORDS = "|".join(sorted((w for names in NAMES.values() for w in names), reverse=True))
# "train", "test.raw", "valid-00000-of-00002"; not "test plan", "training-camp".
_NAMED = re.compile(
    rf"({_WORDS})(?:[._-]?\d+|[._-](?:of|part|shard|raw|tokens|set|split|data|[a-z])"
    r"\d*)*",
    re.IGNORECASE,
)
_ABOUT = ("readme", "license", "licence", "copying", "changelog")  # of the folder
_HELD = 20  # one document in so many is for validation, and one for test

_Reader = Callable[[str, Path], Iterator[Document]]
_Pieces = Callable[[Document], list[str]]


class _Found(NamedTuple):
    by_split: dict[str, list[Path]]
    divided: bool  # whether the files say to which split they belong
    skipped: dict[str, list[str]]  # reason -> names of files


def from_files(path: Path, suffix: str, read: _Reader, pieces: _Pieces) -> Source:
    """The documents of a file, or of the files of a folder, by split.

    Args:
      path: of a file or a folder.
      suffix: of the files, as ``.txt``; they may be compressed.
      read: (name, file) -> its documents.
      pieces: a document's lines, or whatever a short text is divided by.

    Raises:
      UserError: there is no such path, no training text, or a file is empty.
    """
    found = _find(path, suffix)
    name = lambda file: files.stem(file, suffix)
    identity = [
        [split, name(file), files.digest(file)]
        for split, paths in found.by_split.items()
        for file in paths
    ]

    def documents(split: str) -> Iterator[Document]:
        for file in found.by_split[split]:
            yield from read(name(file), file)

    key = cache.fingerprint(read.__name__, identity)
    facts = {
        "files_read": sum(map(len, found.by_split.values())),
        "files_skipped": found.skipped,
    }
    if found.divided:
        return Source(
            tuple(found.by_split), documents, key, {"divided": "by files", **facts}
        )
    hashes = np.fromiter(
        (_hash(document.text) for document in documents("train")), np.uint64
    )
    texts = np.unique(hashes)
    if len(texts) < 3:
        cut = _by_lines(documents, pieces, key)
        return cut._replace(facts={"divided": "by lines", **facts})
    whole = _by_documents(documents, hashes, texts, key)
    return whole._replace(facts={"divided": "by documents", **facts})


def split_of(stem: str) -> str | None:
    """The split that a file's or a folder's name says it belongs to."""
    named = _NAMED.fullmatch(stem)
    if named is None:
        return None
    word = named[1].lower()
    return next(split for split, names in NAMES.items() if word in names)


def _find(path: Path, suffix: str) -> _Found:
    if not os.path.exists(path):
        raise UserError(f"There is no corpus at {path}: check the path.")
    if path.is_file():
        if split_of(files.stem(path, suffix)) == "train":
            siblings, skipped = _by_name(files.listed(path.parent, suffix)[0], suffix)
            if siblings.get("train") == [path]:
                return _Found(siblings, len(siblings) > 1, skipped)
        return _Found({"train": [path]}, False, {})
    characters.check_file(path)
    texts, skipped = files.listed(path, suffix)
    others = [f for f in texts if split_of(files.stem(f, suffix)) is None]
    about = [f for f in others if f.name.lower().startswith(_ABOUT)]
    folders = {p: split_of(p.name) for p in sorted(path.iterdir()) if p.is_dir()}
    inside = {p: files.listed(p, suffix)[0] for p, split in folders.items() if split}
    inside = {p: found for p, found in inside.items() if found}
    named = (len(texts) > len(others) or bool(inside)) and len(others) == len(about)
    if not named and inside and any(folders[p] == "train" for p in inside):
        raise UserError(
            f"The folder {path} has a folder of training text and files that belong to "
            f"no split, as {others[0].name}: move them into train, or elsewhere."
        )
    if not named and texts:
        return _Found({"train": texts}, False, skipped)
    belonging = [f for f in texts if f not in others]
    by_split, copies = _by_name(belonging, suffix)
    for folder, found in inside.items():
        by_split.setdefault(str(folders[folder]), []).extend(found)
    if "train" not in by_split:
        raise UserError(
            f"The folder {path} holds no training text: name a file train{suffix}"
            f", or put {suffix} or {suffix}.gz files there."
        )
    skipped |= copies
    if about:
        skipped["about the folder"] = [file.name for file in about]
    ordered = {name: by_split[name] for name in NAMES if name in by_split}
    return _Found(ordered, len(ordered) > 1, skipped)


def _by_name(
    paths: list[Path], suffix: str
) -> tuple[dict[str, list[Path]], dict[str, list[str]]]:
    """Files named after a split; "valid.raw" only where there is no plain "valid"."""
    by_split: dict[str, list[Path]] = {}
    skipped: dict[str, list[str]] = {}
    for split in NAMES:
        named = [f for f in paths if split_of(files.stem(f, suffix)) == split]
        raw = [f for f in named if files.stem(f, suffix).lower().endswith(".raw")]
        if named:
            by_split[split] = [f for f in named if f not in raw] or named
        if len(raw) < len(named) and raw:
            skipped.setdefault("the raw copy of another", []).extend(
                file.name for file in raw
            )
    return by_split, skipped


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.strip().encode()).digest()[:8], "big")


def _by_documents(
    documents: Callable[[str], Iterator[Document]],
    hashes: np.ndarray,
    texts: np.ndarray,
    key: str,
) -> Source:
    """Whole documents: those of the smallest hashes are test, the next validation.

    Args:
      hashes: uint64 [D], of each document.
      texts: the distinct ones, ascending.
    """
    held = max(1, len(texts) // _HELD)
    ranks = np.searchsorted(texts, hashes)
    numbers = np.where(ranks < held, 2, np.where(ranks < 2 * held, 1, 0))

    def part(split: str) -> Iterator[Document]:
        wanted = list(NAMES).index(split)
        for number, document in zip(numbers, documents("train"), strict=True):
            if number == wanted:
                yield document

    return Source(tuple(NAMES), part, cache.fingerprint(key, "whole documents"))


def _by_lines(
    documents: Callable[[str], Iterator[Document]], pieces: _Pieces, key: str
) -> Source:
    """Keeps the last 5% + 5% of the lines (or records) for validation and test."""
    total = sum(len(pieces(document)) for document in documents("train"))
    held = total // _HELD
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
