import os
import signal
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.retrieval import datastore, effort, exact, scann, sharded

pytest.importorskip("scann")


def store_of(path, num, dim=8):
    # Small integers: equal scores occur, and are equal in float32.
    keys = np.random.default_rng(0).integers(-2, 3, (num, dim))
    writer = datastore.create(
        path, dim=dim, num_entries=num, identity={}, shard_size=70
    )
    writer.append(keys, np.arange(num))
    return writer.publish()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return store_of(tmp_path_factory.mktemp("sharded") / "store", 300)


def queries():
    return np.random.default_rng(1).integers(-2, 3, (20, 8)).astype(np.float32)


@pytest.mark.parametrize("memory_bytes", [0, None], ids=["in turn", "together"])
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_several_indexes_find_what_one_exact_search_finds(
    store, tmp_path, metric, memory_bytes
):
    index = sharded.build(
        store,
        tmp_path / "index",
        metric=metric,
        shard_entries=90,
        memory_bytes=memory_bytes,
    )
    assert len(index.folders) == 4 and (index.resident is None) == (memory_bytes == 0)
    assert (index.dim, index.num_entries) == (8, 300)
    # A centre that is a short binary fraction keeps the distances exact.
    truth = exact.build(store, metric=metric, block_size=64)
    for k in (1, 10, 310):
        found, wanted = index.search(queries(), k), truth.search(queries(), k)
        np.testing.assert_array_equal(found.scores, wanted.scores)
        assert found.ids.dtype == np.int32 and found.scores.dtype == np.float32
        np.testing.assert_array_equal(found.ids < 0, wanted.ids < 0)
    # All 300 are found; of equal scores the lower id comes first, wherever it is kept.
    np.testing.assert_array_equal(found.ids, wanted.ids)
    assert index.search(queries()[:0], 3).ids.shape == (0, 3)
    with pytest.raises(UserError, match="width 8"):
        index.search(np.zeros((1, 3)), 1)


def test_only_one_index_is_in_memory_where_two_do_not_fit(store, tmp_path, monkeypatch):
    sharded.build(store, tmp_path / "index", shard_entries=100)
    alive = []
    load = scann.load

    def counted(*arguments, **options):
        assert all(reference() is None for reference in alive)
        one = load(*arguments, **options)
        alive.append(weakref.ref(one))
        return one

    monkeypatch.setattr(scann, "load", counted)
    one_index = 100 * 8 * 4
    index = sharded.load(tmp_path / "index", store, memory_bytes=one_index - 1)
    index.search(queries(), 3)
    assert len(alive) == 6


@pytest.mark.slow
def test_partitioned_indexes_keep_the_target_and_report_it(tmp_path):
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(40, 16))[rng.integers(0, 40, 9000)]
    keys += 0.5 * rng.normal(size=keys.shape)
    writer = datastore.create(tmp_path / "s", dim=16, num_entries=9000, identity={})
    writer.append(keys, np.arange(9000))
    store = writer.publish()
    index = sharded.build(
        store, tmp_path / "index", metric="ip", shard_entries=4500, kept="bfloat16",
        target_recall=0.95,
    )  # fmt: skip
    sample = effort.sample_queries(store, None)
    truth = exact.build(store, metric="ip")
    for k in (1, 10, 100, 1024):
        assert scann.measure_recall(index, truth, sample, k) >= 0.94
    report = sharded.report(index)
    assert report["entries"] == 9000 and report["shards"] == 2 and report["resident"]
    assert report["kept_bytes"] == 9000 * 16 * 2
    assert list(report["recall"]) == list(effort.KS)
    assert min(report["recall"].values()) >= report["target_recall"] == 0.95


@pytest.mark.multi
def test_a_killed_build_keeps_what_was_finished(tmp_path):
    store = store_of(tmp_path / "store", 300)
    program = """
        import os, signal, sys
        from rlm_jax.retrieval import datastore, scann, sharded
        build = scann.build
        def dies(*arguments, **options):
            if options["rows"][0] >= 150:
                os.kill(os.getpid(), signal.SIGKILL)
            return build(*arguments, **options)
        scann.build = dies
        folder = sys.argv[1]
        store = datastore.open(folder + "/store")
        sharded.build(store, folder + "/index", shard_entries=75)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    partial = tmp_path / "index.partial"
    finished = {path: path.stat().st_mtime_ns for path in sorted(partial.glob("0*/*"))}
    assert {path.parent.name for path in finished} == {"00000", "00001"}
    with pytest.raises(UserError, match="no index"):
        sharded.load(tmp_path / "index", store)
    with pytest.raises(UserError, match="metric"):
        sharded.build(store, tmp_path / "index", metric="ip", shard_entries=75)
    # What a kill within a save leaves behind is written again.
    (partial / "00002.partial").mkdir()
    resumed = sharded.build(store, tmp_path / "index", shard_entries=75)
    assert not partial.exists()
    for path, written in finished.items():
        now = tmp_path / "index" / path.parent.name / path.name
        assert now.stat().st_mtime_ns == written
    whole = sharded.build(store, tmp_path / "whole", shard_entries=75)
    for found, wanted in zip(
        resumed.search(queries(), 10), whole.search(queries(), 10), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_foreign_damaged_and_impossible_ones_are_refused(store, tmp_path):
    folder = tmp_path / "index"
    sharded.build(store, folder, shard_entries=150)
    with pytest.raises(UserError, match="already"):
        sharded.build(store, folder)
    with pytest.raises(UserError, match="datastore = "):
        sharded.load(folder, store_of(tmp_path / "other", 20))
    with pytest.raises(UserError, match="at least 1"):
        sharded.build(store, tmp_path / "none", shard_entries=0)
    with pytest.raises(UserError, match="target recall"):
        sharded.build(store, tmp_path / "none", target_recall=1.1)
    (folder / "00000").rename(folder / "kept")
    (folder / "00001").rename(folder / "00000")
    (folder / "kept").rename(folder / "00001")
    with pytest.raises(UserError, match="first = 150"):
        sharded.load(folder, store)
