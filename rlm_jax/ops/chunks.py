"""Chunks of a row and the windows that read what was retrieved for them.

Row positions count from 0 and chunk u holds positions u m ... (u+1) m - 1. What is
retrieved for it may be read from its last token on, so its window is

    (u+1) m - 1 ... (u+2) m - 2,

m positions that predict the m tokens of the next chunk and the first of the one after.
Positions 0 ... m - 2 are in no window. Chunks are full ones: what is left over at the
end of a row, fewer than m tokens, is no chunk and reads the last window as far as that
reaches.

Borgeaud et al. 2022, section 2.4 and figure 2. The public rebuilds agree on the windows
and not on the rest of a row: one has no neighbours for it, as here, another asks for
those of ceil(T / m) chunks.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from rlm_jax.ops import Array


def split(x: Shaped[Array, "B T *rest"], m: int) -> Shaped[jax.Array, "B C {m} *rest"]:
    """The full chunks of rows, C = T // m of them."""
    batch, length, *rest = x.shape
    count = length // m
    return jnp.asarray(x)[:, : count * m].reshape(batch, count, m, *rest)


def windows(
    x: Shaped[Array, "B T *rest"], m: int
) -> Shaped[jax.Array, "B C {m} *rest"]:
    """The window of each of the C = T // m chunks.

    The last one reaches m - 1 positions beyond the full chunks; where the row has ended
    it holds zeros.
    """
    batch, length, *rest = x.shape
    count = length // m
    moved = jnp.asarray(x)[:, m - 1 :][:, : count * m]
    missing = count * m - moved.shape[1]
    moved = jnp.pad(moved, ((0, 0), (0, missing), *[(0, 0)] * len(rest)))
    return moved.reshape(batch, count, m, *rest)


def from_windows(
    x: Shaped[Array, "B C m *rest"], length: int
) -> Shaped[jax.Array, "B {length} *rest"]:
    """Back to rows of T tokens, with zeros where there is no window.

    Args:
      x: one window a chunk.
      length: T, of the rows that `windows` was given.
    """
    batch, count, m, *rest = x.shape
    flat = jnp.asarray(x).reshape(batch, count * m, *rest)[:, : max(length - m + 1, 0)]
    before = min(m - 1, length)
    after = length - before - flat.shape[1]
    return jnp.pad(flat, ((0, 0), (before, after), *[(0, 0)] * len(rest)))


def cross_attention(
    q: Float[Array, "N m H d"],
    k: Float[Array, "N S H d"],
    v: Float[Array, "N S H d"],
    mask: Shaped[Array, "N S"] | None,
    nothing: Float[Array, "N m H"] | None = None,
) -> Float[jax.Array, "N m H d"]:
    """softmax(q . k / sqrt(d)) v over the slots that there are, and 0 over none.

        out_i = sum_{s : mask_s} share_is v_s,  share_i = softmax_s(q_i . k_s / sqrt(d))

    With ``nothing`` there is one slot more, whose logits it gives and whose value is 0:
    a query that no key answers need not read noise.

    Args:
      q: the queries of each window.
      k, v: keys and values of its S slots.
      mask: 1 = a slot that holds something; None where all do.
      nothing: the logits of the slot more, or None.

    Returns:
      Of the dtype of q; the softmax is float32. Where a row of ``mask`` is all 0 the
      result is exactly 0, and so are its gradients.
    """
    q, k, v = jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)
    # Fused kernels do not promise finite gradients where a row of the mask is empty.
    attend = partial(jax.nn.dot_product_attention, implementation="xla")
    if mask is None and nothing is None:
        return attend(q, k, v)
    visible = jnp.ones(k.shape[:2], bool) if mask is None else jnp.asarray(mask) > 0
    any_slot = visible.any(axis=1)[:, None, None, None]
    bias = None
    if nothing is not None:
        one = [(0, 0), (0, 1), (0, 0), (0, 0)]
        k, v = jnp.pad(k, one), jnp.pad(v, one)
        visible = jnp.pad(visible, one[:2], constant_values=True)
        logits = jnp.asarray(nothing).swapaxes(1, 2)[..., None]
        bias = jnp.pad(logits, [(0, 0), (0, 0), (0, 0), (k.shape[1] - 1, 0)])
    out = attend(q, k, v, bias, visible[:, None, None, :])
    # The softmax over no slot is even and finite, and multiplies noise.
    return jnp.where(any_slot, out, jnp.zeros((), out.dtype))


def window_positions(positions: Int[Array, " *B"], m: int) -> Int[jax.Array, " *B"]:
    """Row positions -> positions in their windows, counted from the chunk's start.

    i + m - 1 for the i-th of a window, int32: the last token of a chunk is its m-th, in
    the chunk and here. A neighbour's tokens count from its start, so the distance of
    the two is the paper's d(i, i') = i - i' + m - 1 and the neighbour's continuation
    lies where the next chunk does.
    """
    return m - 1 + (jnp.asarray(positions) + 1) % m
