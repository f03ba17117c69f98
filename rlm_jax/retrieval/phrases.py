"""Phrases put together of the tokens that a start and an end vector have found (NPM).

With the softmax p_s of the start vector over the k tokens nearest to it, and p_e of the
end vector, each at a temperature,

    score(phrase) = n^a sum_{i : the phrase stands at i..i+n-1} p_s(i) + p_e(i + n - 1)

A token that is not among the k nearest has probability 0. The sum is over all places of
equal tokens; n is their number. Both where the whole datastore is searched and where
only some passages are, p is normalised over the k nearest tokens *of what is searched*;
so a search restricted to all passages is the unrestricted one. The released code
normalises over all tokens of the passages in the one case and over the candidates in
the other.

Source: Min et al. 2023, section 3.4.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NORMALISATION = "softmax over the k nearest tokens of what is searched"


class Found(NamedTuple):
    """The tokens nearest to one vector, in any order."""

    ids: np.ndarray  # int64 [k], entries of the memory
    p: np.ndarray  # float32 [k]


class Phrases(NamedTuple):
    """Distinct phrases, best first.

    Attributes:
      entry: int64 [G], where the best place of each phrase begins.
      size: int64 [G], its tokens.
      score: float64 [G].
      key: uint64 [G], equal for equal tokens; see `keys_of`.
    """

    entry: np.ndarray
    size: np.ndarray
    score: np.ndarray
    key: np.ndarray


def softmax(scores: np.ndarray, ids: np.ndarray, temperature: float) -> Found:
    """The distribution over what was found: exp(s / t), normalised.

    Args:
      scores: float32 [k], inner products times their scale.
      ids: int [k]; -1 is absent.
      temperature: t.
    """
    kept = ids >= 0
    ids, scores = ids[kept].astype(np.int64), scores[kept].astype(np.float64)
    if not len(ids):
        return Found(ids, np.zeros(0, np.float32))
    p = np.exp((scores - scores.max()) / temperature)
    return Found(ids, (p / p.sum()).astype(np.float32))


def assemble(
    start: Found,
    end: Found | None,
    tokens: np.ndarray,
    bounds: np.ndarray,
    inside: np.ndarray,
    *,
    longest: int,
    length_power: float = 0.0,
) -> Phrases:
    """All phrases that begin or end at a token that was found.

    A phrase stands within one passage and consists of whole words.

    Args:
      start, end: the two distributions; without an end phrases have one token.
      tokens: int32 [M], of the whole memory.
      bounds: int64 [P + 1], where its passages begin.
      inside: bool [V], tokens that go on a word.
      longest: tokens of a phrase.
      length_power: a.
    """
    if end is None:
        end, longest = Found(start.ids[:0], start.p[:0]), 1
    n = np.arange(1, longest + 1)
    begins = np.concatenate(
        [np.repeat(start.ids, longest), (end.ids[:, None] - n + 1).reshape(-1)]
    )
    sizes = np.tile(n, len(start.ids) + len(end.ids))
    anchor = np.concatenate(
        [np.repeat(start.ids, longest), np.repeat(end.ids, longest)]
    )
    passage = np.searchsorted(bounds, anchor, side="right") - 1
    low, high = bounds[passage], bounds[passage + 1]
    kept = (begins >= low) & (begins + sizes <= high)
    begins, sizes, low, high = (x[kept] for x in (begins, sizes, low, high))
    last = len(tokens) - 1
    after = inside[tokens[np.minimum(begins + sizes, last)]] & (begins + sizes < high)
    before = inside[tokens[begins]] & (begins > low) if len(begins) else kept[:0]
    kept = ~(before | after)
    spans = np.unique(begins[kept] * longest + sizes[kept] - 1)
    begins, sizes = spans // longest, spans % longest + 1
    score = _lookup(start, begins) + _lookup(end, begins + sizes - 1)
    at = np.minimum(begins[:, None] + n - 1, last)
    rows = np.where(n <= sizes[:, None], tokens[at], -1)
    keys = keys_of(rows)
    distinct, numbers = np.unique(keys, return_inverse=True)
    totals = np.bincount(numbers, score, len(distinct))
    by_score = np.lexsort((begins, -score))  # the best place first, then the first one
    _, places = np.unique(numbers[by_score], return_index=True)
    best = by_score[places]
    totals = totals * sizes[best].astype(np.float64) ** length_power
    order = np.lexsort((begins[best], -totals))
    return Phrases(
        begins[best][order], sizes[best][order], totals[order], distinct[order]
    )


def keys_of(rows: np.ndarray) -> np.ndarray:
    """A 64-bit number of each row of tokens, int [G, n] with -1 behind a phrase's end.

    A random linear hash, the same at every call: two of a million phrases share a
    number with a probability of 10^-7.
    """
    factors = np.random.default_rng(2023).integers(
        1, 1 << 63, 64, dtype=np.uint64
    ) * np.uint64(2) + np.uint64(1)
    return ((rows + 1).astype(np.uint64) * factors[: rows.shape[1]]).sum(1)


def keys_of_phrases(wanted: Sequence[np.ndarray]) -> np.ndarray:
    """`keys_of` phrases of any lengths up to 64, int [n] each."""
    rows = np.full((len(wanted), max(map(len, wanted), default=1)), -1, np.int64)
    for row, ids in zip(rows, wanted, strict=True):
        row[: len(ids)] = ids
    return keys_of(rows)


def scores_of(phrases: Phrases, keys: np.ndarray) -> np.ndarray:
    """The scores of phrases by their keys uint64 [W], float64; 0 where not found."""
    if not len(phrases.key):
        return np.zeros(len(keys))
    order = np.argsort(phrases.key)
    at = np.searchsorted(phrases.key, keys, sorter=order)
    place = order[np.minimum(at, len(order) - 1)]
    return np.where(phrases.key[place] == keys, phrases.score[place], 0.0)


def _lookup(found: Found, ids: np.ndarray) -> np.ndarray:
    """The probability of each entry; 0 where it was not found."""
    if not len(found.ids):
        return np.zeros(len(ids))
    order = np.argsort(found.ids)
    at = np.minimum(np.searchsorted(found.ids, ids, sorter=order), len(order) - 1)
    place = order[at]
    return np.where(found.ids[place] == ids, found.p[place].astype(np.float64), 0.0)
