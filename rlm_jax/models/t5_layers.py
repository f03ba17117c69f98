"""T5's layers: relative positions, attention to tokens and to a memory, feed-forward.

Raffel et al. 2020, section 2.1, and Mesh TensorFlow's code, which transformers follows:
no biases, no division of attention logits by sqrt(d), which the initial weights of the
queries make up for.
"""

from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32

from rlm_jax.models.layers import Dtype, KeysValues, dense
from rlm_jax.ops import Array

Activation = Literal["relu", "gated_gelu"]


class CrossAttention(NamedTuple):
    """What J cross-attending layers made of a memory of M states."""

    scores: Float32[jax.Array, "J B H L M"]
    """Before the softmax, where the mask is 0 too."""
    value_norms: Float32[jax.Array, "J B H M"]
    """Lengths of the value vectors."""


def relative_buckets(
    distances: Int[np.ndarray, " *B"],
    *,
    num_buckets: int,
    max_distance: int,
    bidirectional: bool,
) -> Int32[np.ndarray, " *B"]:
    """The bucket of each distance, key's position - query's.

    One for each small distance; from half of them on they widen as the logarithm, up to
    ``max_distance`` and whatever is farther. Of a bidirectional stack half of them are
    for keys that follow; otherwise these count as distance 0.
    """
    after = np.zeros_like(distances)
    if bidirectional:
        num_buckets //= 2
        after = (distances > 0) * num_buckets
        distances = np.abs(distances)
    else:
        distances = np.maximum(-distances, 0)
    exact = num_buckets // 2
    # In float32 and this order, as in the published code: edges depend on it.
    ratio = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(np.log(max_distance / exact))
    wide = exact + (ratio * np.float32(num_buckets - exact)).astype(np.int32)
    wide = np.minimum(wide, num_buckets - 1)
    return (after + np.where(distances < exact, distances, wide)).astype(np.int32)


def relative_bias(
    table: Float[Array, "buckets H"],
    positions: Int[Array, " L"],
    num_keys: int,
    *,
    max_distance: int,
    bidirectional: bool,
) -> Float32[jax.Array, "H L {num_keys}"]:
    """What each head adds to the logits of queries at ``positions``.

    Args:
      table: of a stack.
      positions: may be traced, as when a cache grows.
      num_keys: at positions 0, 1, ...
    """
    known = relative_buckets(
        np.arange(-max_distance, max_distance + 1),
        num_buckets=table.shape[0],
        max_distance=max_distance,
        bidirectional=bidirectional,
    )
    distances = jnp.arange(num_keys) - positions[:, None]
    distances = jnp.clip(distances, -max_distance, max_distance)
    buckets = jnp.asarray(known)[distances + max_distance]
    return jnp.moveaxis(jnp.asarray(table, jnp.float32)[buckets], -1, 0)


def attend(
    q: Float[Array, "B L H d"],
    memory: KeysValues,
    bias: Float32[Array, "H _ M"] | None,
    visible: Bool[Array, "_ _ M"],
    dropout=None,
) -> tuple[Float[jax.Array, "B L H d"], Float32[jax.Array, "B H L M"]]:
    """softmax(q . k + bias) v over what is visible; nothing visible: zeros.

    Args:
      q: queries.
      memory: keys [B, G, d, M] (keys last, which a CPU reads several times as fast when
        there are few queries) and values [B, G, M, d]; head h of q goes with head
        h // (H / G).
      bias: of heads, queries (or all of them) and keys.
      visible: to each row and query, or to all of them.
      dropout: of the shares, or None.

    Returns:
      (out, logits with the bias, where invisible too).
    """
    keys, values = memory
    batch, length, num_heads, d = q.shape
    groups = q.reshape(batch, length, keys.shape[1], -1, d)
    scores = jnp.einsum(
        "blgrd,bgdm->bgrlm", groups, keys, preferred_element_type=jnp.float32
    )
    scores = scores.reshape(batch, num_heads, length, -1)
    if bias is not None:
        # Layers share the bias.  Without the barrier XLA sums the gradients of all of
        # them over rows in one fusion at the end, on one core.
        scores = scores + jax.lax.optimization_barrier(bias)
    # The bias first: added to the floor it could overflow.
    floor = jnp.finfo(jnp.float32).min
    share = jax.nn.softmax(jnp.where(visible[:, None], scores, floor))
    share = jnp.where(jnp.any(visible, -1)[:, None, :, None], share, 0)
    if dropout is not None:
        share = dropout(share)
    share = share.reshape(batch, keys.shape[1], -1, *share.shape[2:])
    out = jnp.einsum("bgrlm,bgmd->blgrd", share.astype(values.dtype), values)
    return out.reshape(batch, length, num_heads, d), scores


def _dense(features: int, dtype: Dtype, scale: np.ndarray | float = 1.0) -> nn.Dense:
    """Initially normal with ``scale`` (or one of each column) / sqrt(fan in)."""

    def init(key, shape, dtype=jnp.float32):
        columns = np.broadcast_to(scale, shape[1:]) * shape[0] ** -0.5
        return jax.random.normal(key, shape, dtype) * columns.astype(np.float32)

    return dense(features, False, dtype, kernel_init=init)


def _heads(x, num_heads):
    return x.reshape(*x.shape[:-1], num_heads, -1)


def keys_values(k: Float[Array, "B M G d"], v: Float[Array, "B M G d"]) -> KeysValues:
    """In the layout of `attend`."""
    return KeysValues(jnp.moveaxis(k, 1, 3), jnp.moveaxis(v, 1, 2))


class SelfAttention(nn.Module):
    """Attention of the tokens of a row to one another."""

    num_heads: int
    num_kv_heads: int
    head_width: int
    width: int
    dropout: float
    dtype: Dtype

    def setup(self):
        heads = np.array([self.num_heads, self.num_kv_heads, self.num_kv_heads])
        scales = np.array([self.head_width**-0.5, 1.0, 1.0])
        columns = np.repeat(scales, heads * self.head_width)
        self.qkv = _dense(len(columns), self.dtype, columns)
        self.out = _dense(self.width, self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def _project(self, x):
        ends = self.num_heads, self.num_heads + self.num_kv_heads
        heads = _heads(self.qkv(x), ends[1] + self.num_kv_heads)
        return jnp.split(heads, ends, axis=-2)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        bias: Float32[Array, "H T T"],
        visible: Bool[Array, "_ _ T"],
        deterministic: bool,
    ) -> Float[jax.Array, "B T D"]:
        """What each token attends to."""
        q, k, v = self._project(x)
        drop = None if deterministic else lambda s: self.drop(s, deterministic=False)
        out, _ = attend(q, keys_values(k, v), bias, visible, drop)
        return self.out(out.reshape(*x.shape[:-1], -1))

    def extend(
        self,
        x: Float[Array, "R D"],
        slots: KeysValues,
        slot: Int[Array, ""],
        bias: Float32[Array, "H 1 S"],
        visible: Bool[Array, "1 1 S"],
    ) -> tuple[Float[jax.Array, "R D"], KeysValues]:
        """(what a token attends to in each row, the slots with it in them)."""
        q, k, v = self._project(x[:, None])
        new = keys_values(k, v)
        slots = KeysValues(
            jax.lax.dynamic_update_slice(slots.keys, new.keys, (0, 0, 0, slot)),
            jax.lax.dynamic_update_slice(slots.values, new.values, (0, 0, slot, 0)),
        )
        out, _ = attend(q, slots, bias, visible)
        return self.out(out.reshape(x.shape[0], -1)), slots


class MemoryAttention(nn.Module):
    """Attention of the tokens of a row to the states of a memory."""

    num_heads: int
    num_kv_heads: int
    head_width: int
    width: int
    dropout: float
    dtype: Dtype

    def setup(self):
        self.q = _dense(
            self.num_heads * self.head_width, self.dtype, self.head_width**-0.5
        )
        self.kv = _dense(2 * self.num_kv_heads * self.head_width, self.dtype)
        self.out = _dense(self.width, self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        states: Float[Array, "B M E"],
        bias: Float32[Array, "H _ M"] | None,
        visible: Bool[Array, "B 1 M"],
        deterministic: bool = True,
    ) -> Float[jax.Array, "B L D"]:
        """What each token attends to.

        Of G heads of keys and values of width d, L tokens and H heads of queries ask
        for E G d + L H d products a state. To a few tokens the states themselves may
        be keys and values, which asks for L H E:

            q . (W_k s) = (W_k^T q) . s,    sum_m a_m W_v s_m = W_v sum_m a_m s_m

        Whichever is less is done.
        """
        groups, d, width = self.num_kv_heads, self.head_width, states.shape[-1]
        queries = x.shape[1] * self.num_heads
        read = width * groups * d + queries * d
        if self.is_initializing() or read <= queries * width:
            memory = self.read(states)
            return self.over(x, memory, bias, visible, deterministic)[0]
        kernel = jnp.asarray(self.kv.variables["params"]["kernel"], self.dtype)
        kernel = kernel.reshape(width, 2 * groups, d)
        to_keys, to_values = jnp.split(kernel, 2, axis=1)
        q = self.q(x).reshape(*x.shape[:2], groups, -1, d)
        q = jnp.einsum("blgrd,egd->blgre", q, to_keys)
        q = q.reshape(*x.shape[:2], self.num_heads, width)
        memory = keys_values(states[:, :, None], states[:, :, None])
        out, _ = attend(q, memory, bias, visible, self._dropout(deterministic))
        out = out.reshape(*x.shape[:2], groups, -1, width)
        out = jnp.einsum("blgre,egd->blgrd", out, to_values)
        return self.out(out.reshape(*x.shape[:2], -1))

    def read(self, states: Float[Array, "B M E"]) -> KeysValues:
        """The memory's keys and values."""
        k, v = jnp.split(_heads(self.kv(states), 2 * self.num_kv_heads), 2, axis=2)
        return keys_values(k, v)

    def over(
        self,
        x: Float[Array, "B L D"],
        memory: KeysValues,
        bias: Float32[Array, "H _ M"] | None,
        visible: Bool[Array, "B 1 M"],
        deterministic: bool = True,
    ) -> tuple[Float[jax.Array, "B L D"], Float32[jax.Array, "B H L M"]]:
        """(what each token attends to, logits)."""
        q = _heads(self.q(x), self.num_heads)
        out, scores = attend(q, memory, bias, visible, self._dropout(deterministic))
        return self.out(out.reshape(*x.shape[:-1], -1)), scores

    def _dropout(self, deterministic: bool):
        return None if deterministic else lambda s: self.drop(s, deterministic=False)


def value_norms(memory: KeysValues, num_heads: int) -> Float32[jax.Array, "B H M"]:
    """The length of the value vector of each head and state."""
    squares = jnp.square(memory.values.astype(jnp.float32)).sum(-1)
    # Not sqrt(0), whose gradient is not finite.
    norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
    return jnp.repeat(norms, num_heads // norms.shape[1], axis=1)


class FeedForward(nn.Module):
    """wo relu(wi x), or wo (gelu(wi_0 x) * wi_1 x) with GELU's tanh form."""

    feed_forward_width: int
    width: int
    activation: Activation
    dropout: float
    dtype: Dtype

    def setup(self):
        gated = self.activation == "gated_gelu"
        self.into = _dense(self.feed_forward_width * (1 + gated), self.dtype)
        self.out = _dense(self.width, self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self, x: Float[Array, "*B D"], deterministic: bool
    ) -> Float[jax.Array, "*B D"]:
        """The layer's addition to the residual stream."""
        h = self.into(x)
        if self.activation == "gated_gelu":
            gate, linear = jnp.split(h, 2, axis=-1)
            h = nn.gelu(gate) * linear
        else:
            h = nn.relu(h)
        return self.out(self.drop(h, deterministic=deterministic))
