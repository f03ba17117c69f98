"""Prepares everything that is cached, in a process of its own: `test_same_twice`."""

import pathlib
import random
import sys

import numpy as np

from rlm_jax.data import (
    corpora,
    passages,
    questions,
    similarity,
    text_encoding,
    token_store,
    tokenizers,
)
from rlm_jax.retrieval import bm25


def tied_words(seed: int) -> list[str]:
    """Texts whose pairs of letters are nearly all as frequent as another."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyzäéøß"[: rng.randint(8, 30)]
    words = ["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(300)]
    return [" ".join(rng.choices(words, k=40)) for _ in range(8)]


def main(source: str, cache: str, out: str) -> None:
    """Fills the caches and writes what was found to one file of text."""
    found = []
    corpus = corpora.load(f"text:{source}/corpus", cache_dir=cache)
    for kind in ("bpe", "word", "wordpiece"):
        for size in (300, 420):
            tokenizer = tokenizers.build(kind, corpus, vocab_size=size, cache_dir=cache)
            store = token_store.build(
                corpus, tokenizer, cache_dir=cache, progress=False
            )
            found += [kind, size, tokenizer.fingerprint, store.fingerprint]
    for seed in range(10):
        texts = tied_words(seed)
        found.append(text_encoding.train(texts, vocab_size=200).content)
        # The letters alone have no room: it is decided between equally rare ones.
        found.append(text_encoding.train(texts[:1], vocab_size=100).content)
    collection = passages.load(
        f"jsonl:{source}/passages.jsonl+corpus:text:{source}/corpus",
        cache_dir=cache,
        progress=False,
    )
    asked = questions.load(f"jsonl:{source}/questions.jsonl", "all", cache_dir=cache)
    found += [collection.fingerprint, asked.fingerprint]
    texts = [passage.joined for passage in collection]
    index = bm25.build(texts, bm25.published())
    bm25.save(index, pathlib.Path(cache) / "bm25")
    scores, ids = index.search([" ".join(text.split()[:5]) for text in texts], 7)
    found += [ids.tolist(), scores.tolist()]
    segments = np.random.default_rng(0).integers(0, 30, (40, 20))
    walk = similarity.walk(segments, cache_dir=cache, progress=False)
    found.append(walk.tolist())
    pathlib.Path(out).write_text("\n".join(map(str, found)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
