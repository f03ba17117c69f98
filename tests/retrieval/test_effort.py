import numpy as np
import pytest

from rlm_jax.method import Neighbours
from rlm_jax.retrieval import effort
from rlm_jax.retrieval.effort import Effort

TUNED = (Effort(1, 10, 40), Effort(10, 40, 160), Effort(100, 90, 640))
BOUNDS = {"num_leaves": 1000, "num_entries": 10**6}


@pytest.mark.parametrize("k", [1, 10, 100])
def test_what_was_tuned_is_taken_as_it_is(k):
    wanted = next(one for one in TUNED if one.k == k)
    assert effort.for_k(TUNED, k, **BOUNDS) == wanted


def test_between_two_it_is_geometric_and_beyond_proportional():
    at = np.log(3) / np.log(10)
    between = effort.for_k(TUNED, 3, **BOUNDS)
    assert between.leaves == 40
    assert between.candidates == np.ceil(40 * 4**at)
    assert effort.for_k(TUNED, 1000, **BOUNDS) == Effort(1000, 900, 6400)
    assert effort.for_k(TUNED[1:], 2, **BOUNDS) == Effort(2, 40, 160)


def test_an_effort_never_falls_with_k_and_keeps_its_bounds():
    ks = [1, 2, 5, 10, 11, 60, 100, 300, 5000, 10**6, 10**7]
    efforts = [effort.for_k(TUNED, k, **BOUNDS) for k in ks]
    for one, more in zip(efforts[:-1], efforts[1:], strict=True):
        assert one.leaves <= more.leaves <= 1000
        assert one.candidates <= more.candidates <= 10**6
    assert all(one.candidates >= min(one.k, 10**6) for one in efforts)
    assert efforts[-1] == Effort(10**7, 1000, 10**6)


def searched(leaves_for, candidates_for, ceiling=1.0):
    """A search that finds a share which rises with its effort."""
    spent = []

    def search(queries, one):
        spent.append(one)
        share = ceiling
        share *= 1 - np.exp(-one.leaves / leaves_for(one.k))
        share *= 1 - np.exp(-one.candidates / candidates_for(one.k))
        ids = np.arange(len(queries) * one.k, dtype=np.int32).reshape(-1, one.k)
        ids[np.arange(ids.size).reshape(ids.shape) % 1000 >= 1000 * share] = -1
        return Neighbours(np.zeros(ids.shape, np.float32), ids)

    return search, spent


def tune(search, target, depth=1024, lossy=False):
    queries = np.zeros((1000, 2), np.float32)
    truth = Neighbours(
        np.zeros((1000, depth), np.float32), np.zeros((1000, depth), np.int32)
    )
    with pytest.MonkeyPatch.context() as patch:
        # Ids do not matter here: what is found is not -1.
        share = lambda found, wanted, slack: float((found.ids >= 0).mean())  # noqa: E731
        patch.setattr(effort, "recall", share)
        return effort.tune(
            search,
            queries,
            truth,
            target,
            first_leaves=3,
            num_leaves=2000,
            num_entries=100_000,
            lossy=lossy,
        )


def test_every_k_reaches_the_target_without_waste():
    needs = (lambda k: 4 + k**0.5, lambda k: 10 + k)
    search, spent = searched(*needs)
    efforts = tune(search, 0.95)
    assert [one.k for one in efforts] == list(effort.KS)
    for one in efforts:
        assert one.recall is not None and one.recall >= 0.95
        assert one.recall < 0.965
        # With the other unbounded, either would take log(20) = 3 times its need.
        assert 3 * needs[0](one.k) <= one.leaves < 6 * needs[0](one.k)
        assert 3 * needs[1](one.k) <= one.candidates < 6 * needs[1](one.k)
    assert len(spent) < 200
    assert [one.k for one in tune(search, 0.95, depth=70)] == [10, 64, 70]


def test_a_target_out_of_reach_does_not_cost_a_search_of_everything():
    search, spent = searched(lambda k: 4 + k**0.5, lambda k: 10 + k, ceiling=0.9)
    efforts = tune(search, 0.95, lossy=True)
    for one in efforts:
        assert one.recall is not None and 0.85 < one.recall <= 0.9
        assert one.leaves < 1000 and one.candidates < 20_000
    assert len(spent) < 300
