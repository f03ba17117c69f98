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
    start, end = _ascending(start), _ascending(end)
    n, last = np.arange(1, longest + 1), len(tokens) - 1
    # From each start on, as far as its passage goes; the end may be found or not.
    low, high = _passages(start.ids, bounds)
    stops = start.ids[:, None] + n
    kept = (stops <= high) & ~(inside[tokens[start.ids]][:, None] & (stops - n > low))
    kept &= ~(inside[tokens[np.minimum(stops, last)]] & (stops < high))
    rows, columns = np.nonzero(kept)
    of_start = start.ids[rows], columns + 1
    score = start.p[rows] + _lookup(end, stops[rows, columns] - 1)
    # Up to each end, from places that are no starts: the others are there already.
    low, high = _passages(end.ids, bounds)
    begins = end.ids[:, None] - n + 1
    kept = (begins >= low) & ~(inside[tokens[np.maximum(begins, 0)]] & (begins > low))
    after = np.minimum(end.ids + 1, last)[:, None]
    kept &= ~(inside[tokens[after]] & (after < high) & (after > end.ids[:, None]))
    rows, columns = np.nonzero(kept)
    new = ~_is_in(start.ids, begins[rows, columns])
    rows, columns = rows[new], columns[new]
    begins = np.concatenate([of_start[0], begins[rows, columns]])
    sizes = np.concatenate([of_start[1], columns + 1])
    score = np.concatenate([score, end.p[rows]])
    return _grouped(begins, sizes, score, tokens, longest, length_power)


def _grouped(begins, sizes, score, tokens, longest: int, power: float) -> Phrases:
    """Equal phrases as one, whose scores are added up; the best place stands first."""
    if not len(begins):
        none = np.zeros(0, np.int64)
        return Phrases(none, none, np.zeros(0), none.astype(np.uint64))
    n = np.arange(longest)
    at = np.minimum(begins[:, None] + n, len(tokens) - 1)
    keys = keys_of(np.where(n < sizes[:, None], tokens[at], -1))
    order = np.argsort(keys)
    keys, begins, sizes, score = (x[order] for x in (keys, begins, sizes, score))
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    totals = np.add.reduceat(score, first)
    totals = totals * sizes[first].astype(np.float64) ** power
    counts = np.diff(np.append(first, len(keys)))
    best = score == np.repeat(np.maximum.reduceat(score, first), counts)
    # Of the best places the first one.
    entry = np.minimum.reduceat(np.where(best, begins, len(tokens)), first)
    order = np.lexsort((entry, -totals))
    return Phrases(entry[order], sizes[first][order], totals[order], keys[first][order])


def _passages(ids, bounds) -> tuple[np.ndarray, np.ndarray]:
    """Where the passage of each entry begins and ends, int64 [N, 1] each."""
    passage = np.searchsorted(bounds, ids, side="right") - 1
    return bounds[passage][:, None], bounds[passage + 1][:, None]


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


def _ascending(found: Found) -> Found:
    """By rising ids, and p as float64."""
    order = np.argsort(found.ids)
    return Found(found.ids[order], found.p[order].astype(np.float64))


def _is_in(ascending: np.ndarray, ids: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(ascending, ids), len(ascending) - 1)
    return ascending[at] == ids if len(ascending) else np.zeros(len(ids), bool)


def _lookup(found: Found, ids: np.ndarray) -> np.ndarray:
    """The probability of each entry; 0 where it was not found. ``found`` ascends."""
    if not len(found.ids):
        return np.zeros(len(ids))
    at = np.minimum(np.searchsorted(found.ids, ids), len(found.ids) - 1)
    return np.where(found.ids[at] == ids, found.p[at], 0.0)
