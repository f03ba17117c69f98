"""The blockwise log-sum-exp pair against a double loop in float64."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_jax.ops import memory


def before(query, slot):
    return slot["position"] < query["position"]


def everything(query, slot):
    return (slot["position"] == slot["position"]) & (query["value"] == query["value"])


def same_value(query, slot):
    return slot["value"] == query["value"]


def ids(random, n, values=3, span=None):
    return {
        "position": random.integers(0, span or n, n).astype(np.int32),
        "value": random.integers(0, values, n).astype(np.int32),
    }


def log_sum_exp(values):
    if not values:
        return -np.inf
    top = max(values)
    return top + np.log(sum(np.exp(v - top) for v in values))


def expected(queries, keys, query_ids, key_ids, scale, visible=before):
    """(all, positive) float64 [N] and the softmaxes over each set, [N, M]."""
    n, m = len(queries), len(keys)
    queries, keys = (np.asarray(x, np.float64) for x in (queries, keys))
    sums, shares = np.full((2, n), -np.inf), np.zeros((2, n, m))
    for i in range(n):
        query = {name: x[i] for name, x in query_ids.items()}
        seen = []
        for j in range(m):
            slot = {name: x[j] for name, x in key_ids.items()}
            if visible(query, slot):
                seen.append((j, scale * (queries[i] @ keys[j]), slot))
        for which, chosen in enumerate(
            (seen, [s for s in seen if same_value(query, s[2])])
        ):
            sums[which, i] = log_sum_exp([s for _, s, _ in chosen])
            for j, s, _ in chosen:
                shares[which, i, j] = np.exp(s - sums[which, i])
    return sums, shares


def expected_gradients(queries, keys, shares, weights, scale):
    """Of ``sum_i weights . (all_i, positive_i)``: queries, keys and scale."""
    d_s = np.einsum("wn,wnm->nm", weights, shares)
    queries, keys = (np.asarray(x, np.float64) for x in (queries, keys))
    products = queries @ keys.T
    return scale * d_s @ keys, scale * d_s.T @ queries, (d_s * products).sum()


def ours(queries, keys, query_ids, key_ids, scale, block, visible=before):
    return memory.log_sums(
        queries, keys, query_ids, key_ids, visible=visible, positive=same_value,
        scale=scale, block=block,
    )  # fmt: skip


def weighted_sum(weights, *args, **options):
    sums = ours(*args, **options)
    return sum(
        jnp.where(jnp.isfinite(s), w * s, 0.0).sum()
        for w, s in zip(weights, sums, strict=True)
    )


# Few shapes, many drawn contents: each shape is a compilation.
@functools.partial(jax.jit, static_argnames=("block",))
def value_and_gradients(weights, queries, keys, query_ids, key_ids, scale, block):
    def total(queries, keys, scale):
        args = (queries, keys, query_ids, key_ids, scale, block)
        return weighted_sum(weights, *args)

    sums = ours(queries, keys, query_ids, key_ids, scale, block)
    return sums, jax.grad(total, (0, 1, 2))(queries, keys, scale)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from(
        [(1, 1, 1, None), (7, 5, 3, (3, 2)), (5, 11, 2, (4, 4)), (6, 6, 4, (1, 6))]
    ),
    seed=st.integers(0, 2**31),
    size=st.sampled_from([0.1, 1.0, 30.0]),
    scale=st.sampled_from([1.0, 0.25, -2.0]),
    values=st.integers(1, 4),
)
def test_equals_a_double_loop(shape, seed, size, scale, values):
    n, m, width, block = shape
    random = np.random.default_rng(seed)
    queries = random.normal(size=(n, width)).astype(np.float32)
    keys = (size * random.normal(size=(m, width))).astype(np.float32)
    query_ids, key_ids = ids(random, n, values, 4), ids(random, m, values, 4)
    weights = random.normal(size=(2, n)).astype(np.float32)
    sums, shares = expected(queries, keys, query_ids, key_ids, scale)
    wanted = expected_gradients(queries, keys, shares, weights, scale)
    got, gradients = value_and_gradients(
        weights, queries, keys, query_ids, key_ids, scale, block
    )
    np.testing.assert_allclose(got, sums, rtol=1e-5, atol=1e-5)
    for ours_, theirs in zip(gradients, wanted, strict=True):
        limit = 2e-5 * max(1, size**2)
        np.testing.assert_allclose(ours_, theirs, rtol=1e-4, atol=limit)


@pytest.fixture
def case():
    random = np.random.default_rng(0)
    n, m, width = 9, 14, 4
    queries, keys = (random.normal(size=(s, width)).astype("f") for s in (n, m))
    return queries, keys, ids(random, n), ids(random, m)


def test_a_query_that_sees_nothing(case):
    queries, keys, query_ids, key_ids = case
    query_ids["position"][::2] = -1
    weights = np.ones((2, len(queries)), np.float32)
    sums, gradients = value_and_gradients(
        weights, queries, keys, query_ids, key_ids, 1.0, (4, 4)
    )
    assert np.isneginf(np.asarray(sums)[:, ::2]).all()
    assert (np.asarray(gradients[0])[::2] == 0).all()
    assert all(np.isfinite(g).all() for g in gradients)
    # The sums and softmax of those that see something are as if they were alone.
    rest = {name: x[1::2] for name, x in query_ids.items()}
    alone, _ = expected(queries[1::2], keys, rest, key_ids, 1.0)
    np.testing.assert_allclose(np.asarray(sums)[:, 1::2], alone, rtol=1e-5, atol=1e-5)


def test_an_empty_memory(case):
    queries, keys, query_ids, key_ids = case
    none = {name: x[:0] for name, x in key_ids.items()}
    sums = ours(queries, keys[:0], query_ids, none, 1.0, None)
    assert np.isneginf(sums.all).all() and np.isneginf(sums.positive).all()
    assert sums.all.shape == (len(queries),)


@pytest.mark.parametrize("block", [(1, 1), (2, 2), None])
def test_a_positive_far_below_the_negatives(block):
    """200 nats down a softmax share is 0 in float32; its logarithm must not be."""
    queries = np.ones((2, 1), np.float32)
    keys = np.array([[0.0], [-200.0], [-201.0], [1.0]], np.float32)
    query_ids = {"value": np.array([1, 1]), "position": np.array([3, 9])}
    key_ids = {"value": np.array([0, 1, 1, 0]), "position": np.array([0, 1, 2, 3])}
    query_ids, key_ids = jax.tree.map(np.int32, (query_ids, key_ids))
    sums, shares = expected(queries, keys, query_ids, key_ids, 1.0)
    weights = np.array([[1, 1], [-1, -1]], np.float32)
    got, gradients = value_and_gradients(
        weights, queries, keys, query_ids, key_ids, 1.0, block
    )
    np.testing.assert_allclose(got, sums, rtol=1e-6)
    wanted = expected_gradients(queries, keys, shares, weights, 1.0)
    for ours_, theirs in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(ours_, theirs, rtol=1e-5)
    # What pulls the positives up: -1 shared among them, not 0.
    assert np.asarray(gradients[1])[1:3].sum() == pytest.approx(-2, rel=1e-5)


def test_large_logits(case):
    queries, keys, query_ids, key_ids = case
    scale = 1e4
    weights = np.array([[1] * len(queries), [-0.5] * len(queries)], np.float32)
    sums, shares = expected(queries, keys, query_ids, key_ids, scale)
    assert np.abs(sums[np.isfinite(sums)]).max() > 1e4
    got, gradients = value_and_gradients(
        weights, queries, keys, query_ids, key_ids, scale, (4, 4)
    )
    np.testing.assert_allclose(got, sums, rtol=1e-5)
    wanted = expected_gradients(queries, keys, shares, weights, scale)
    # At such a scale a softmax share moves by percents with the last bit of a logit.
    for ours_, theirs in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(ours_, theirs, rtol=0.02, atol=0.01 * scale)


def test_bfloat16_accumulates_in_float32(case):
    queries, keys, query_ids, key_ids = case
    queries, keys = (jnp.asarray(x, jnp.bfloat16) for x in (queries, keys))
    sums, shares = expected(queries, keys, query_ids, key_ids, 1.0)
    weights = np.ones((2, len(queries)), np.float32)
    got, gradients = value_and_gradients(
        weights, queries, keys, query_ids, key_ids, 1.0, (4, 4)
    )
    assert got.all.dtype == jnp.float32
    assert gradients[0].dtype == gradients[1].dtype == jnp.bfloat16
    np.testing.assert_allclose(got, sums, rtol=1e-5, atol=1e-5)
    wanted = expected_gradients(queries, keys, shares, weights, 1.0)
    for ours_, theirs in zip(gradients[:2], wanted, strict=False):
        np.testing.assert_allclose(np.float32(ours_), theirs, rtol=0.05, atol=0.05)


def test_the_scale_is_not_rounded_to_bfloat16():
    """1/sqrt(48) is off by 0.08% in bfloat16, and would move every logit one way."""
    random = np.random.default_rng(0)
    queries = jnp.asarray(10 + random.normal(size=(50, 48)), jnp.bfloat16)
    keys = jnp.asarray(10 + random.normal(size=(1, 48)), jnp.bfloat16)
    scale = 48**-0.5
    one = {"value": np.zeros(50, np.int32), "position": np.ones(50, np.int32)}
    slot = {"value": np.zeros(1, np.int32), "position": np.zeros(1, np.int32)}
    sums, _ = expected(queries, keys, one, slot, scale)
    got = ours(queries, keys, one, slot, scale, None)
    assert abs(np.mean(np.asarray(got.all) / sums[0]) - 1) < 2e-4


def test_vmap_equals_one_by_one(case):
    queries, keys, query_ids, key_ids = case
    stacked = jax.tree.map(lambda x: np.stack([x, x[::-1]]), case)

    def total(args):
        return weighted_sum(np.ones((2, 1), np.float32)[:, 0], *args, 0.5, (4, 4)), ()

    one = jax.grad(lambda args: total(args)[0], allow_int=True)
    mapped = jax.jit(jax.vmap(one))(stacked)
    for i in range(2):
        alone = one(jax.tree.map(lambda x, i=i: x[i], stacked))
        for got, wanted in zip(mapped[:2], alone[:2], strict=True):
            np.testing.assert_allclose(got[i], wanted, rtol=1e-5, atol=1e-6)


def test_no_array_of_queries_by_slots():
    n, m, width = 1024, 2048, 8

    def gradients(queries, keys, query_ids, key_ids):
        def total(queries, keys):
            args = (queries, keys, query_ids, key_ids)
            return weighted_sum(jnp.ones(2), *args, 1.0, (128, 128))

        return jax.grad(total, (0, 1))(queries, keys)

    shapes: list[Any] = [jax.ShapeDtypeStruct((s, width), jnp.float32) for s in (n, m)]
    for size in (n, m):
        one = jax.ShapeDtypeStruct((size,), jnp.int32)
        shapes.append({"position": one, "value": one})
    compiled = jax.jit(gradients).lower(*shapes).compile()
    used, text = compiled.memory_analysis(), compiled.as_text()
    assert used is not None and text is not None
    assert used.temp_size_in_bytes < n * m * 4 / 10
    assert f"{n},{m}" not in text


def test_invisible_tiles_are_skipped():
    """A logit of a tile that nobody sees is never computed: it would be NaN here."""
    keys = np.ones((8, 2), np.float32)
    keys[4:] = np.nan
    key_ids = {"value": np.zeros(8, np.int32), "position": np.arange(8, dtype="i")}
    queries = np.ones((4, 2), np.float32)
    query_ids = {"value": np.zeros(4, np.int32), "position": np.full(4, 4, np.int32)}
    weights = np.ones((2, 4), np.float32)
    sums, gradients = value_and_gradients(
        weights, queries, keys, query_ids, key_ids, 1.0, (4, 4)
    )
    np.testing.assert_allclose(sums, 2 + np.log(4), rtol=1e-6)
    assert np.isfinite(gradients[0]).all() and np.isfinite(gradients[1]).all()


def test_one_compilation_serves_all_contents(case):
    traces = []

    @jax.jit
    def run(queries, keys, query_ids, key_ids, scale):
        traces.append(None)
        return ours(queries, keys, query_ids, key_ids, scale, (4, 4), everything)

    for seed in range(3):
        random = np.random.default_rng(seed)
        run(*case[:2], ids(random, 9), ids(random, 14), jnp.float32(seed))
    assert len(traces) == 1


def test_wrong_shapes_are_named(case):
    queries, keys, query_ids, _ = case
    with pytest.raises(ValueError, match=r"key ids have shape \(9,\), not \(14,\)"):
        ours(queries, keys, query_ids, query_ids, 1.0, None)
