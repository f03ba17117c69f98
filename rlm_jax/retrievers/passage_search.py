"""Passages that a language model is given to read, and the search for them."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from rlm_jax.data import token_cuts
from rlm_jax.data.passages import Passages
from rlm_jax.data.tokenizers import Tokenizer
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import bm25, index
from rlm_jax.retrieval.bm25 import BM25Config
from rlm_jax.retrievers import dense, encoder_towers, lexical
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig, Tower

BM25 = "bm25"


class Documents(Protocol):
    """Which retriever finds documents, and how much of each is read."""

    @property
    def retriever(self) -> str: ...  # "bm25" or the folder of an encoder
    @property
    def length(self) -> int: ...  # tokens of a document, at most


class SearchesPassages(Protocol):
    """The fields of a configuration by which passages are searched and read."""

    @property
    def documents(self) -> Documents: ...
    @property
    def text(self) -> TextConfig: ...
    @property
    def search(self) -> SearchConfig: ...


class PassageSearch(NamedTuple):
    """A collection that can be searched, and that a language model can read."""

    passages: Passages
    search: Callable[[Sequence[str], int], Neighbours]
    tokens: Callable[[int], np.ndarray]  # a passage as the model reads it
    fingerprint: str  # of all that decides what is found


def load(
    config: SearchesPassages,
    passages: Passages,
    tokenizer: Tokenizer,
    folder: pathlib.Path,
    tower: Tower | None = None,
    *,
    max_rows: int = 0,
) -> PassageSearch:
    """The passages with the configured retriever, or with ``tower``.

    Args:
      folder: keeps the index.
      max_rows: as for `dense.searcher`.
    """
    tokens = document_tokens(config, passages, tokenizer)
    if tower is None and config.documents.retriever == BM25:
        words = BM25Config()
        by_words = lexical.open_index(passages, folder / BM25, words)
        found = lexical.fingerprint(passages.fingerprint, bm25.fields(words))
        return PassageSearch(passages, by_words.search, tokens, found)
    tower = tower or encoder_towers.load(config.documents.retriever)
    prints = encoder_towers.fingerprints(tower)
    store, _ = dense.encode_collection(
        tower,
        passages,
        passages.fingerprint,
        config.text,
        config.search,
        folder / f"vectors-{prints['encoder'][:8]}",
    )
    # The last words of a question stand right before the stride: they matter most.
    find = dense.searcher(
        tower, store, config.text, config.search, max_rows=max_rows, keep="last"
    )
    found = dense.fingerprint(
        prints, store.manifest["identity"], config.text, config.search
    )
    return PassageSearch(passages, find, tokens, found)


def document_tokens(
    config: SearchesPassages, passages: Passages, tokenizer: Tokenizer
) -> Callable[[int], np.ndarray]:
    """Passage -> the first tokens of its title and text, as the model reads them."""
    length = config.documents.length

    @functools.lru_cache(maxsize=1 << 16)
    def tokens(row: int) -> np.ndarray:
        _, title, text = passages[row]
        whole = f"{title}\n{text}" if title else text
        return token_cuts.first_tokens(tokenizer.encode, whole, length)

    return tokens


def find(
    questions: Sequence[str], searcher: PassageSearch, out: np.ndarray, num: int
) -> Neighbours:
    """The best ``num`` passages of each question but those that ``out`` marks."""
    deep = search_deep(questions, searcher, num)
    return index.first_kept(deep, lambda ids: ~out[ids], num)


def search_deep(
    questions: Sequence[str], searcher: PassageSearch, num: int
) -> Neighbours:
    """More passages of each question than ``num``, some of which may be left out."""
    return searcher.search(questions, depth(num, len(searcher.passages)))


def depth(num: int, num_passages: int) -> int:
    """How many passages are searched for ``num``, some of which may be left out."""
    return min(max(100, 4 * num), num_passages)
