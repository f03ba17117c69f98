"""Hard negatives of a collection's questions, by BM25 or by an encoder in training."""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from rlm_jax import processes
from rlm_jax.data.questions import Answerable
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import bm25, exact, mining
from rlm_jax.retrievers import dense
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig, Towers

Holds = Callable[[str, Iterable[str]], bool]
"""(text, answers) -> whether the text holds one of them."""


def found_once(
    folder: pathlib.Path, identity: dict[str, Any], mine: Callable[[], np.ndarray]
) -> np.ndarray:
    """Mines once: the negatives, int32 [Q, H], stay in ``folder`` and are read there.

    All processes mine, the first one's negatives are kept, and all read those.

    Args:
      identity: plain JSON, all that the negatives depend on.
    """
    if not folder.exists():
        negatives = mine()
        if processes.is_first():
            mining.save(folder, negatives, identity)
        processes.wait("negatives")
    return mining.load(folder, identity)


def by_words(questions: Answerable, num: int, holds: Holds) -> np.ndarray:
    """By BM25, unless the questions' own file names some, as DPR's do.

    Args:
      questions: Q of them.
      num: H, negatives of a question.
      holds: of an answer; a passage that holds one is no negative.

    Returns:
      int32 [Q, H], -1 where there are too few.
    """
    pairs = questions.pairs
    if sum(map(len, pairs.negatives)):
        negatives = np.full((len(pairs.positives), num), -1, np.int32)
        for row, own in zip(negatives, pairs.negatives, strict=True):
            row[: len(own[:num])] = own[:num]
        return negatives
    index = bm25.build((p.joined for p in pairs.pool), bm25.BM25Config(), progress=True)
    return _mine(questions, index.search, questions.texts, num, holds)


def by_model(
    questions: Answerable,
    num: int,
    holds: Holds,
    towers: Towers,
    text: TextConfig,
    search: SearchConfig,
    folder: pathlib.Path,
) -> np.ndarray:
    """By the inner products of two encoders; all processes encode.

    Args:
      questions, num, holds: as for `by_words`.
      folder: of the passages' vectors.
    """
    store, _ = dense.encode_collection(
        towers.passage,
        questions.pairs.pool,
        questions.fingerprint,
        text,
        search,
        folder,
        alone=False,
    )
    vectors = dense.encode_questions(towers.question, questions.texts, text, search)
    index = exact.build(store, metric="ip")
    return _mine(questions, index.search, vectors, num, holds)


def _mine(
    questions: Answerable,
    search: Callable[[Any, int], Neighbours],
    queries: Any,
    num: int,
    holds: Holds,
) -> np.ndarray:
    pool = questions.pairs.pool

    def answers(question: int, passage: int) -> bool:
        strings = questions.answers[question]
        return bool(strings) and holds(pool[passage].joined, strings)

    return mining.mine(
        search, queries, questions.pairs.positives, num=num, excluded=answers
    )
