import sys

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.retrieval import auto_index, datastore, exact, scann, sharded


def store_of(path):
    keys = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    writer = datastore.create(path, dim=4, num_entries=50, identity={})
    writer.append(keys, np.arange(50))
    return writer.publish(), keys


@pytest.fixture
def no_scann(monkeypatch):
    monkeypatch.setitem(sys.modules, "scann.scann_ops.py", None)


def test_choose_goes_by_size_and_keeps_what_it_built(tmp_path, monkeypatch):
    pytest.importorskip("scann")
    store, keys = store_of(tmp_path / "s")
    assert isinstance(auto_index.choose(store, "ip"), exact.Exact)
    first = auto_index.choose(store, "ip", exact_below=50)
    assert isinstance(first, scann.ScannIndex)
    monkeypatch.setattr(scann, "build", None)
    again = auto_index.choose(store, "ip", exact_below=50)
    assert (again.search(keys, 3).ids == first.search(keys, 3).ids).all()
    with pytest.raises(UserError, match="target_recall = 0.995"):
        auto_index.choose(store, "ip", exact_below=50, target_recall=0.9)
    with pytest.raises(UserError, match="kept = 'float32'"):
        auto_index.choose(store, "ip", exact_below=50, kept="int8")
    with pytest.raises(UserError, match="target recall of 0"):
        auto_index.choose(store, "ip", target_recall=0)
    with pytest.raises(UserError, match="'cosine'"):
        auto_index.choose(store, "cosine")
    with pytest.raises(UserError, match="'cosine'"):
        auto_index.choose(store, "cosine", exact_below=50)


def test_choose_takes_several_indexes_above_a_number_of_entries(tmp_path, monkeypatch):
    pytest.importorskip("scann")
    store, keys = store_of(tmp_path / "s")
    options = {"exact_below": 0, "shard_entries": 20, "directory": tmp_path / "index"}
    first = auto_index.choose(store, "l2", **options)
    assert isinstance(first, sharded.Sharded) and len(first.folders) == 3
    monkeypatch.setattr(sharded, "build", None)
    again = auto_index.choose(store, "l2", memory_bytes=0, **options)
    assert isinstance(again, sharded.Sharded) and again.resident is None
    assert (again.search(keys, 3).ids == first.search(keys, 3).ids).all()
    with pytest.raises(UserError, match="metric = 'l2'"):
        auto_index.choose(store, "ip", **options)


def test_without_scann_auto_is_exact_and_scann_is_refused(tmp_path, no_scann):
    store, keys = store_of(tmp_path / "s")
    for metric in ("ip", "l2"):
        index = auto_index.choose(store, metric, exact_below=0)
        assert isinstance(index, exact.Exact) and index.metric == metric
        wanted = exact.build(store, metric=metric).search(keys, 3)
        np.testing.assert_array_equal(index.search(keys, 3).ids, wanted.ids)
    with pytest.raises(UserError, match="pip install scann"):
        auto_index.choose(store, "ip", kind="scann")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_the_kind_is_what_it_says_at_any_size():
    for entries in (1, 10**9):
        assert auto_index.resolve("exact", entries) == "exact"
    assert auto_index.resolve("auto", auto_index.EXACT_BELOW - 1) == "exact"
    with pytest.raises(UserError, match="datastore.index is 'faiss'; choose one of au"):
        auto_index.resolve("faiss", 1, field="datastore.index")


def test_with_scann_the_kind_goes_by_size(tmp_path):
    pytest.importorskip("scann")
    assert auto_index.resolve("scann", 1) == "scann"
    assert auto_index.resolve("auto", auto_index.EXACT_BELOW) == "scann"
    store, _ = store_of(tmp_path / "s")
    assert isinstance(auto_index.choose(store, "l2", kind="scann"), scann.ScannIndex)
    exactly = auto_index.choose(store, "l2", kind="exact", exact_below=0)
    assert isinstance(exactly, exact.Exact)
