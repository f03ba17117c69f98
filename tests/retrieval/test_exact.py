import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_jax.errors import UserError
from rlm_jax.retrieval import datastore, exact


def brute_force(keys, queries, k, metric):
    """Float64, one query at a time; of equal scores the lower id first."""
    scores = np.full((len(queries), k), -np.inf)
    ids = np.full((len(queries), k), -1)
    for row, query in enumerate(queries.astype(np.float64)):
        if metric == "l2":
            all_scores = -np.square(keys.astype(np.float64) - query).sum(axis=1)
        else:
            all_scores = keys.astype(np.float64) @ query
        order = np.argsort(-all_scores, kind="stable")[:k]
        scores[row, : len(order)], ids[row, : len(order)] = all_scores[order], order
    return scores, ids


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    metric=st.sampled_from(["l2", "ip"]),
    num_keys=st.sampled_from([1, 4, 64, 130]),
    num_queries=st.sampled_from([1, 3, 4]),
    k=st.sampled_from([1, 8, 40]),
    block_size=st.sampled_from([16, 64]),
    resident_bytes=st.sampled_from([0, 1 << 20]),
    seed=st.integers(0, 1000),
)
def test_agrees_with_brute_force_ties_included(
    metric, num_keys, num_queries, k, block_size, resident_bytes, seed
):
    # Small integers, and block sizes that are powers of two so that the centre is a
    # short binary fraction: float32 is exact here, and equal distances are equal.
    rng = np.random.default_rng(seed)
    keys = rng.integers(-2, 3, (num_keys, 4)).astype(np.float32)
    queries = rng.integers(-2, 3, (num_queries, 4)).astype(np.float32)
    built = exact.build(
        keys, metric=metric, block_size=block_size, resident_bytes=resident_bytes
    )
    found = built.search(queries, k)
    scores, ids = brute_force(keys, queries, k, metric)
    assert found.scores.dtype == np.float32 and found.ids.dtype == np.int32
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.ids, ids)


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("dtype", datastore.DTYPES)
def test_searches_the_stored_keys_of_a_datastore(tmp_path, dtype, metric):
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(500, 16)).astype(np.float32)
    writer = datastore.create(
        tmp_path / "s", dim=16, dtype=dtype, num_entries=500, identity={}, shard_size=90
    )
    writer.append(keys, np.arange(500))
    store = writer.publish()
    queries = rng.normal(size=(20, 16)).astype(np.float32)
    scores, ids = brute_force(store.keys(0, 500), queries, 10, metric)
    for resident_bytes in (0, 1 << 20):
        found = exact.build(
            store, metric=metric, block_size=64, resident_bytes=resident_bytes
        ).search(queries, 10)
        np.testing.assert_allclose(found.scores, scores, atol=1e-4)
        np.testing.assert_array_equal(found.ids, ids)


@pytest.mark.parametrize("dtype", datastore.DTYPES)
def test_resident_blocks_are_as_small_as_the_datastore(tmp_path, dtype):
    keys = np.random.default_rng(0).normal(size=(150, 16))
    writer = datastore.create(
        tmp_path / "s", dim=16, dtype=dtype, num_entries=150, identity={}, shard_size=40
    )
    writer.append(keys, np.arange(150))
    size = np.dtype(dtype).itemsize
    store = writer.publish()
    kept, not_kept = (
        exact.build(store, block_size=64, resident_bytes=150 * 16 * size - short)
        for short in (0, 1)
    )
    block = kept.load_block(1)
    assert block.keys.dtype == dtype and block.keys.shape == (64, 16)
    assert kept.load_block(1) is block and not_kept.load_block(1) is not block


def test_a_recall_target_selects_approximately_on_a_tpu_alone(monkeypatch):
    keys = np.random.default_rng(0).normal(size=(150, 8)).astype(np.float32)
    plain = exact.build(keys, metric="ip", block_size=64)
    aimed = exact.build(keys, metric="ip", block_size=64, recall_target=0.9)
    assert aimed.recall_target == plain.recall_target == 1
    # What a TPU would run; a CPU's approx_max_k is exact.
    calls = []
    approx = jax.lax.approx_max_k
    monkeypatch.setattr(
        jax.lax, "approx_max_k", lambda *a, **b: calls.append(b) or approx(*a, **b)
    )
    aimed = dataclasses.replace(aimed, recall_target=0.9)
    wanted, found = plain.search(keys[:9], 5), aimed.search(keys[:9], 5)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    assert calls and all(call == {"recall_target": 0.9} for call in calls)
    with pytest.raises(UserError, match="target recall of 2"):
        exact.build(keys, recall_target=2)


def test_keys_far_from_the_origin_keep_their_order():
    # Without centring the squares are near 1e6, where float32 steps are 0.06.
    rng = np.random.default_rng(0)
    keys = (1000 + rng.normal(size=(300, 1))).astype(np.float32)
    queries = keys[:50] + np.float32(0.001)
    found = exact.build(keys, block_size=64).search(queries, 5)
    scores, _ = brute_force(keys, queries, 5, "l2")
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    assert (found.scores <= 0).all()


def test_many_queries_are_searched_in_chunks(monkeypatch):
    monkeypatch.setattr(exact, "_QUERY_CHUNK", 8)
    rng = np.random.default_rng(0)
    keys, queries = rng.normal(size=(100, 4)), rng.normal(size=(21, 4))
    found = exact.build(keys, metric="ip", block_size=64).search(queries, 4)
    np.testing.assert_array_equal(found.ids, brute_force(keys, queries, 4, "ip")[1])


def test_k_beyond_the_index_and_no_queries():
    built = exact.build(np.eye(3), metric="ip")
    found = built.search(np.ones((2, 3)), 5)
    assert (found.ids == [0, 1, 2, -1, -1]).all()
    assert (found.scores == [1, 1, 1, -np.inf, -np.inf]).all()
    assert built.search(np.zeros((0, 3)), 5).ids.shape == (0, 5)


def test_one_program_serves_all_blocks_and_query_counts():
    keys = np.random.default_rng(0).normal(size=(150, 7))
    built = exact.build(keys, block_size=64)
    built.search(keys[:16], 3)
    with pytest.MonkeyPatch.context() as patch:
        traced = []
        top_k = jax.lax.top_k
        patch.setattr(jax.lax, "top_k", lambda *a: traced.append(a) or top_k(*a))
        built.search(keys[:9], 3)
        exact.build(keys[:131], block_size=64).search(keys[:13], 3)
        assert not traced
        built.search(keys[:16], 4)
        assert traced


@pytest.mark.parametrize(
    "keys", [np.zeros((0, 4)), np.zeros(4), np.full((2, 2), np.inf)]
)
def test_bad_keys_are_refused(keys):
    with pytest.raises(UserError, match="M, D"):
        exact.build(keys)


def test_unknown_metric_is_refused():
    with pytest.raises(UserError, match="'cosine'"):
        exact.build(np.eye(2), metric="cosine")


@pytest.mark.slow
def test_four_devices_agree_with_one():
    program = """
        import numpy as np, jax
        from rlm_jax.retrieval import exact
        assert len(jax.local_devices()) == 4
        rng = np.random.default_rng(0)
        keys = rng.integers(-2, 3, (201, 4)).astype(np.float32)
        queries = rng.integers(-2, 3, (10, 4)).astype(np.float32)
        for metric in ("l2", "ip"):
            for k in (5, 300):
                for resident_bytes in (0, 1 << 20):
                    options = dict(
                        metric=metric, block_size=16, resident_bytes=resident_bytes
                    )
                    one = exact.build(keys, devices=jax.devices()[:1], **options)
                    four = exact.build(keys, **options)
                    found, wanted = four.search(queries, k), one.search(queries, k)
                    np.testing.assert_array_equal(found.ids, wanted.ids)
                    np.testing.assert_array_equal(found.scores, wanted.scores)
        used = {d for i in range(4) for d in four.load_block(i).keys.devices()}
        assert len(used) == 4
    """
    flag = "--xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
