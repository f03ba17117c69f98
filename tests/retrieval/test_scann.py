import sys

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.retrieval import datastore, exact, scann
from rlm_jax.retrieval.index import recall
from rlm_jax.retrieval.scann import Parameters

pytest.importorskip("scann")

PARTITIONED = Parameters(num_leaves=40, leaves_to_search=16, reorder_factor=8)


def store_of(path, num=2000, dim=16, seed=0):
    rng = np.random.default_rng(seed)
    centres = 2 * rng.normal(size=(40, dim))
    keys = centres[rng.integers(0, 40, num)] + rng.normal(size=(num, dim))
    # ScaNN sums in another order from call to call; of such numbers any order is exact.
    keys = np.round(64 * keys) / 64
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
    assert index.recall == (1.0 if parameters is None else None)
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
        for array, wanted in zip(
            loaded.search(queries, 10), index.search(queries, 10), strict=True
        ):
            np.testing.assert_array_equal(array, wanted)


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
    assert index.recall == scann.measure_recall(index, truth, queries, 10) >= 0.99
    start = scann.choose_parameters(6000)
    assert index.parameters.num_leaves == start.num_leaves
    assert index.parameters.leaves_to_search >= start.leaves_to_search
    scann.save(index, tmp_path / "index")
    loaded = scann.load(tmp_path / "index", store, verify=False)
    assert scann.report(loaded) == scann.report(index)
    assert loaded.parameters == index.parameters


def test_a_higher_target_searches_more_and_a_kept_int8_may_miss_it(large):
    store, queries = large
    work = []
    for target in (0.3, 0.9999):
        index = scann.build(store, metric="ip", target_recall=target, k=20)
        assert index.recall and index.recall >= target and index.tuned_k == 20
        work.append(index.parameters.leaves_to_search * index.parameters.reorder_factor)
    assert work[0] < work[1]
    lossy = scann.build(store, kept="int8", target_recall=1.0)
    assert lossy.parameters.kept == "int8" and 0.8 < (lossy.recall or 0) <= 1
    assert scann.report(lossy)["kept_bytes"] == 6000 * 16
    assert scann.report(index)["kept_bytes"] == 6000 * 16 * 4


def test_a_range_of_rows_answers_with_rows_of_the_datastore(large):
    store, queries = large
    index = scann.build(store, metric="ip", rows=(1000, 5500), queries=queries)
    keys = store.keys(1000, 5500)
    wanted = exact.build(keys, metric="ip").search(queries, 10)
    wanted = wanted._replace(ids=wanted.ids + 1000)
    assert index.num_entries == 4500
    assert recall(index.search(queries, 10), wanted) == index.recall


def test_the_sample_is_seeded_and_of_the_queries_if_there_are_any(large):
    store, queries = large
    sample = scann.sample_queries(store, None)
    assert sample.shape == (1000, 16) and sample.dtype == np.float32
    np.testing.assert_array_equal(sample, scann.sample_queries(store, None))
    given = scann.sample_queries(store, np.arange(5000.0)[:, None])
    assert given.shape == (1000, 1) and len(np.unique(given)) == 1000


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
    leaves, searched, *_ = scann.choose_parameters(num_entries)
    assert 0 < searched < leaves < num_entries / 10
    larger = scann.choose_parameters(4 * num_entries)
    assert larger.num_leaves == pytest.approx(2 * leaves, rel=0.01)
    assert larger.leaves_to_search / larger.num_leaves < searched / leaves
    assert scann.choose_parameters(1000).num_leaves == 0
