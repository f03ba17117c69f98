"""Which predictions the neighbour inspector shows, and what was retrieved for each."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlm_jax.report.inspector import Neighbour, Position

CONTEXT = 24
"""Tokens of left context that are shown."""

NEIGHBOURS = 6


class Reading(NamedTuple):
    """Tokens to text."""

    decode: Callable[[np.ndarray], str]
    piece: Callable[[int], str]  # one token, which a word's space follows

    def context(self, tokens: np.ndarray, position: int) -> str:
        """The text up to and with a prediction's last input."""
        first = max(0, position + 1 - CONTEXT)
        return self.decode(tokens[first : position + 1])


class Entries(NamedTuple):
    """What a memory of tokens answered to P predictions, nearest first."""

    positions: np.ndarray  # int [P, K], each entry's last input; -1 = absent
    similarities: np.ndarray  # float [P, K]
    weights: np.ndarray  # float [P, K]
    target_probability: np.ndarray  # float [P], of the target by the memory alone


class Documents(NamedTuple):
    """What was retrieved for S strides of a text."""

    ids: np.ndarray  # int [S, K]; -1 = absent
    scores: np.ndarray  # float [S, K]
    weights: np.ndarray  # float [S, K], what made the stride's probabilities
    tokens: Callable[[int], np.ndarray]  # of a document, by its id
    name: Callable[[int], str]


def choose(
    log_probs: Mapping[str, np.ndarray], best: int = 8, random: int = 8
) -> np.ndarray:
    """Predictions to look at: where retrieval helped most, where it hurt most, any."""
    gain = log_probs["real"] - log_probs["off"]
    order = np.argsort(-gain, kind="stable")
    anywhere = np.random.default_rng(0).integers(len(gain), size=random)
    return np.unique(np.concatenate([order[:best], order[-best // 2 :], anywhere]))


def of_entries(
    reading: Reading,
    tokens: np.ndarray,
    log_probs: Mapping[str, np.ndarray],
    predictions: np.ndarray,
    entries: Entries,
    memory: np.ndarray,
    source: Callable[[int], str],
) -> list[Position]:
    """Predictions with the entries of a memory of tokens.

    Args:
      tokens: int [N], the evaluated text.
      log_probs: float [N - 1] of its tokens under "real" and "off".
      predictions: int [P], by `choose`.
      entries: of these predictions.
      memory: int [M], the text whose tokens the entries are.
      source: position in it -> the name of the text or document there.
    """

    def neighbours(row: int) -> list[Neighbour]:
        return [
            Neighbour(
                context=reading.context(memory, position),
                value=reading.piece(int(memory[position + 1])),
                score=float(similarity),
                weight=float(weight),
                source=f"{source(position + 1)}, token {position + 1:,}",
            )
            for position, similarity, weight in zip(
                *(x[row] for x in entries[:3]), strict=True
            )
            if position >= 0
        ]

    return _positions(
        reading, tokens, log_probs, predictions, entries.target_probability, neighbours
    )


def of_documents(
    reading: Reading,
    tokens: np.ndarray,
    log_probs: Mapping[str, np.ndarray],
    predictions: np.ndarray,
    strides: np.ndarray,
    documents: Documents,
) -> list[Position]:
    """Predictions with the heaviest documents of their strides.

    Args:
      tokens, log_probs, predictions: as for `of_entries`.
      strides: int [P], the stride that each prediction is in.
      documents: of all strides.
    """

    def neighbours(row: int) -> list[Neighbour]:
        stride = strides[row]
        ids, scores, weights = (
            x[stride] for x in (documents.ids, documents.scores, documents.weights)
        )
        heaviest = np.argsort(-weights, kind="stable")
        return [
            Neighbour(
                context=reading.decode(documents.tokens(int(ids[k]))),
                value=None,
                score=float(scores[k]),
                weight=float(weights[k]),
                source=documents.name(int(ids[k])),
            )
            for k in heaviest[ids[heaviest] >= 0][:NEIGHBOURS]
        ]

    return _positions(reading, tokens, log_probs, predictions, None, neighbours)


def _positions(
    reading: Reading,
    tokens: np.ndarray,
    log_probs: Mapping[str, np.ndarray],
    predictions: np.ndarray,
    p_memory: np.ndarray | None,
    neighbours: Callable[[int], Sequence[Neighbour]],
) -> list[Position]:
    return [
        Position(
            context=reading.context(tokens, at),
            target=reading.piece(int(tokens[at + 1])),
            p_lm=float(np.exp(log_probs["off"][at])),
            p_knn=None if p_memory is None else float(p_memory[row]),
            p=float(np.exp(log_probs["real"][at])),
            neighbours=neighbours(row),
            source=f"token {at + 1:,}",
        )
        for row, at in enumerate(predictions)
    ]
