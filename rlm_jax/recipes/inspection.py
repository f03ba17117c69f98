"""Positions for the neighbour inspector, of each kind of memory that recipes have."""

import functools
from collections.abc import Callable

import numpy as np

from rlm_jax import method
from rlm_jax.data import tokenizers
from rlm_jax.data.texts import Text
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.evaluate import in_context, knn, token_memory
from rlm_jax.evaluate.perplexity import Scored
from rlm_jax.report import positions
from rlm_jax.report.inspector import Position
from rlm_jax.report.positions import NEIGHBOURS, Entries, Reading
from rlm_jax.retrievers.passage_search import PassageSearch


def of_memory(
    text: Text,
    scored: Scored,
    log_probs: dict[str, np.ndarray],
    memory: token_memory.TokenMemory,
) -> list[Position]:
    """The heaviest slots of a stream's own memory."""
    predictions = positions.choose(log_probs)
    slots = token_memory.heaviest_slots(scored.stream, memory, predictions, NEIGHBOURS)
    return positions.of_entries(
        _reading(text),
        scored.tokens,
        log_probs,
        predictions,
        Entries(*slots),
        scored.tokens,
        _documents("earlier", text.store.split("test")),
    )


def of_datastore(
    text: Text,
    scored: Scored,
    log_probs: dict[str, np.ndarray],
    neighbours: knn.NeighbourValues,
    ids: np.ndarray,
    mixture: knn.Mixture,
) -> list[Position]:
    """The nearest entries of a datastore over the training tokens."""
    predictions = positions.choose(log_probs)
    nearest = knn.NeighbourValues(*(x[predictions, : mixture.k] for x in neighbours))
    p_knn = np.exp(
        knn.knn_log_probs(
            nearest,
            scored.stream.targets[predictions],
            k=mixture.k,
            temperature=mixture.temperature,
        )
    )
    weights = knn.neighbour_weights(nearest, mixture.temperature)
    shown = min(mixture.k, NEIGHBOURS)
    entries = (x[:, :shown] for x in (ids[predictions], nearest.similarities, weights))
    return positions.of_entries(
        _reading(text),
        scored.tokens,
        log_probs,
        predictions,
        Entries(*entries, target_probability=p_knn),
        text.store.split("train").tokens,
        _documents("train", text.store.split("train")),
    )


def of_documents(
    text: Text,
    part: in_context.Part,
    neighbours: method.Neighbours,
    log_probs: dict[str, np.ndarray],
    weights: np.ndarray,
    searcher: PassageSearch,
) -> list[Position]:
    """The heaviest documents of a stride; ``weights``, [S, K], are what made its p."""
    predictions = positions.choose(log_probs)
    return positions.of_documents(
        _reading(text),
        part.tokens,
        log_probs,
        predictions,
        np.searchsorted(part.at.end, predictions + 1, side="right"),
        positions.Documents(
            neighbours.ids,
            neighbours.scores,
            weights,
            searcher.tokens,
            lambda row: searcher.passages[row].id,
        ),
    )


def _documents(where: str, split: TokenSplit) -> Callable[[int], str]:
    """Position of a split -> the name of the document there, after ``where``."""

    def name(position: int) -> str:
        at = np.searchsorted(split.document_offsets, position, side="right") - 1
        names = split.document_names
        return f"{where}, {names[at]}" if 0 <= at < len(names) else where

    return name


def _reading(text: Text) -> Reading:
    piece = functools.partial(tokenizers.piece, text.tokenizer)
    return Reading(text.tokenizer.decode, piece)
