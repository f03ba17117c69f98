"""Where passages come from: BEIR's folders, DPR's file, lines of JSON, corpora of text.

Each reader returns what tells two of its kind apart, a value for `cache.fingerprint`,
and a stream of passages.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlm_jax import characters
from rlm_jax.data import corpora, docstrings, files, names
from rlm_jax.data.splits import Document
from rlm_jax.errors import UserError

PASSAGE_WORDS = 100  # Karpukhin et al. 2020, section 4.1

# What white space parts, or a character of a script that has none.
WORD = rf"(?:[{characters.unspaced()}]|[^\s{characters.unspaced()}]++)"
_WORDS = re.compile(rf"{WORD}(?:\s*+{WORD}){{0,{PASSAGE_WORDS - 1}}}+")


class Passage(NamedTuple):
    """A text with an id that is unique in its collection; the title may be empty."""

    id: str
    title: str
    text: str

    @property
    def joined(self) -> str:
        """Title and text as one text, which is what BM25 indexes."""
        return f"{self.title} {self.text}" if self.title else self.text


def stdlib() -> tuple[Any, Iterator[Passage]]:
    """The documented functions and classes of the running Python."""
    return docstrings.fingerprint(), (
        Passage(d.id, d.module, d.source) for d in docstrings.extract()
    )


def beir(folder: Path) -> tuple[Any, Iterator[Passage]]:
    """``corpus.jsonl[.gz]`` of a folder in BEIR's form."""
    file = files.either(folder / "corpus.jsonl")
    return files.digest(file), _jsonl_passages(file, "")


def jsonl(path: Path) -> tuple[Any, Iterator[Passage]]:
    """A file of JSON lines, or the files of a folder in the order of their names."""
    if not os.path.isdir(path):
        return files.digest(path), _jsonl_passages(path, "")
    paths, _ = files.listed(path, ".jsonl")
    if not paths:
        raise UserError(f"The folder {path} holds no .jsonl or .jsonl.gz files.")
    stems = [files.stem(path, ".jsonl") for path in paths]
    content = [[s, files.digest(p)] for s, p in zip(stems, paths, strict=True)]
    prefixes = [f"{stem}/" if len(paths) > 1 else "" for stem in stems]
    return content, (
        passage
        for file, prefix in zip(paths, prefixes, strict=True)
        for passage in _jsonl_passages(file, prefix)
    )


def _jsonl_passages(path: Path, prefix: str) -> Iterator[Passage]:
    for number, record in files.json_records(path):
        id_ = record.get("_id")
        id_ = record.get("id") if id_ is None else id_
        title = record.get("title") or ""
        text = record.get("text")
        if not isinstance(text, str) or not isinstance(title, str):
            raise files.bad_record(path, number, 'a JSON object with a string "text"')
        if id_ is not None and not isinstance(id_, str | int):
            raise files.bad_record(path, number, 'a JSON object with a plain "id"')
        yield Passage(f"{prefix}{number}" if id_ is None else str(id_), title, text)


def dpr(path: Path) -> tuple[Any, Iterator[Passage]]:
    """DPR's file of passages: id, text and title by tabs, with or without a header."""
    return files.digest(path), _dpr_passages(path)


def _dpr_passages(path: Path) -> Iterator[Passage]:
    for number, row in files.rows(path):
        if number == 1 and row[:1] == ["id"]:
            continue
        if len(row) != 3:
            raise files.bad_record(path, number, "an id, a text and a title, by tabs")
        id_, text, title = row
        yield Passage(id_, title, text)


def corpus(
    name: str, cache_dir: str | os.PathLike | None = None
) -> tuple[Any, Iterator[Passage]]:
    """The documents of one split of a corpus, in disjoint passages of 100 words.

    Words are what white space parts; of scripts that have none, characters.

    Arguments:
      name: what `corpora.load` takes; ``#SPLIT`` after it names a split, train without.
      cache_dir: where the corpus is kept.

    Raises:
      UserError: an unknown corpus or split.
    """
    name, split = names.with_split(name)
    split = split or "train"
    loaded = corpora.load(name, cache_dir=cache_dir)
    content = [loaded.fingerprint, split, PASSAGE_WORDS, 2]  # 2: which words
    return content, _corpus_passages(loaded.documents(split))


def _corpus_passages(documents: Iterable[Document]) -> Iterator[Passage]:
    # Hashes, for a set of names would hold every title of Wikipedia. Two labels of one
    # hash cost the second a longer one, nothing else.
    seen: set[bytes] = set()
    for number, document in enumerate(documents, 1):
        label = document.name
        while (key := _hash(label)) in seen:
            label = f"{label}#{number}"
        seen.add(key)
        for part, match in enumerate(_WORDS.finditer(document.text), 1):
            yield Passage(f"{label}#{part}", document.name, match[0])


def _hash(label: str) -> bytes:
    return hashlib.blake2b(label.encode(errors="replace"), digest_size=8).digest()
