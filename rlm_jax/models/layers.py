"""Attention, feed-forward, norms and positions."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Shaped

from rlm_jax.ops import Array
from rlm_jax.ops.attention import attend_causally, attend_to_slots
from rlm_jax.ops.products import product

Dtype = Literal["float32", "bfloat16", "float16"]
"""Of a computation; parameters are float32 always."""

Norm = Literal["rms", "layer"]
Activation = Literal["swiglu", "gelu", "exact_gelu", "relu"]
"""gelu is GPT-2's tanh form, exact_gelu BERT's."""

embedding_init = nn.initializers.normal(0.02)


def norm(
    kind: Norm, dtype: Dtype, name: str | None = None, *, epsilon: float = 0.0
) -> nn.Module:
    """LayerNorm ("layer") or RMSNorm ("rms"); epsilon 0 is 1e-5 or 1e-6, as usual."""
    if kind == "layer":
        return nn.LayerNorm(epsilon=epsilon or 1e-5, dtype=dtype, name=name)
    return nn.RMSNorm(epsilon=epsilon or 1e-6, dtype=dtype, name=name)


def residual_scale(num_layers: int) -> float:
    """GPT-2's: the more layers add to the residual stream, the less each does."""
    return 0.02 / (2 * num_layers) ** 0.5


def sinusoids(
    positions: Int[Array, " *B"], width: int
) -> Float32[jax.Array, "*B {width}"]:
    """Sines then cosines of geometrically spaced wavelengths.

    Vaswani et al. 2017, section 3.5, in fairseq's order (halves, not interleaved).
    """
    rates = 10000.0 ** (-jnp.arange(width // 2) / (width // 2 - 1))
    angles = positions[..., None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotary_rates(
    half: int, base: float = 10000.0, scaling: tuple[float, ...] = ()
) -> Float32[np.ndarray, " {half}"]:
    """Radians a position by which each of d / 2 pairs turns.

    ``base^(-2 i / d)``. Llama 3's scaling (factor, low, high, length) lets a model that
    was trained on rows of ``length`` read longer ones: pairs that turn less than
    ``low`` times in them are slowed by the factor, those that turn more than ``high``
    times stay, and between the two it is interpolated.
    """
    rates = base ** (-np.arange(half) / half)
    if scaling:
        factor, low, high, length = scaling
        turns = length * rates / (2 * np.pi)
        stays = np.clip((turns - low) / (high - low), 0, 1)
        rates = rates * (stays + (1 - stays) / factor)
    return rates.astype(np.float32)


def rotate(
    x: Float[Array, "B T H d"],
    positions: Int[Array, " T"] | Int[Array, "B T"],
    base: float = 10000.0,
    scaling: tuple[float, ...] = (),
) -> Float[jax.Array, "B T H d"]:
    """Rotary position embedding (Su et al. 2021) of x, halves paired.

    Positions are those of all rows, or of each where rows differ; the rest is
    `rotary_rates`'s.
    """
    half = x.shape[-1] // 2
    angles = jnp.asarray(positions)[..., None] * rotary_rates(half, base, scaling)
    cos, sin = (f(angles)[..., None, None, :] for f in (jnp.cos, jnp.sin))
    pairs = jnp.asarray(x).reshape(*x.shape[:-1], 2, half)
    sign = np.array([[-1], [1]], np.float32)
    # (a, b) to (a cos - b sin, b cos + a sin), in float32 as angles are.
    turned = pairs * cos + pairs[..., ::-1, :] * (sign * sin)
    return turned.reshape(x.shape).astype(x.dtype)


def exact_gelu(x: Float[jax.Array, " *B"]) -> Float[jax.Array, " *B"]:
    """x times the normal distribution function, by erf (BERT, RoBERTa)."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def applied(module: nn.Module, method: str | None = None) -> Callable[..., Any]:
    """A module's method as ``call(params, *args, key=None, **options)``.

    With a key there is dropout, and without one none.
    """

    def call(params, *args, key=None, **options):
        return module.apply(
            {"params": params},
            *args,
            deterministic=key is None,
            rngs=None if key is None else {"dropout": key},
            method=method,
            **options,
        )

    return call


def dense(features: int, bias: bool, dtype: Dtype, **options: Any) -> nn.Dense:
    """A Dense layer by `ops.products.product` where that is faster, on a CPU."""

    def dot_general(x, kernel, *_, **__):
        return product(x, kernel)

    if jax.default_backend() == "cpu":
        options["dot_general"] = dot_general
    return nn.Dense(features, bias, dtype=dtype, **options)


ACTIVATIONS = {"gelu": nn.gelu, "exact_gelu": exact_gelu, "relu": nn.relu}


class KeysValues(NamedTuple):
    """Keys and values of one layer.

    In a `Cache` of S slots with G heads they are [B, G, S, d] each; of the states that
    cross-attention reads, [N, S, H, d].
    """

    keys: Float[Array, "..."]  # as rotated
    values: Float[Array, "..."]


class SelfAttention(nn.Module):
    """Multi-head self-attention; the softmax is computed in float32.

    Causal, or over all tokens of a row that ``mask`` [B, T] keeps; what it drops stands
    at the row's end. With fewer heads of keys and values each serves several queries'
    (grouped-query attention, Ainslie et al. 2023).
    """

    num_heads: int
    bias: bool
    dtype: Dtype
    causal: bool = True
    rotary: bool = False
    output_scale: float = 0.02  # standard deviation of the output's initial weights
    num_kv_heads: int = 0  # 0: num_heads
    head_width: int = 0  # 0: the width over num_heads
    rotary_base: float = 10000.0
    rotary_scaling: tuple[float, ...] = ()  # as of `rotary_rates`
    qkv_bias: bool = False  # where there are no others
    window: int = 0  # tokens of a window, for `attend_to_windows`; 0: all before

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, " T"] | None = None,
        mask: Shaped[Array, "B T"] | None = None,
    ) -> Float[jax.Array, "B T D"]:
        """What each token attends to; ``positions`` for rotary ones."""
        out, _ = self._attend(x, positions, lambda q, k, v: (self._all(q, k, v, mask),))
        return out

    def extend(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        cache: KeysValues,
        slot: Int[Array, ""],
        visible: Bool[Array, "B T S"],
    ) -> tuple[Float[jax.Array, "B T D"], KeysValues]:
        """The same for the tokens that follow those of a cache.

        Args:
          x: the T tokens.
          positions: of each row.
          cache: of S slots.
          slot: where the first of the T goes.
          visible: the slots that each of the T attends to.

        Returns:
          (out, the cache with the T in it).
        """

        def attend(q, k, v):
            keys, values = (
                jax.lax.dynamic_update_slice(old, new.swapaxes(1, 2), (0, 0, slot, 0))
                for old, new in zip(cache, (k, v), strict=True)
            )
            return attend_to_slots(q, keys, values, visible), KeysValues(keys, values)

        out, (extended,) = self._attend(x, positions, attend)
        return out, extended

    def after(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, " T"],
        past: KeysValues | None,
        begun: Bool[Array, ""] | bool = True,
    ) -> tuple[Float[jax.Array, "B T D"], KeysValues]:
        """Whole windows of a row that goes on after the window before.

        Args:
          x: the T tokens of the windows.
          positions: 0 ... T - 1.
          past: keys and values of the window before, [B, W, G, d] each, the keys turned
            by the positions -W ... -1; None: nothing is before.
          begun: whether there is a window before.

        Returns:
          (out, the past of what follows).
        """
        length, window = x.shape[1], self.window
        assert window and length % window == 0

        def attend(q, k, v):
            last = k[:, -window:]
            if self.rotary:  # as they stand before what follows
                back = jnp.full(window, -length)
                last = rotate(last, back, self.rotary_base, self.rotary_scaling)
            out = attend_to_windows(q, k, v, window, past, begun)
            return out, KeysValues(last, v[:, -window:])

        out, (kept,) = self._attend(x, positions, attend)
        return out, kept

    @nn.compact
    def _attend(self, x, positions, attend):
        """Projections and rotation around ``attend(q, k, v) -> (out, *rest)``."""
        width = x.shape[-1]
        head_width = self.head_width or width // self.num_heads
        num_kv_heads = self.num_kv_heads or self.num_heads
        heads = self.num_heads + 2 * num_kv_heads
        qkv = dense(
            heads * head_width,
            self.bias or self.qkv_bias,
            self.dtype,
            kernel_init=nn.initializers.normal(0.02),
            name="qkv",
        )(x)
        q, k, v = jnp.split(
            qkv.reshape(*x.shape[:2], heads, head_width),
            (self.num_heads, self.num_heads + num_kv_heads),
            axis=2,
        )
        if self.rotary:
            assert positions is not None
            q, k = (
                rotate(x, positions, self.rotary_base, self.rotary_scaling)
                for x in (q, k)
            )
        out, *rest = attend(q, k, v)
        out = dense(
            width,
            self.bias,
            self.dtype,
            kernel_init=nn.initializers.normal(self.output_scale),
            name="out",
        )(out.reshape(*x.shape[:2], self.num_heads * head_width))
        return out, rest

    def _all(self, q, k, v, mask):
        """Every token of x to every one, or to those before it."""
        if self.window and self.causal and q.shape[1] > self.window:
            assert mask is None
            return attend_to_windows(q, k, v, self.window)
        if self.causal and mask is None and jax.default_backend() == "cpu":
            return attend_causally(q, k, v)
        # cuDNN's flash attention takes 16-bit inputs of certain widths only.
        flash = (
            jax.default_backend() == "gpu"
            and q.dtype != jnp.float32
            and q.shape[-1] % 8 == 0
            and q.shape[-1] <= 128
        )
        padding: dict[str, Any] = {}
        if mask is not None and flash:  # a mask would become an array [B, H, T, T]
            padding["key_value_seq_lengths"] = mask.sum(1).astype(jnp.int32)
        elif mask is not None:
            padding["mask"] = mask[:, None, None, :] > 0
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            is_causal=self.causal,
            implementation="cudnn" if flash else "xla",
            **padding,
        )


def attend_to_windows(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B T G d"],
    v: Float[Array, "B T G d"],
    window: int,
    past: KeysValues | None = None,
    begun: Bool[Array, ""] | bool = True,
) -> Float[jax.Array, "B T H d"]:
    """Causal attention to the own window and the whole of the one before.

    Position t sees s with ``W (t // W) - W <= s <= t``, so the cost is linear in T.

    Args:
      q, k, v: of a row; head h of q goes with head h // (H / G).
      window: W.
      past: of the window before the row, [B, W, G, d] each; None: there is none.
      begun: whether there is one.

    Dai et al. 2019 (Transformer-XL), as Rubin and Berant 2023 train on whole documents.
    """
    batch, length = q.shape[:2]
    rest = -length % window
    if past is None:
        none = jnp.zeros((batch, window, *k.shape[2:]), k.dtype)
        past, begun = KeysValues(none, none), False
    q, k, v = (jnp.pad(x, [(0, 0), (0, rest), (0, 0), (0, 0)]) for x in (q, k, v))
    count = q.shape[1] // window

    def with_before(x, before):
        whole = jnp.concatenate([before.astype(x.dtype), x], axis=1)
        windows = whole.reshape(batch, count + 1, window, *x.shape[2:])
        both = jnp.concatenate([windows[:, :-1], windows[:, 1:]], axis=2)
        return both.reshape(batch * count, 2 * window, *x.shape[2:])

    keys, values = with_before(k, past.keys), with_before(v, past.values)
    slots = np.arange(2 * window)
    reached = slots <= window + np.arange(window)[:, None]
    there = jnp.asarray((slots >= window) | (np.arange(count) > 0)[:, None]) | begun
    visible = reached[None] & there[:, None]  # [count, W, 2 W]
    visible = jnp.broadcast_to(visible, (batch, *visible.shape))
    out = jax.nn.dot_product_attention(
        q.reshape(batch * count, window, *q.shape[2:]),
        keys,
        values,
        mask=visible.reshape(batch * count, 1, window, 2 * window),
        implementation="xla",
    )
    return out.reshape(q.shape)[:, :length]


class FeedForward(nn.Module):
    """Two layers with an activation between them."""

    width: int
    activation: Activation
    bias: bool
    dtype: Dtype
    output_scale: float = 0.02  # standard deviation of the output's initial weights

    @nn.compact
    def __call__(self, x: Float[Array, "*B D"]) -> Float[jax.Array, "*B D"]:
        def layer(features, name, init):
            return dense(features, self.bias, self.dtype, kernel_init=init, name=name)

        init = nn.initializers.normal(0.02)
        if self.activation == "swiglu":
            gate, up = jnp.split(layer(2 * self.width, "in", init)(x), 2, axis=-1)
            h = nn.silu(gate) * up
        else:
            h = ACTIVATIONS[self.activation](layer(self.width, "in", init)(x))
        return layer(x.shape[-1], "out", nn.initializers.normal(self.output_scale))(h)
