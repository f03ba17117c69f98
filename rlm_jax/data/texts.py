"""A corpus in tokens and in batches, by configuration."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from rlm_jax import terminal
from rlm_jax.configuration import check_fields
from rlm_jax.data import batching, corpora, token_store
from rlm_jax.data.tokenizers import Tokenizer
from rlm_jax.method import Batches

STDLIB = "stdlib"


Order = Literal[
    "shuffled", "consecutive", "same_document", "similar", "related", "repeats",
    "frequent_repeats",
]  # fmt: skip


@dataclasses.dataclass
class DataConfig:
    """Which text, in which tokens, in which batches."""

    # stdlib, text:PATH, jsonl:PATH or a TFDS name; empty: text and tokenizer of the run
    # that this one starts from, else stdlib.
    corpus: str = ""
    tokenizer: str = "bpe"  # bytes, bpe, word or hf:PATH
    vocab_size: int = 4096  # of bpe; word: 0 for all words
    # shuffled, consecutive, same_document, similar, related, repeats, frequent_repeats
    order: Order = "shuffled"
    batch_size: int = 16  # segments of a step, over all devices
    length: int = 256  # tokens of a segment; of a row of them, in the order related
    # consecutive and same_document: segments that follow; related: those of a row
    segments_per_group: int = 16


class Text(NamedTuple):
    """A corpus in tokens."""

    tokenizer: Tokenizer
    store: token_store.TokenStore
    facts: Mapping[str, Any] = {}  # of a text of one's own; see `Corpus.facts`

    @property
    def fingerprint(self) -> str:
        """Of text and tokenizer together."""
        return self.store.fingerprint


def in_tokens_of(tokenizer: Tokenizer, config: DataConfig) -> Text:
    """The configured corpus in the tokens of a tokenizer that is given."""
    return of_corpus(corpora.load(config.corpus or STDLIB), tokenizer)


def of_corpus(corpus: corpora.Corpus, tokenizer: Tokenizer) -> Text:
    """A corpus in tokens, and how a text of one's own was divided, which is told."""
    store = token_store.build(corpus, tokenizer)
    if not corpus.facts:
        return Text(tokenizer, store)
    documents = {n: len(x.document_offsets) - 1 for n, x in store.splits.items()}
    facts = {**corpus.facts, "documents": documents}
    terminal.say(told(corpus.name, facts))
    return Text(tokenizer, store, facts)


def told(name: str, facts: Mapping[str, Any]) -> str:
    """How a text was divided, and which files were read, as a line or two."""
    split = ", ".join(f"{n} {count:,}" for n, count in facts["documents"].items())
    files, skipped = facts["files_read"], facts["files_skipped"]
    lines = [
        f"{name}: {files:,} file{'s' * (files != 1)} read; documents, divided "
        f"{facts['divided']}: {split}"
    ]
    for reason, names in skipped.items():
        shown = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
        lines.append(f"  skipped as {reason}: {len(names):,} ({shown})")
    return "\n".join(lines)


def batches(config: DataConfig, split: token_store.TokenSplit) -> Batches:
    """The batches of a split in the configured order."""
    size: dict[str, Any] = {"batch_size": config.batch_size, "length": config.length}
    group = {"segments_per_group": config.segments_per_group}
    orders = {
        "shuffled": lambda: batching.shuffled(split, **size),
        "consecutive": lambda: batching.consecutive(split, **size, **group),
        "same_document": lambda: batching.same_document(split, **size, **group),
        "similar": lambda: batching.similar(split, **size),
        "related": lambda: batching.related(
            split, **size, segments_per_row=config.segments_per_group
        ),
        "repeats": lambda: batching.repeats(split, **size),
        "frequent_repeats": lambda: batching.frequent_repeats(split, **size),
    }
    check_fields(config, "data")
    return orders[config.order]()


def head(text: Text, name: str, limit: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A split's first ``limit`` tokens, 0 = all, and their bytes and words."""
    split = text.store.split(name)
    tokens = split.tokens[: limit or len(split.tokens)]
    return tokens, _size(text, split, tokens)


def _size(
    text: Text, split: token_store.TokenSplit, tokens: np.ndarray
) -> tuple[int, int]:
    """Bytes and words of a split's first tokens.

    Where decoding is not exact (words lose their spaces), in proportion to it.
    """
    if len(tokens) == len(split.tokens):
        return split.num_bytes, split.num_words
    part, whole = (text.tokenizer.decode(x) for x in (tokens, split.tokens))
    num_bytes = split.num_bytes * len(part.encode()) / len(whole.encode())
    num_words = split.num_words * len(part.split()) / len(whole.split())
    return round(num_bytes), round(num_words)
