"""BM25 of a growing document: an index a chunk gives the same."""

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.retrieval import bm25, bm25_so_far

WORDS = "the cat dog house river stone bird lamp road ran saw red".split()


@pytest.fixture(scope="module")
def chunks():
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(14)]


@pytest.mark.parametrize("stemmer", ["none", "porter"])
def test_what_an_index_of_the_chunks_so_far_finds(chunks, stemmer):
    config = bm25.BM25Config(stemmer=stemmer)
    analyse = bm25.analyser(config)
    terms = [analyse(x) for x in chunks]
    document = bm25_so_far.Document(terms, config)
    spans = [(max(i - 8, 0), i - 2) for i in range(len(chunks))]
    for i, (first, stop) in enumerate(spans):
        scores, ids = document.search(terms[i], first, stop, 3)
        if stop <= first:
            assert len(ids) == len(scores) == 0
            continue
        index = bm25.build(chunks[first:stop], config)
        wanted = index.search([chunks[i]], 3)
        there = wanted.ids[0] >= 0
        np.testing.assert_allclose(scores, wanted.scores[0][there], rtol=1e-5)
        np.testing.assert_array_equal(ids, wanted.ids[0][there] + first)


def test_nothing_later_has_a_say(chunks):
    analyse = bm25.analyser(bm25.published())
    terms = [analyse(x) for x in chunks]
    short = bm25_so_far.Document(terms[:9], bm25.published())
    whole = bm25_so_far.Document(terms, bm25.published())
    for a, b in zip(
        short.search(terms[8], 0, 7, 4), whole.search(terms[8], 0, 7, 4), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_another_method_is_refused():
    with pytest.raises(UserError, match="not 'atire'; set the method to lucene"):
        bm25_so_far.Document([["a"]], bm25.BM25Config(method="atire"))
