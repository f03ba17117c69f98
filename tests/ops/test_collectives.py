"""Collectives under vmap, against what they mean; the identity on one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.ops import collectives

RANKS, ROWS, WIDTH = 3, 2, 2


def on_ranks(f, *args):
    return jax.vmap(f, axis_name="rank")(*args)


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(RANKS, ROWS, WIDTH)).astype("f")


def test_one_device(x):
    key = jax.random.key(0)
    assert collectives.total(x, None) is x
    for remote in (True, False):
        assert collectives.gather(x, None, remote_gradients=remote) is x
    assert int(collectives.rank(None)) == 0
    assert collectives.fold_rank(key, None) is key


def test_rank_and_total(x):
    ranks = on_ranks(lambda x: collectives.rank("rank"), x)
    np.testing.assert_array_equal(ranks, np.arange(RANKS))
    assert ranks.dtype == jnp.int32
    totals = on_ranks(lambda x: collectives.total({"a": x}, "rank"), x)["a"]
    np.testing.assert_allclose(totals, np.stack([x.sum(0)] * RANKS), rtol=1e-6)


@pytest.mark.parametrize("remote", [True, False])
def test_gather_concatenates_in_rank_order(x, remote):
    ids = np.arange(RANKS * ROWS, dtype=np.int32).reshape(RANKS, ROWS)

    def gather(tree):
        return collectives.gather(tree, "rank", remote_gradients=remote)

    rows, numbers = on_ranks(gather, (x, ids))
    for r in range(RANKS):
        np.testing.assert_array_equal(rows[r], x.reshape(-1, WIDTH))
        np.testing.assert_array_equal(numbers[r], np.arange(RANKS * ROWS))


@pytest.mark.parametrize("remote", [True, False])
def test_gradients_through_gather(x, remote):
    """Rank r weighs the gathered rows by W[r]; row i of rank s is row s * ROWS + i."""
    shape = (RANKS, RANKS * ROWS, WIDTH)
    weights = np.random.default_rng(1).normal(size=shape).astype(np.float32)

    def gradient(x, weights):
        def own_loss(x):
            rows = collectives.gather(x, "rank", remote_gradients=remote)
            return (rows * weights).sum()

        return jax.grad(own_loss)(x)

    got = on_ranks(gradient, x, weights)
    for s in range(RANKS):
        rows = slice(s * ROWS, (s + 1) * ROWS)
        wanted = weights[:, rows].sum(0) if remote else weights[s, rows]
        np.testing.assert_allclose(got[s], wanted, rtol=1e-5, atol=1e-6)


def test_fold_rank_gives_each_device_its_own_noise(x):
    def noise(x):
        return jax.random.normal(collectives.fold_rank(jax.random.key(0), "rank"))

    assert len(set(np.asarray(on_ranks(noise, x)).tolist())) == RANKS
