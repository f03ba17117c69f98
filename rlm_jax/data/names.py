"""Names of texts, passages and questions: taken apart and resolved in one place.

A name is a word (stdlib), ``KIND:PATH``, ``corpus:NAME`` or ``corpus:NAME#SPLIT``, or
several joined by ``+``. `resolved` makes its paths whole, and that is what a run
stores: it may be opened from another folder than it was made in.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CORPORA = ("text", "jsonl")
PASSAGES = ("beir", "dpr", "google_re", "jsonl", "squad", "trex")
QUESTIONS = ("beir", "dpr", "fid", "google_re", "jsonl", "squad", "trex")
CORPUS = "corpus"

FIELDS = frozenset(
    "corpus passages questions validation tokenizer retriever memory_passages "
    "foreign_passages more names add".split()
)
"""Fields of configurations that hold such names."""

FOLDERS = frozenset(
    "retriever model encoder question_encoder baseline params_from init_from "
    "continue_from reader_from retriever_from".split()
)
"""Fields that may hold the name of a run's or a model's folder."""

_OTHERS = ("hf", "trec", "agn", "sst2", "mr", "subj", "rte", "cb")
_OF_PATHS = frozenset({*CORPORA, *PASSAGES, *QUESTIONS, *_OTHERS})
_KINDS = "|".join((*PASSAGES, CORPUS))
_JOINT = re.compile(rf"\+(?=stdlib(?:\+|$)|(?:{_KINDS}):)")
_SPLIT = re.compile(r"(.+)#([a-z]+)", re.DOTALL)


def parts(name: str) -> list[str]:
    """The names of several collections joined by ``+``.

    Only a ``+`` before one of their kinds joins, so a path may hold others.
    """
    return _JOINT.split(name)


def parse(name: str) -> tuple[str, str]:
    """(kind, what follows the colon); a word has nothing after it."""
    kind, _, argument = name.partition(":")
    if kind in _OF_PATHS:
        argument = os.path.expanduser(argument)
    return kind, argument


def with_split(name: str) -> tuple[str, str]:
    """A corpus and the split after its ``#``, which may be empty.

    A path that there is may have a ``#`` of its own.
    """
    kind, argument = parse(name)
    there = kind in _OF_PATHS and Path(argument).exists()
    match = None if there else _SPLIT.fullmatch(name)
    return (match[1], match[2]) if match else (name, "")


def resolved(name: str) -> str:
    """The same name with whole paths."""
    return "+".join(map(_resolved, parts(name)))


def _resolved(name: str) -> str:
    kind, argument = parse(name)
    if kind == CORPUS and argument:
        corpus, split = with_split(argument)
        return f"{CORPUS}:{_resolved(corpus)}" + (f"#{split}" if split else "")
    if kind in _OF_PATHS and argument:
        return f"{kind}:{os.path.abspath(argument)}"
    return name


def resolved_fields(fields: Any, name: str = "") -> Any:
    """Plain JSON of a configuration, names in `FIELDS` and `FOLDERS` resolved."""
    if isinstance(fields, dict):
        return {key: resolved_fields(value, key) for key, value in fields.items()}
    if isinstance(fields, list | tuple) and name in FIELDS:
        return [resolved_fields(value, name) for value in fields]
    if isinstance(fields, str) and fields and name in FOLDERS:
        if os.path.isdir(fields):
            return os.path.abspath(fields)
    if isinstance(fields, str) and name in FIELDS:
        return resolved(fields)
    return fields


def spelling(name: str, kinds: Sequence[str]) -> str:
    """How a path without a kind is rightly written, as a sentence's end; may be empty.

    Args:
      name: what was given.
      kinds: those that are possible, of `CORPORA`, `PASSAGES` and `QUESTIONS`, and
        "corpus" where a text is one.
    """
    path = Path(os.path.expanduser(name))
    lower = path.name.lower().removesuffix(".gz")
    if not os.path.exists(path) and not lower.endswith(
        (".txt", ".jsonl", ".json", ".tsv", ".csv")
    ):
        return ""
    kind = "text" if "text" in kinds else f"{CORPUS}:text" if CORPUS in kinds else ""
    inside = (
        [x.name.lower() for x in path.iterdir()] if os.path.isdir(path) else [lower]
    )
    inside = [x.removesuffix(".gz") for x in inside]
    if "beir" in kinds and "corpus.jsonl" in inside:
        kind = "beir"
    elif any(x.endswith(".jsonl") for x in inside):
        kind = "jsonl"
    elif "dpr" in kinds and any(x.endswith((".tsv", ".csv")) for x in inside):
        kind = "dpr"
    elif "squad" in kinds and any(x.endswith(".json") for x in inside):
        kind = "squad"
    return f"; write {kind}:{name}" if kind else ""
