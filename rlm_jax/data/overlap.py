"""Text that two collections share, by n-grams of words: so that no answer leaks.

Words are those of `characters.words`, whatever the script, n-grams do not cross from
one text to the next, and a text of fewer than n words has none: it overlaps with
nothing, not even with itself. N-grams are compared by 64-bit hashes: what is shared is
always found, and two different n-grams pass for one with a probability of 2^-64.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from rlm_jax import characters
from rlm_jax.errors import UserError

_BLOCK = 1 << 21  # characters whose words are in memory at once, about 80 bytes each
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: no bit is lost in the product
# A plain polynomial modulo 2^64 is weak: words that change places cancel its low bits.
_SHIFT = np.uint64(32)


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return characters.words(text)


def overlapping(
    passages: Iterable[str], evaluated: Iterable[str], *, n: int = 13
) -> np.ndarray:
    """Which passages share an n-gram of words with an evaluated text.

    Arguments:
      passages: read once, in blocks; any number of them.
      evaluated: read once; 8 bytes of memory for each of its words.
      n: words. 13 is Brown et al.'s (2020, appendix C).

    Returns:
      bool [P], one for each passage.

    Raises:
      UserError: n is below 1.
    """
    shared = _distinct(evaluated, n)
    shares = [np.zeros(0, bool)]
    for hashes, counts in _blocks(passages, n):
        # Where a text's n-grams are empty, so is the difference of the two sums.
        ends = np.cumsum(counts)
        sums = np.concatenate([[0], np.cumsum(_among(hashes, shared))])
        shares.append(sums[ends] > sums[ends - counts])
    return np.concatenate(shares)


def near_duplicates(
    documents: Iterable[str],
    others: Iterable[str],
    threshold: float = 0.8,
    *,
    n: int = 13,
) -> np.ndarray:
    """Which documents have an n-gram Jaccard similarity of `threshold` to another text.

    Exact for every pair of a document and another text, where the paper takes MinHash.

    Arguments:
      documents: read once, in blocks; any number of them.
      others: read once, such as the documents of validation and test; 32 bytes of
        memory for each of their words.
      threshold: above 0, at most 1; equality counts.
      n: words.

    Returns:
      bool [D], one for each document.

    Raises:
      UserError: n is below 1, or the threshold is out of its range.

    Source: Borgeaud et al. 2022, section 2.1.
    """
    if not 0 < threshold <= 1:
        raise UserError(
            f"A Jaccard similarity of {threshold} is no threshold: choose one above 0 "
            "and at most 1."
        )
    sets = [np.unique(hashes) for hashes in _each(others, n)]
    sizes = np.fromiter(map(len, sets), np.int64, len(sets))
    grams = np.concatenate([np.zeros(0, np.uint64), *sets])
    owners = np.repeat(np.arange(len(sets), dtype=np.int32), sizes)
    del sets
    order = np.argsort(grams, kind="stable")
    grams, owners = grams[order], owners[order]
    return np.fromiter(
        (
            _largest_jaccard(np.unique(hashes), grams, owners, sizes, threshold)
            >= threshold
            for hashes in _each(documents, n)
        ),
        bool,
    )


def _largest_jaccard(
    own: np.ndarray,
    grams: np.ndarray,
    owners: np.ndarray,
    sizes: np.ndarray,
    enough: float,
) -> float:
    """Of one set of n-grams to others; a bound where that is below `enough`.

    Arguments:
      own: uint64, ascending, each once.
      grams, owners: the n-grams of the others, ascending, and whose each one is.
      sizes: how many n-grams each of the others has.
    """
    common = own[_among(own, grams)]
    # No other text shares more than all of them do: most documents end here.
    bound = len(common) / max(len(own), 1)
    if not len(common) or bound < enough:
        return bound
    low = np.searchsorted(grams, common, "left")
    high = np.searchsorted(grams, common, "right")
    shared = np.bincount(owners[_ranges(low, high - low)], minlength=len(sizes))
    return float((shared / (len(own) + sizes - shared)).max())


def _distinct(texts: Iterable[str], n: int) -> np.ndarray:
    """The hashes of the n-grams of all texts, uint64, ascending, each once."""
    parts = [np.unique(hashes) for hashes, _ in _blocks(texts, n)]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]))


def _each(texts: Iterable[str], n: int) -> Iterator[np.ndarray]:
    """The hashes of each text's n-grams."""
    for hashes, counts in _blocks(texts, n):
        yield from np.split(hashes, np.cumsum(counts)[:-1])


def _blocks(texts: Iterable[str], n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The n-grams of some texts at a time: hashes uint64 [G], and how many a text's."""
    if n < 1:
        raise UserError(f"There are no n-grams of {n} words: choose n of at least 1.")
    if isinstance(texts, str):  # its characters would be texts that share nothing
        raise TypeError("give an iterable of texts, not one text")
    block: list[str] = []
    counts: list[int] = []
    size = 0
    for text in texts:
        text_words = words(text)
        block += text_words
        counts.append(len(text_words))
        size += len(text) + 1
        if size >= _BLOCK:
            yield _ngrams(block, np.array(counts), n)
            block, counts, size = [], [], 0
    if counts:
        yield _ngrams(block, np.array(counts), n)


def _ngrams(
    block: list[str], lengths: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """A hash of the words' hashes at each place where n words of one text stand."""
    # The hash of a str has 64 bits and a key that each process draws anew, so nothing
    # of this is stored.
    values = np.fromiter(map(hash, block), np.int64, len(block)).view(np.uint64)
    hashes = np.zeros(max(len(values) - n + 1, 0), np.uint64)
    for i in range(n):
        hashes *= _BASE
        hashes += values[i : i + len(hashes)]
        hashes ^= hashes >> _SHIFT
    counts = np.maximum(lengths - n + 1, 0)
    return hashes[_ranges(np.cumsum(lengths) - lengths, counts)], counts


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """``start, start + 1, .. start + count - 1`` of each, one after another."""
    moved = starts - (np.cumsum(counts) - counts)
    return np.arange(counts.sum()) + np.repeat(moved, counts)


def _among(hashes: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Which hashes are in an array in ascending order, bool."""
    if not len(ascending):
        return np.zeros(len(hashes), bool)
    places = np.searchsorted(ascending, hashes)
    return ascending[np.minimum(places, len(ascending) - 1)] == hashes
