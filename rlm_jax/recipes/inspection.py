"""Positions for the neighbour inspector: what a memory answered, in text."""

import numpy as np

from rlm_jax import method
from rlm_jax.evaluate import knn, token_memory
from rlm_jax.recipes import language_model
from rlm_jax.recipes.reporting import piece
from rlm_jax.recipes.with_passages import documents
from rlm_jax.report.inspector import Neighbour, Position
from rlm_jax.retrievers.passage_search import PassageSearch

CONTEXT = 24
"""Tokens of left context that are shown."""

NEIGHBOURS = 6


def choose(log_probs: dict[str, np.ndarray], best: int = 8, random: int = 8):
    """Predictions to look at: where retrieval helped most, where it hurt most, any."""
    gain = log_probs["real"] - log_probs["off"]
    order = np.argsort(-gain, kind="stable")
    anywhere = np.random.default_rng(0).integers(len(gain), size=random)
    return np.unique(np.concatenate([order[:best], order[-best // 2 :], anywhere]))


def of_memory(
    text: language_model.Text,
    scored: language_model.Scored,
    log_probs: dict[str, np.ndarray],
    memory: token_memory.TokenMemory,
) -> list[Position]:
    """The heaviest slots of a stream's own memory."""
    chosen = choose(log_probs)
    slots = token_memory.heaviest_slots(scored.stream, memory, chosen, NEIGHBOURS)

    def neighbours(row):
        return [
            _neighbour(text, scored.tokens, position, similarity, weight, "earlier")
            for position, similarity, weight in zip(
                *(x[row] for x in slots[:3]), strict=True
            )
            if position >= 0
        ]

    return _positions(
        text, scored, log_probs, chosen, slots.target_probability, neighbours
    )


def of_datastore(
    text: language_model.Text,
    scored: language_model.Scored,
    log_probs: dict[str, np.ndarray],
    found: knn.NeighbourValues,
    ids: np.ndarray,
    mixture: knn.Mixture,
) -> list[Position]:
    """The nearest entries of a datastore over the training tokens."""
    chosen = choose(log_probs)
    tokens = text.store.split("train").tokens
    some = knn.NeighbourValues(*(x[chosen, : mixture.k] for x in found))
    targets = scored.stream.targets[chosen]
    k, temperature, _ = mixture
    p_knn = np.exp(knn.knn_log_probs(some, targets, k=k, temperature=temperature))
    logits = some.similarities / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)

    def neighbours(row):
        return [
            _neighbour(
                text, tokens, entry, some.similarities[row, i], weights[row, i], "train"
            )
            for i, entry in enumerate(ids[chosen[row], : min(k, NEIGHBOURS)])
            if entry >= 0
        ]

    return _positions(text, scored, log_probs, chosen, p_knn, neighbours)


def of_documents(
    text: language_model.Text,
    some: documents.Part,
    found: method.Neighbours,
    log_probs: dict[str, np.ndarray],
    weights: np.ndarray,
    shelf: PassageSearch,
) -> list[Position]:
    """The heaviest documents of a stride; ``weights``, [S, K], are what made its p."""
    chosen = choose(log_probs)
    strides = np.searchsorted(some.at.end, chosen + 1, side="right")

    def neighbours(row):
        stride = strides[row]
        ids, scores = (x[stride] for x in (found.ids, found.scores))
        heaviest = np.argsort(-weights[stride], kind="stable")
        here = heaviest[ids[heaviest] >= 0][:NEIGHBOURS]
        return [
            Neighbour(
                context=text.tokenizer.decode(shelf.tokens(int(ids[k]))),
                value=None,
                score=float(scores[k]),
                weight=float(weights[stride, k]),
                source=shelf.passages[int(ids[k])].id,
            )
            for k in here
        ]

    return _positions(text, some, log_probs, chosen, None, neighbours)


def _positions(text, scored, log_probs, chosen, p_memory, neighbours):
    return [
        Position(
            context=_context(text, scored.tokens, at),
            target=piece(text, scored.tokens[at + 1]),
            p_lm=float(np.exp(log_probs["off"][at])),
            p_knn=None if p_memory is None else float(p_memory[row]),
            p=float(np.exp(log_probs["real"][at])),
            neighbours=neighbours(row),
            source=f"token {at + 1:,}",
        )
        for row, at in enumerate(chosen)
    ]


def _neighbour(text, tokens, position, similarity, weight, source) -> Neighbour:
    return Neighbour(
        context=_context(text, tokens, position),
        value=piece(text, tokens[position + 1]),
        score=float(similarity),
        weight=float(weight),
        source=f"{source}, token {position + 1:,}",
    )


def _context(text, tokens, position) -> str:
    """The text up to and with a prediction's last input."""
    return text.tokenizer.decode(tokens[max(0, position + 1 - CONTEXT) : position + 1])
