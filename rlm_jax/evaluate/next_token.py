"""What a memory says of the next token: the whole distribution, one text at a time.

Evaluation asks a memory how likely the token is that did follow (`token_memory`,
`knn`); a continuation needs all of them. The equations are those of
`rlm_jax.methods.trime` and `rlm_jax.methods.knn_lm`, over the vocabulary.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from rlm_jax.evaluate import knn, token_search
from rlm_jax.evaluate.perplexity import StreamScores
from rlm_jax.evaluate.token_memory import TokenMemory
from rlm_jax.evaluate.token_search import Searched


class Slots(NamedTuple):
    """What a memory holds for one prediction."""

    logits: np.ndarray  # float [M], similarities over the temperature
    values: np.ndarray  # int [M], the tokens that followed; -1 where absent


def joint(log_probs: np.ndarray, log_normaliser: float, *memories: Slots) -> np.ndarray:
    """TRIME's p(w | x) of every w, normalised over vocabulary and memories together.

    p(w | x) proportional to exp(s_w) + sum over slots with value w of exp(logit), where
    s_w = log p_LM(w | x) + the log-normaliser of the model's scores (Zhong et al. 2022,
    eq. 4 and 5).

    Args:
      log_probs: float [V], of the model alone.
      log_normaliser: of its scores.
      memories: a slot in two of them counts twice.

    Returns:
      float64 [V], logarithms.
    """
    scores = np.asarray(log_probs, np.float64) + float(log_normaliser)
    for logits, values in memories:
        kept = values >= 0
        np.logaddexp.at(scores, values[kept], logits[kept].astype(np.float64))
    return scores - np.logaddexp.reduce(scores)


def neighbours(slots: Slots, size: int) -> np.ndarray:
    """log p_kNN(w | x) of every w, float64 [V]: a softmax over the neighbours' logits.

    Minus infinity where no neighbour's value is w (Khandelwal et al. 2020, eq. 2).
    """
    scores = np.full(size, -np.inf)
    kept = slots.values >= 0
    logits = slots.logits[kept].astype(np.float64)
    np.logaddexp.at(scores, slots.values[kept], logits)
    return scores - np.logaddexp.reduce(logits) if len(logits) else scores


def mix(log_probs: np.ndarray, knn: np.ndarray, weight: float) -> np.ndarray:
    """log p of kNN-LM's mixture (eq. 3) of every token, float64 [V].

    Where there are no neighbours at all the model stands alone.
    """
    if weight == 0 or np.isneginf(knn).all():
        return np.asarray(log_probs, np.float64)
    with np.errstate(divide="ignore"):
        weights = np.log(1 - weight), np.log(weight)
    return np.logaddexp(
        np.asarray(log_probs, np.float64) + weights[0], knn + weights[1]
    )


class Datastore(NamedTuple):
    """Neighbours among the training tokens."""

    searched: Searched
    recompute: bool  # whether similarities come from the stored keys
    temperature: float


class Near(NamedTuple):
    """What a datastore gave for one prediction, the nearest first."""

    ids: np.ndarray  # int [K], entries; -1 where absent
    slots: Slots  # of similarities, over no temperature


class RunMemory(NamedTuple):
    """The memory of a run, and how it is mixed in."""

    past: TokenMemory | None
    store: Datastore | None
    mixture: knn.Mixture | None  # kNN-LM's, or what TRIME interpolates besides
    # Lambda of a continuous cache, where the past has a softmax of its own.
    cache: float | None = None

    def describe(self) -> str:
        """In words, for the terminal."""
        parts = []
        if self.past is not None:
            kept = self.past.size + self.past.segment
            parts.append(f"up to {kept:,} tokens of the text itself")
        if self.store is not None:
            searched = self.store.searched
            parts.append(
                f"{searched.k:,} neighbours among {searched.keys.num_entries:,} "
                "training tokens"
            )
        return " and ".join(parts)

    def weights(self, near: Near) -> np.ndarray:
        """What each neighbour weighs among those that count, float64 [K], adds to 1."""
        k, temperature = len(near.ids), 1.0
        if self.store is not None:
            temperature = self.store.temperature
        if self.past is None and self.mixture is not None:
            k, temperature, _ = self.mixture
        logits = near.slots.logits.astype(np.float64) / temperature
        logits = np.where(np.arange(len(logits)) < k, logits, -np.inf)
        return np.exp(logits - np.logaddexp.reduce(logits))


@dataclasses.dataclass
class Text:
    """One text as it grows: its tokens, and the states that were met on the way."""

    tokens: list[int]
    keys: list[np.ndarray] = dataclasses.field(default_factory=list)  # of each token
    near: Near | None = None  # what the last prediction was given by a datastore

    def past(self, memory: TokenMemory) -> Slots:
        """The slots of the text's own past for the prediction of its next token."""
        at = len(self.keys) - 1  # this prediction's number, from 0
        start = at // memory.segment * memory.segment
        first = max(0, start - memory.size)
        keys = np.asarray(self.keys[first:at], np.float32)
        query = self.keys[at]
        logits = keys @ query if len(keys) else np.zeros(0, np.float32)
        scaled = logits / len(query) ** 0.5 / memory.temperature
        return Slots(scaled, np.asarray(self.tokens[first + 1 : at + 1], np.int64))


def log_probs(
    memory: RunMemory, text: Text, plain: np.ndarray, log_normaliser: float
) -> np.ndarray:
    """log p of every next token by the model and the memory together, float64 [V].

    Args:
      memory: of the run.
      text: with the keys of all of its tokens.
      plain: float [V], of the model alone.
      log_normaliser: of its scores.
    """
    found = None
    if memory.store is not None:
        text.near = _found(memory.store, text.keys[-1])
        found = text.near.slots
    if memory.past is None:
        both = np.asarray(plain, np.float64)
    elif memory.cache is not None:
        past = neighbours(text.past(memory.past), len(plain))
        both = mix(plain, past, memory.cache)
    else:
        slots = [text.past(memory.past)]
        if found is not None and memory.store is not None:
            temperature = memory.store.temperature
            slots.append(found._replace(logits=found.logits / temperature))
        both = joint(plain, log_normaliser, *slots)
    if memory.mixture is None or found is None:
        return both
    k, temperature, weight = memory.mixture
    nearest = Slots(found.logits[:k] / temperature, found.values[:k])
    return mix(both, neighbours(nearest, len(plain)), weight)


def _found(store: Datastore, key: np.ndarray) -> Near:
    none = np.zeros(1, np.float32)
    query = StreamScores(none, none, key[None], np.zeros(1, np.int32))
    near, ids = token_search.look_up(query, store.searched, recompute=store.recompute)
    return Near(ids[0], Slots(near.similarities[0], near.values[0]))
