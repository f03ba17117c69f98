"""Chunks, windows and masked cross-attention against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.ops import chunks

# (T, m): full chunks, a rest of one, of m - 1; a chunk and a bit; chunks of one; none.
SIZES = [(12, 4), (13, 4), (15, 4), (5, 4), (4, 4), (6, 1), (3, 4)]
named = pytest.mark.parametrize(
    ("length", "m"), SIZES, ids=[f"{t}_in_{m}" for t, m in SIZES]
)


def rows(length):
    return np.random.default_rng(0).normal(size=(2, length, 3)).astype(np.float32)


@named
def test_chunks_are_full(length, m):
    x = rows(length)
    wanted = [x[:, u * m : (u + 1) * m] for u in range(length // m)]
    found = chunks.split(x, m)
    assert found.shape == (2, length // m, m, 3)
    for u, chunk in enumerate(wanted):
        np.testing.assert_array_equal(found[:, u], chunk)


@named
def test_a_window_starts_with_the_last_token_of_its_chunk(length, m):
    x = rows(length)
    found = chunks.windows(x, m)
    assert found.shape == (2, length // m, m, 3)
    for u in range(length // m):
        for i in range(m):
            t = (u + 1) * m - 1 + i
            wanted = x[:, t] if t < length else 0 * x[:, 0]
            np.testing.assert_array_equal(found[:, u, i], wanted)


@named
def test_rows_of_windows(length, m):
    """What was in a window comes back, and what was in none is zero."""
    x = rows(length)
    back = chunks.from_windows(chunks.windows(x, m), length)
    inside = np.arange(length) >= m - 1
    np.testing.assert_array_equal(back, x * inside[:, None])


def test_places_of_windows():
    """The first of a window is the m-th from its chunk's start, as in the chunk."""
    found = chunks.window_positions(np.arange(3, 12), 4)
    np.testing.assert_array_equal(found, [3, 4, 5, 6, 3, 4, 5, 6, 3])


def attention_by_hand(q, k, v, mask):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for n, i, h in np.ndindex(q.shape[:3]):
        slots = np.flatnonzero(mask[n])
        if len(slots):
            logits = k[n, slots, h] @ q[n, i, h] / np.sqrt(q.shape[-1])
            share = np.exp(logits - logits.max())
            out[n, i, h] = share / share.sum() @ v[n, slots, h]
    return out


def qkv_and_mask():
    random = np.random.default_rng(1)
    q = random.normal(size=(3, 4, 2, 6)).astype(np.float32)
    k, v = random.normal(size=(2, 3, 5, 2, 6)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    return q, k, v, mask


def test_cross_attention_is_a_loop():
    q, k, v, mask = qkv_and_mask()
    found = jax.jit(chunks.cross_attention)(q, k, v, mask)
    wanted = attention_by_hand(q, k, v, mask)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    everything = chunks.cross_attention(q, k, v, None)
    wanted = attention_by_hand(q, k, v, np.ones_like(mask))
    np.testing.assert_allclose(everything, wanted, rtol=1e-5, atol=1e-6)


def test_nothing_is_a_slot_of_value_zero_with_logits_of_its_own():
    q, k, v, mask = qkv_and_mask()
    nothing = np.random.default_rng(2).normal(size=q.shape[:3]).astype(np.float32)
    # A sixth slot whose key, in one more dimension, has the logit that is wanted.
    root = np.sqrt(7)
    scale = (7 / 6) ** 0.5
    more_q = np.concatenate([scale * q, root * nothing[..., None]], axis=-1)
    more_k = np.zeros((3, 6, 2, 7), np.float32)
    more_k[:, :5, :, :6], more_k[:, 5, :, 6] = k, 1
    more_v = np.zeros_like(more_k)
    more_v[:, :5, :, :6] = v
    some = np.concatenate([mask, np.ones((3, 1), int)], axis=1)

    def total(q, k, v, nothing):
        out = chunks.cross_attention(q, k, v, mask, nothing)
        return (out * jnp.arange(6.0)[None, None, None]).sum(), out

    def wanted(q, k, v, nothing):
        q = jnp.concatenate([scale * q, root * nothing[..., None]], axis=-1)
        k = jnp.asarray(more_k).at[:, :5, :, :6].set(k)
        v = jnp.asarray(more_v).at[:, :5, :, :6].set(v)
        out = chunks.cross_attention(q, k, v, some)[..., :6]
        return (out * jnp.arange(6.0)[None, None, None]).sum(), out

    found, by_slot = (
        jax.jit(jax.grad(f, argnums=(0, 1, 2, 3), has_aux=True))(q, k, v, nothing)
        for f in (total, wanted)
    )
    by_hand = attention_by_hand(more_q, more_k, more_v, some)[..., :6]
    np.testing.assert_allclose(found[1], by_hand, rtol=1e-5, atol=1e-6)
    for a, b in zip(found[0], by_slot[0], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert np.abs(found[0][3][:2]).min() > 0 and (found[0][3][2] == 0).all()


def test_nothing_to_attend_to_is_zero_with_a_gradient_of_zero():
    q, k, v, mask = qkv_and_mask()

    def total(q, k, v):
        out = chunks.cross_attention(q, k, v, mask)
        return (out * jnp.arange(6.0)[None, None, None]).sum(), out

    run = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    gradients, out = run(q, k, v)
    assert (out[2] == 0).all() and (out[:2] != 0).all()
    for gradient in gradients:
        assert np.isfinite(gradient).all() and (gradient[2] == 0).all()
    for gradient in gradients[1:]:  # of keys and values
        assert ((np.abs(gradient).max(axis=(2, 3)) > 0) == (mask > 0)).all()
