import sys

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import datastore, effort, exact, scann
from rlm_jax.retrieval import rotation as rotations
from rlm_jax.retrieval.effort import Effort
from rlm_jax.retrieval.index import TARGET_RECALL, recall
from rlm_jax.retrieval.scann import Parameters

pytest.importorskip("scann")

PARTITIONED = Parameters(num_leaves=40, efforts=(Effort(10, 16, 80),))


def store_of(path, num=2000, dim=16, seed=0):
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(40, dim))
    keys = centres[rng.integers(0, 40, num)] + rng.normal(size=(num, dim))
    writer = datastore.create(path, dim=dim, num_entries=num, identity={"seed": seed})
    writer.append(keys, np.arange(num))
    return writer.publish(), (keys[:50] + 0.125).astype(np.float32)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return store_of(tmp_path_factory.mktemp("scann") / "store")


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("parameters", [None, PARTITIONED])
def test_finds_what_exact_search_finds(small, metric, parameters):
    store, queries = small
    index = scann.build(store, metric=metric, parameters=parameters)
    truth = exact.build(store, metric=metric)
    measured = scann.measure_recall(index, truth, queries, 10)
    assert measured >= (1.0 if parameters is None else 0.9)
    assert scann.report(index)["recall"] == ({10: 1.0} if parameters is None else {})
    found, wanted = index.search(queries, 10), truth.search(queries, 10)
    assert found.ids.dtype == np.int32 and found.scores.dtype == np.float32
    same = found.ids == wanted.ids
    np.testing.assert_allclose(
        found.scores[same], wanted.scores[same], rtol=1e-4, atol=1e-3
    )
    assert (np.diff(found.scores, axis=1) <= 0).all()


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("parameters", [None, PARTITIONED])
def test_k_beyond_the_index(small, metric, parameters):
    store, queries = small
    index = scann.build(store, metric=metric, parameters=parameters)
    found = index.search(queries, 2100)
    assert found.ids.shape == (50, 2100)
    assert (found.ids[:, 2000:] == -1).all()
    assert (found.scores[:, 2000:] == -np.inf).all()
    assert (np.sort(found.ids[:, :2000]) == np.arange(2000)).all()
    assert index.search(queries[:0], 3).ids.shape == (0, 3)


def test_saved_and_loaded_it_finds_the_same(small, tmp_path):
    store, queries = small
    for metric in ("l2", "ip"):
        index = scann.build(store, metric=metric, parameters=PARTITIONED)
        scann.save(index, tmp_path / metric)
        (tmp_path / metric).rename(tmp_path / f"moved {metric}")
        loaded = scann.load(tmp_path / f"moved {metric}", store)
        assert loaded.parameters == PARTITIONED and loaded.metric == metric
        found, wanted = (one.search(queries, 10) for one in (loaded, index))
        # ScaNN sums in another order from call to call, which can swap equal keys.
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5, atol=1e-4)
        assert (found.ids == wanted.ids).mean() > 0.95


def share_of(index, exactly, queries, k):
    """The recall, of equal keys any."""
    truth = exactly.search(queries, effort.KS[-1])
    equal = rotations.rounding(index.rotation, queries, truth.scores)
    wanted = Neighbours(truth.scores[:, :k], truth.ids[:, :k])
    return recall(index.search(queries, k), wanted, equal)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return store_of(tmp_path_factory.mktemp("scann") / "store", num=6000)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_tuning_reaches_the_target_without_training_again(large, metric, tmp_path):
    store, queries = large
    truth = exact.build(store, metric=metric)
    trained = []
    train = scann._train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scann, "_train", lambda *a: trained.append(a) or train(*a))
        index = scann.build(store, metric=metric, target_recall=0.99, queries=queries)
    assert len(trained) == 1
    assert list(index.parameters.efforts) == sorted(index.parameters.efforts)
    for one in index.parameters.efforts:
        # At the smallest k the very nearest are judged as well.
        measured = [
            share_of(index, truth, queries, k)
            for k in ([1, one.k] if one.k == effort.KS[0] else [one.k])
        ]
        assert one.recall == pytest.approx(min(measured), abs=1e-3)
        assert (one.recall or 0) >= 0.99
    assert [one.k for one in index.parameters.efforts] == list(effort.KS)
    start = scann.choose_parameters(6000)
    assert index.parameters.num_leaves == start.num_leaves
    for one in index.parameters.efforts:
        assert 1 <= one.leaves <= start.num_leaves
        assert one.k <= one.candidates <= 6000
    scann.save(index, tmp_path / "index")
    loaded = scann.load(tmp_path / "index", store, verify=False)
    assert scann.report(loaded) == scann.report(index)
    assert loaded.parameters == index.parameters


@pytest.mark.slow
def test_a_higher_target_searches_more_and_a_kept_int8_may_miss_it(large):
    store, queries = large
    work = []
    for target in (0.3, 0.9999):
        index = scann.build(store, metric="ip", target_recall=target)
        assert all((one.recall or 0) >= target for one in index.parameters.efforts)
        work.append([x.leaves * x.candidates for x in index.parameters.efforts])
    assert all(less <= more for less, more in zip(*work, strict=True))
    assert sum(work[0]) < sum(work[1])
    lossy = scann.build(store, kept="int8", target_recall=1.0)
    assert lossy.parameters.kept == "int8"
    assert all(0.8 < (one.recall or 0) <= 1 for one in lossy.parameters.efforts)
    assert scann.report(lossy)["kept_bytes"] == 6000 * 16
    assert scann.report(index)["kept_bytes"] == 6000 * 16 * 4


def test_a_range_of_rows_answers_with_rows_of_the_datastore(large):
    store, queries = large
    index = scann.build(store, metric="ip", rows=(1000, 5500), queries=queries)
    keys = store.keys(1000, 5500)
    wanted = exact.build(keys, metric="ip").search(queries, 64)
    wanted = wanted._replace(ids=wanted.ids + 1000)
    assert index.num_entries == 4500
    measured = scann.report(index)["recall"][64]
    found = recall(index.search(queries, 64), wanted)
    assert found == pytest.approx(measured, abs=2e-3)


def test_the_sample_is_seeded_and_of_the_queries_if_there_are_any(large):
    store, queries = large
    sample = effort.sample_queries(store, None)
    assert sample.shape == (2000, 16) and sample.dtype == np.float32
    np.testing.assert_array_equal(sample, effort.sample_queries(store, None))
    given = effort.sample_queries(store, np.arange(5000.0)[:, None])
    assert given.shape == (2000, 1) and len(np.unique(given)) == 2000


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"target_recall": 0}, "target recall of 0"),
        ({"target_recall": 1.5}, "target recall of 1.5"),
        ({"kept": "float64"}, "'float64'"),
        ({"queries": np.zeros((3, 5))}, "width 16"),
    ],
    ids=["zero", "above one", "dtype", "queries"],
)
def test_impossible_tuning_is_refused(small, options, named):
    with pytest.raises(UserError, match=named):
        scann.build(small[0], **options)


def test_damaged_foreign_and_missing_indexes_are_refused(small, tmp_path):
    store, _ = small
    saved = tmp_path / "index"
    scann.save(scann.build(store), saved)
    with pytest.raises(UserError, match="already"):
        scann.save(scann.build(store), saved)
    with pytest.raises(UserError, match="datastore = "):
        scann.load(saved, store_of(tmp_path / "other", num=20, seed=1)[0])
    with pytest.raises(UserError, match="no index"):
        scann.load(tmp_path / "none", store)
    added = saved / "scann_docids.pkl"
    added.write_bytes(b"never unpickled")
    with pytest.raises(UserError, match="not those it was saved with"):
        scann.load(saved, store)
    added.unlink()
    scann.load(saved, store)
    for path in saved.iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match="build it again"):
            scann.load(saved, store)
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def test_without_scann_the_remedy_is_named(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "scann.scann_ops.py", None)
    with pytest.raises(UserError, match="pip install scann"):
        scann.build(small[0])


@pytest.mark.parametrize("num_entries", [4096, 100_000, 10**6, 10**8])
def test_parameters_grow_slower_than_the_size(num_entries):
    leaves, (first,), _ = scann.choose_parameters(num_entries)
    assert 0 < first.leaves < leaves < num_entries / 10
    more, (larger,), _ = scann.choose_parameters(4 * num_entries)
    assert more == pytest.approx(2 * leaves, rel=0.01)
    assert larger.leaves / more < first.leaves / leaves
    assert scann.choose_parameters(1000).num_leaves == 0


def states(num, seed, metric, dim=64):
    """As a language model's: clusters, with a strong mean in two coordinates.

    For distances one key of a hundred, as at the first tokens of windows, is many times
    as long as the others; as for inner products it would be everybody's nearest.
    """
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(400, dim))
    keys = centres[rng.integers(0, 400, num)] + 0.6 * rng.normal(size=(num, dim))
    keys[:, 5:7] += [30, -10]
    if metric == "l2":
        first = rng.random(num) < 0.01
        keys[first] *= 0.3
        keys[first, 5:7] = [130, -60] + rng.normal(size=(first.sum(), 2))
    return keys.astype(np.float32)


@pytest.fixture(scope="module", params=["l2", "ip"])
def language(request, tmp_path_factory):
    metric = request.param
    path = tmp_path_factory.mktemp("scann") / "states"
    writer = datastore.create(path, dim=64, num_entries=20_000, identity={})
    writer.append(states(20_000, 1, metric), np.arange(20_000))
    store, queries = writer.publish(), states(5000, 2, metric)
    index = scann.build(store, metric=metric, queries=queries[:2000])
    return store, index, queries[2000:]


@pytest.mark.slow
def test_states_of_language_models_are_found_for_every_k(language):
    store, index, queries = language
    exactly = exact.build(store, metric=index.metric)
    # The fewer neighbours, the more queries a recall takes.
    for some, ks in (
        (queries, (1, 3, 10, 30, 64)),
        (queries[:250], (150, 256, 600, 1024, 2000)),
    ):
        truth = exactly.search(some, ks[-1])
        for k in ks:
            wanted = Neighbours(truth.scores[:, :k], truth.ids[:, :k])
            assert recall(index.search(some, k), wanted) >= TARGET_RECALL - 0.005


@pytest.mark.parametrize("metric", [pytest.param("l2", marks=pytest.mark.slow), "ip"])
def test_equal_keys_do_not_cost_a_search_of_everything(metric, tmp_path):
    """As at windows' first tokens, whose states are equal where the tokens are."""
    keys = states(6000, 1, "ip", dim=32)
    keys[::4] = 40 * keys[0] / np.linalg.norm(keys[0])
    # But for rounding, by which exact search has an order among them.
    keys[::4] *= 1 + 5e-7 * np.random.default_rng(3).normal(size=(1500, 1))
    writer = datastore.create(
        tmp_path / "s", dim=32, dtype="float32", num_entries=6000, identity={}
    )
    writer.append(keys, np.arange(6000))
    store, queries = writer.publish(), states(1000, 2, "ip", dim=32)
    queries[::3] = keys[0]
    index = scann.build(store, metric=metric, queries=queries)
    for one in index.parameters.efforts[:2]:
        assert (one.recall or 0) >= TARGET_RECALL
        assert one.leaves < 155 and one.candidates < 3000
    truth = exact.build(store, metric=metric).search(queries, 10)
    found = index.search(queries, 10)
    assert index.rotation is not None
    equal = rotations.rounding(index.rotation, queries, truth.scores)
    assert recall(found, truth, equal) >= TARGET_RECALL - 0.005
    assert recall(found, truth) < 0.9  # by their ids


@pytest.mark.slow
def test_scores_are_those_of_the_keys_as_they_were(language):
    store, index, queries = language
    keys = store.keys(0, store.num_entries).astype(np.float64)
    centre = keys.mean(axis=0)
    found = index.search(queries[:500], 64)
    for query, scores, ids in zip(queries[:500].astype(float), *found, strict=True):
        # Rounding is that of the parts which a score is the difference of.
        parts = np.abs(keys[ids]) @ np.abs(query)
        wanted = keys[ids] @ query
        if index.metric == "l2":
            parts = ((query - centre) ** 2).sum() + ((keys[ids] - centre) ** 2).sum(1)
            wanted = -((keys[ids] - query) ** 2).sum(axis=1)
        assert (np.abs(scores - wanted) < 2e-6 * parts).all()


@pytest.mark.slow
def test_turned_saved_and_loaded_it_finds_the_same(language, tmp_path):
    store, index, queries = language
    scann.save(index, tmp_path / "index")
    loaded = scann.load(tmp_path / "index", store)
    assert loaded.parameters == index.parameters
    found, wanted = (one.search(queries, 20) for one in (loaded, index))
    assert recall(found, wanted) > 0.9999  # ScaNN sums in another order at each call
    same = found.ids == wanted.ids
    assert index.rotation is not None
    # Both sums are a product's: a quarter of what a sum of products may be off by.
    rounding = rotations.rounding(index.rotation, queries, wanted.scores) / 4
    difference = np.abs(found.scores - wanted.scores)
    assert (difference <= rounding[:, None])[same].all()


@pytest.mark.slow
def test_turning_orders_states_that_as_they_are_have_no_order(language):
    """By their hashes, with every leaf visited; `rotation` says why."""
    store, index, queries = language
    truth = exact.build(store, metric=index.metric).search(queries, 10)
    inner = index.metric == "ip"
    keys = store.keys(0, store.num_entries)
    builder = scann.library().builder(keys, 10, scann._DISTANCES[index.metric])
    threshold = 0.2 if inner else float("nan")
    searcher = (
        builder.tree(283, 283, soar_lambda=1.5 if inner else None)
        .score_ah(2, anisotropic_quantization_threshold=threshold)
        .reorder(40)
        .build()
    )
    ids, scores = searcher.search_batched_parallel(queries, final_num_neighbors=10)
    before = recall(Neighbours(scores, ids.astype(np.int32)), truth)
    now = recall(index.search_with(queries, Effort(10, 283, 40)), truth)
    # By distances nearly all were missed. By inner products ScaNN's clusters, which
    # differ from build to build, decide how many: nothing certain can be said of them.
    assert inner or (before < 0.3 and now > 0.9)
    assert now > 0.75
