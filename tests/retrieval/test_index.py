import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import index


def neighbours(ids):
    return Neighbours(np.zeros(np.shape(ids), np.float32), np.array(ids, np.int32))


def test_recall_counts_shared_ids_and_no_absent_ones():
    truth = neighbours([[0, 1, 2], [3, 4, -1]])
    assert index.recall(truth, truth) == 1
    assert index.recall(neighbours([[2, 9, 8], [-1, -1, 4]]), truth) == 2 / 5
    assert index.recall(neighbours([[3, 4], [0, 1]]), truth) == 0
    assert index.recall(neighbours([[0]]), neighbours([[-1]])) == 1


def test_of_equal_keys_any_counts_within_the_slack():
    scores = np.array([[3, 2, 1.0]], np.float32)
    truth = Neighbours(scores, np.array([[0, 1, 2]], np.int32))
    # The last has the score of another key; one before it is another key and farther.
    found = Neighbours(
        np.array([[3, 1.0005, 0.9]], np.float32), np.array([[0, 7, 8]], np.int32)
    )
    assert index.recall(found, truth) == 1 / 3
    assert index.recall(found, truth, np.array([0], np.float32)) == 2 / 3
    assert index.recall(found, truth, np.array([0.2], np.float32)) == 1
    nearest = Neighbours(scores[:, :1], truth.ids[:, :1])
    assert index.recall(found, nearest, np.array([5], np.float32)) == 1
    absent = Neighbours(np.full((1, 3), -np.inf, "f4"), np.full((1, 3), -1, np.int32))
    assert index.recall(absent, truth, np.array([np.inf], np.float32)) == 0


@pytest.mark.parametrize("k", [1, 3, 9])
def test_first_kept_is_what_a_loop_finds(k):
    rng = np.random.default_rng(0)
    ids = rng.permuted(np.tile(np.arange(6), (20, 1)), axis=1).astype(np.int32)
    ids[rng.random(ids.shape) < 0.2] = -1
    found = Neighbours(rng.normal(size=ids.shape).astype(np.float32), ids)
    stays = rng.random((20, 6)) < 0.5

    kept = index.first_kept(found, lambda ids: np.take_along_axis(stays, ids, 1), k)

    for row in range(20):
        left = [
            (score, i)
            for score, i in zip(found.scores[row], ids[row], strict=True)
            if i >= 0 and stays[row, i]
        ][:k]
        left += [(-np.inf, -1)] * (k - len(left))
        np.testing.assert_array_equal(kept.scores[row], [x for x, _ in left])
        np.testing.assert_array_equal(kept.ids[row], [i for _, i in left])


@pytest.mark.parametrize(
    ("queries", "k", "named"),
    [
        (np.zeros((2, 3)), 1, "width 4"),
        (np.zeros(4), 1, "width 4"),
        (np.zeros((2, 4)), 0, "at least 1"),
        (np.full((2, 4), np.nan), 1, "NaN"),
    ],
)
def test_bad_searches_are_refused(queries, k, named):
    with pytest.raises(UserError, match=named):
        index.check_search(queries, k, 4)
