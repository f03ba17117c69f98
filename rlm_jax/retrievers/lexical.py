"""BM25 over a collection of passages, whose index is kept in a folder."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rlm_jax.data.passages import Passages
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import bm25
from rlm_jax.storage import cache


def search(
    passages: Passages,
    texts: Sequence[str],
    k: int,
    folder: pathlib.Path,
    config: bm25.BM25Config | None = None,
) -> Neighbours:
    """The passages with the largest BM25 scores; the index stays in ``folder``."""
    index = open_index(passages, folder, config or bm25.BM25Config())
    return index.search(texts, k, progress=len(texts) > 1)


def open_index(
    passages: Passages, folder: pathlib.Path, config: bm25.BM25Config
) -> bm25.BM25Index:
    """The BM25 index of a collection, built or opened."""
    if folder.exists():
        return bm25.load(folder, config=config, source=passages.fingerprint)
    built = bm25.build(
        (passage.joined for passage in passages),
        config,
        source=passages.fingerprint,
        progress=True,
    )
    bm25.save(built, folder)
    return built


def fingerprint(passages: str, config: Mapping[str, Any]) -> str:
    """Of all that decides what is found: the passages' fingerprint, `bm25.fields`."""
    return cache.fingerprint("bm25", passages, dict(config))
