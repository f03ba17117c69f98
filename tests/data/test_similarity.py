import collections
import itertools
import math

import numpy as np
import pytest

from rlm_jax.data import similarity
from rlm_jax.errors import UserError


@pytest.fixture
def segments():
    return np.random.default_rng(0).zipf(1.5, (40, 12)) % 60


def bm25(segments, query, k1=1.5, b=0.75):
    """Lucene's BM25 of one segment's terms against all segments, as a loop."""
    counts = [collections.Counter(segment.tolist()) for segment in segments]
    scores = np.zeros(len(segments))
    for term in segments[query].tolist():
        frequency = sum(term in count for count in counts)
        idf = math.log(1 + (len(segments) - frequency + 0.5) / (frequency + 0.5))
        for row, count in enumerate(counts):  # all segments are of average length
            scores[row] += idf * count[term] / (count[term] + k1 * (1 - b + b))
    return scores


def test_nearest_is_bm25_without_itself(segments):
    for row, hits in enumerate(similarity.nearest(segments, 5, progress=False)):
        scores = bm25(segments, row)
        scores[row] = 0
        assert row not in hits
        np.testing.assert_allclose(
            scores[hits], np.sort(scores)[::-1][: len(hits)], rtol=1e-5
        )


def test_nearest_leaves_out_what_shares_nothing():
    segments = np.array([[1, 2], [2, 3], [8, 9]])
    hits = list(similarity.nearest(segments, 20, progress=False))
    assert [h.tolist() for h in hits] == [[1], [0], []]


def test_greedy_takes_the_first_unused_hit():
    hits = [np.array(h) for h in ([2, 1], [0], [0, 3, 1], [2])]
    order = similarity.greedy(hits, seed=0).tolist()
    assert sorted(order) == [0, 1, 2, 3]
    for current, following in itertools.pairwise(order):
        unused = [h for h in hits[current] if h not in order[: order.index(following)]]
        assert not unused or unused[0] == following


def test_greedy_without_hits_is_a_random_order():
    hits = [np.zeros(0, int)] * 50
    order = similarity.greedy(hits, seed=1)
    assert sorted(order) == list(range(50)) and order.tolist() != list(range(50))
    assert (order != similarity.greedy(hits, seed=2)).any()


def test_walk_keeps_topics_together(tmp_path):
    topics = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 10))
    rng = np.random.default_rng(1)
    segments = topics[:, None] * 100 + rng.integers(0, 30, (40, 20))
    order = similarity.walk(segments, cache_dir=tmp_path, progress=False)
    changes = (np.diff(topics[order]) != 0).sum()
    assert changes == 3


def test_walk_is_kept_and_a_damaged_one_refused(segments, tmp_path, monkeypatch):
    first = similarity.walk(segments, cache_dir=tmp_path, progress=False)
    monkeypatch.setattr(similarity, "nearest", None)  # a second search would fail
    again = similarity.walk(segments, cache_dir=tmp_path, progress=False)
    np.testing.assert_array_equal(first, again)
    assert first.dtype == np.int32

    (stored,) = tmp_path.rglob("walk.npy")
    stored.write_bytes(stored.read_bytes()[:-8])
    with pytest.raises(UserError, match="truncated or altered"):
        similarity.walk(segments, cache_dir=tmp_path, progress=False)
