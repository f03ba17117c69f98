"""A datastore searched for an evaluated text, its controls, and exact search beside."""

import numpy as np
import pytest

from rlm_jax.evaluate import knn, token_search
from rlm_jax.evaluate.perplexity import StreamScores
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import datastore, exact

N, M, WIDTH, K = 20, 150, 4, 6


class Worst:
    """An approximate index that finds what is furthest."""

    def __init__(self, index, num_entries):
        self._index, self.num_entries, self.dim = index, num_entries, WIDTH

    def search(self, queries, k):
        found = self._index.search(queries, self.num_entries)
        return Neighbours(*(x[:, ::-1][:, :k] for x in found))


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> datastore.Datastore:
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("store") / "s"
    writer = datastore.create(
        folder, dim=WIDTH, num_entries=M, identity={}, dtype="float32"
    )
    writer.append(
        rng.normal(size=(M, WIDTH)).astype(np.float32), np.arange(M, dtype=np.int32)
    )
    return writer.publish()


@pytest.fixture(scope="module")
def stream() -> StreamScores:
    rng = np.random.default_rng(1)
    return StreamScores(
        np.zeros(N, np.float32),
        np.ones(N, np.float32),
        rng.normal(size=(N, WIDTH)).astype(np.float32),
        rng.integers(0, M, N).astype(np.int32),
    )


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("limit", [None, 7])
def test_neighbours_are_those_of_a_loop(keys, stream, recompute, limit):
    scale = 0.5
    index = exact.build(keys, metric="l2")
    searched = token_search.Searched(keys, index, K, "l2", scale)
    neighbours, ids = token_search.look_up(
        stream, searched, recompute=recompute, limit=limit
    )
    stored = np.asarray(keys.gather_keys(np.arange(M)), np.float64)
    queries = stream.keys[:limit].astype(np.float64) * scale
    assert len(ids) == len(queries)
    for row, query in enumerate(queries):
        distances = ((stored - query) ** 2).sum(1)
        np.testing.assert_array_equal(ids[row], np.argsort(distances)[:K])
        np.testing.assert_allclose(
            neighbours.similarities[row], -np.sort(distances)[:K], rtol=1e-3, atol=1e-4
        )
    np.testing.assert_array_equal(neighbours.values, ids)  # the values are 0, 1, ...


def test_controls_keep_the_similarities_and_move_values_or_tokens(keys, stream):
    index = exact.build(keys, metric="l2")
    searched = token_search.Searched(keys, index, K, "l2", 1.0)
    neighbours, ids = token_search.look_up(stream, searched, recompute=False)
    ids[0, -1], neighbours.values[0, -1] = -1, -1
    controls = token_search.by_control(neighbours, ids, keys)
    assert controls["real"] is neighbours
    shuffled = controls["shuffled"]
    np.testing.assert_array_equal(shuffled.similarities, neighbours.similarities)
    assert shuffled.values[0, -1] == -1
    # One permutation of all values: an entry has one value wherever it is found.
    value_of = {}
    for entry, value in zip(ids[ids >= 0], shuffled.values[ids >= 0], strict=True):
        assert value_of.setdefault(int(entry), int(value)) == value
    assert len(set(value_of.values())) == len(value_of)
    assert any(entry != value for entry, value in value_of.items())
    np.testing.assert_array_equal(
        controls["foreign"].values, np.roll(neighbours.values, -N // 2, axis=0)
    )


def test_an_approximate_index_is_compared_with_exact_search(keys, stream):
    index = exact.build(keys, metric="l2")
    worst = Worst(index, M)
    counts = []

    def log_probs(neighbours: knn.NeighbourValues, count: int) -> np.ndarray:
        counts.append((len(neighbours.values), count))
        return neighbours.similarities[:, 0]  # of the nearest

    searched = token_search.Searched(keys, worst, K, "l2", 1.0)
    told = token_search.compared_with_exact(
        stream, searched, log_probs, num_tokens=12, recompute=False
    )
    assert counts == [(12, 12), (12, 12)] and told["tokens"] == 12
    assert told["perplexity_approximate"] > told["perplexity_exact"] > 1
    assert told["recall@10"] == 0 and 0 < told["recall@100"] < 1
    assert not token_search.compared_with_exact(
        stream, searched._replace(index=index), log_probs, num_tokens=12,
        recompute=False,
    )  # fmt: skip
