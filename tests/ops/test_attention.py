"""Attention in blocks against float64 loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.ops import attention


def by_hand(q, k, v, visible):
    """float64 [T, H, d] of one row; visible bool [T, S]."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for t, h in np.ndindex(q.shape[:2]):
        g = h * k.shape[1] // q.shape[1]
        seen = visible[t]
        logits = k[seen, g] @ q[t, h] / np.sqrt(q.shape[-1])
        share = np.exp(logits - logits.max())
        out[t, h] = share / share.sum() @ v[seen, g]
    return out


def drawn(length, heads, kv_heads, d=4, batch=2):
    random = np.random.default_rng(length)
    draw = lambda n: random.normal(size=(batch, length, n, d)).astype(np.float32)
    return draw(heads), draw(kv_heads), draw(kv_heads)


@pytest.mark.parametrize(
    ("length", "heads"), [(3, (2, 2)), (4, (6, 2)), (11, (4, 1)), (23, (3, 3))]
)
def test_causal_blocks(monkeypatch, length, heads):
    """Less than a block, one, several with a rest, and as many as there may be."""
    monkeypatch.setattr(attention, "BLOCK", 4)
    q, k, v = drawn(length, *heads)
    found = attention.attend_causally(q, k, v)
    visible = np.tril(np.ones((length, length), bool))
    for row in range(len(q)):
        wanted = by_hand(q[row], k[row], v[row], visible)
        np.testing.assert_allclose(found[row], wanted, rtol=1e-5, atol=1e-5)


def test_causal_gradients_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 4)
    q, k, v = drawn(11, 4, 2)
    weights = np.random.default_rng(0).normal(size=q.shape).astype(np.float32)

    def gradients(attend):
        total = lambda q, k, v: (attend(q, k, v) * weights).sum()
        return jax.jit(jax.grad(total, (0, 1, 2)))(q, k, v)

    def whole(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)

    for found, wanted in zip(
        gradients(attention.attend_causally), gradients(whole), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_slots_that_each_row_sees():
    q, k, v = drawn(5, 4, 2)
    visible = np.random.default_rng(1).random((2, 5, 5)) < 0.5
    visible[..., 0] = True
    visible[1, 2] = False  # nothing at all
    keys, values = (x.swapaxes(1, 2) for x in (k, v))
    found = np.asarray(attention.attend_to_slots(q, keys, values, visible))
    assert np.isfinite(found).all()
    for row, t in ((0, slice(None)), (1, [0, 1, 3, 4])):
        wanted = by_hand(q[row][t], k[row], v[row], visible[row][t])
        np.testing.assert_allclose(found[row][t], wanted, rtol=1e-5, atol=1e-5)


def test_16_bits_have_a_float32_softmax():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in drawn(9, 2, 2))
    found = attention.attend_causally(q, k, v)
    assert found.dtype == jnp.bfloat16
    visible = np.tril(np.ones((9, 9), bool))
    one, keys, values = (np.float32(x[0]) for x in (q, k, v))
    wanted = by_hand(one, keys, values, visible)
    np.testing.assert_allclose(np.float32(found[0]), wanted, atol=0.03)
