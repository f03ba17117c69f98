"""BM25 over what a document has said so far.

A chunk of a document searches the chunks before it. Frequencies of terms and mean
length are those of what may be found, so nothing after the chunk has a say, and one
pass over the document serves all of its chunks; an index a chunk (`retrieval.bm25`)
would give the same scores.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.retrieval.bm25 import BM25Config


class Document:
    """The terms of a document's chunks, by term."""

    def __init__(self, chunks: Sequence[Sequence[str]], config: BM25Config):
        """Reads the terms.

        Args:
          chunks: the terms of each chunk, with repetition (`bm25.analyser`).
          config: k1 and b; its method has to be lucene.

        Raises:
          UserError: another method.
        """
        if config.method != "lucene":
            raise UserError(
                f"BM25 within a document is Lucene's, not {config.method!r}; set the "
                "method to lucene."
            )
        self._config = config
        self._lengths = np.array([len(terms) for terms in chunks], np.float64)
        postings: dict[str, list[tuple[int, int]]] = {}
        for row, terms in enumerate(chunks):
            for term, count in Counter(terms).items():
                postings.setdefault(term, []).append((row, count))
        self._postings = {term: np.array(x) for term, x in postings.items()}

    def search(
        self, query: Sequence[str], first: int, stop: int, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k chunks of ``first`` ... ``stop`` - 1 with the largest scores.

            sum over terms t of the query, as often as they occur, of
                ln(1 + (N - n_t + 0.5) / (n_t + 0.5))
                f / (f + k1 (1 - b + b length / mean length))

        Returns:
          (float32 scores, int32 chunks), best first, earlier ones before equal ones;
          fewer than k where fewer share a term with the query.

        Source: Robertson and Zaragoza 2009, in Lucene's variant.
        """
        size = stop - first
        if size < 1:
            return np.zeros(0, np.float32), np.zeros(0, np.int32)
        lengths = self._lengths[first:stop]
        mean = lengths.mean() or 1.0
        k1, b = self._config.k1, self._config.b
        damping = k1 * (1 - b + b * lengths / mean)
        scores, shares = np.zeros(size), np.zeros(size, bool)
        for term, times in Counter(query).items():
            found = self._postings.get(term)
            if found is None:
                continue
            low, high = np.searchsorted(found[:, 0], (first, stop))
            rows, counts = found[low:high, 0] - first, found[low:high, 1]
            n = len(rows)
            idf = math.log(1 + (size - n + 0.5) / (n + 0.5))
            scores[rows] += times * idf * counts / (counts + damping[rows])
            shares[rows] = True
        candidates = np.flatnonzero(shares)
        order = np.argsort(-scores[candidates], kind="stable")[:k]
        best = candidates[order]
        return scores[best].astype(np.float32), (best + first).astype(np.int32)
