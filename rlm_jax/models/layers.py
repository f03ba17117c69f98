"""Attention, feed-forward, norms and positions."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlm_jax.errors import UserError

DTYPES = ("float32", "bfloat16", "float16")
"""Of a computation; parameters are float32 always."""

embedding_init = nn.initializers.normal(0.02)


def norm(
    kind: str, dtype, name: str | None = None, *, epsilon: float = 1e-5
) -> nn.Module:
    """LayerNorm ("layer") or RMSNorm ("rms", epsilon 1e-6)."""
    if kind == "layer":
        return nn.LayerNorm(epsilon=epsilon, dtype=dtype, name=name)
    if kind == "rms":
        return nn.RMSNorm(epsilon=1e-6, dtype=dtype, name=name)
    raise UserError(f"norm is {kind!r}; choose 'layer' or 'rms'.")


def residual_scale(num_layers: int) -> float:
    """GPT-2's: the more layers add to the residual stream, the less each does."""
    return 0.02 / (2 * num_layers) ** 0.5


def sinusoids(positions: jax.Array, width: int) -> jax.Array:
    """Sines then cosines of geometrically spaced wavelengths, float32 [T, D].

    Vaswani et al. 2017, section 3.5, in fairseq's order (halves, not interleaved).
    """
    rates = 10000.0 ** (-jnp.arange(width // 2) / (width // 2 - 1))
    angles = positions[:, None] * rates[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary position embedding (Su et al. 2021) of x [B, T, H, d], halves paired."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-jnp.arange(half) / half)
    angles = positions[:, None] * rates[None, :]
    cos, sin = (f(angles)[None, :, None, :] for f in (jnp.cos, jnp.sin))
    a, b = x[..., :half], x[..., half:]  # float32 from here, as angles are
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.astype(x.dtype)


def exact_gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function, by erf (BERT, RoBERTa)."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


_ACTIVATIONS = {"gelu": nn.gelu, "exact_gelu": exact_gelu, "relu": nn.relu}


class SelfAttention(nn.Module):
    """Multi-head self-attention; the softmax is computed in float32.

    Causal, or over all tokens of a row that ``mask`` [B, T] keeps; what it drops stands
    at the row's end.
    """

    num_heads: int
    bias: bool
    dtype: str
    causal: bool = True
    rotary: bool = False
    output_scale: float = 0.02  # standard deviation of the output's initial weights

    @nn.compact
    def __call__(self, x, positions=None, mask=None):
        batch, length, width = x.shape
        head_width = width // self.num_heads
        init = nn.initializers.normal(0.02)
        qkv = nn.Dense(
            3 * width, self.bias, dtype=self.dtype, kernel_init=init, name="qkv"
        )(x)
        q, k, v = jnp.split(
            qkv.reshape(batch, length, 3 * self.num_heads, head_width), 3, axis=2
        )
        if self.rotary:
            assert positions is not None
            q, k = rotate(q, positions), rotate(k, positions)
        # cuDNN's flash attention takes 16-bit inputs of certain widths only.
        flash = (
            jax.default_backend() == "gpu"
            and q.dtype != jnp.float32
            and head_width % 8 == 0
            and head_width <= 128
        )
        padding: dict[str, Any] = {}
        if mask is not None and flash:  # a mask would become an array [B, H, T, T]
            padding["key_value_seq_lengths"] = mask.sum(1).astype(jnp.int32)
        elif mask is not None:
            padding["mask"] = mask[:, None, None, :] > 0
        out = jax.nn.dot_product_attention(
            q,
            k,
            v,
            is_causal=self.causal,
            implementation="cudnn" if flash else "xla",
            **padding,
        )
        return nn.Dense(
            width,
            self.bias,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(self.output_scale),
            name="out",
        )(out.reshape(batch, length, width))


class FeedForward(nn.Module):
    """Two layers with an activation: swiglu, gelu (GPT-2's tanh form), exact_gelu
    (BERT's) or relu."""

    width: int
    activation: str
    bias: bool
    dtype: str
    output_scale: float = 0.02  # standard deviation of the output's initial weights

    @nn.compact
    def __call__(self, x):
        def dense(features, name, init):
            return nn.Dense(
                features, self.bias, dtype=self.dtype, kernel_init=init, name=name
            )

        init = nn.initializers.normal(0.02)
        if self.activation == "swiglu":
            gate, up = jnp.split(dense(2 * self.width, "in", init)(x), 2, axis=-1)
            h = nn.silu(gate) * up
        elif self.activation in _ACTIVATIONS:
            h = _ACTIVATIONS[self.activation](dense(self.width, "in", init)(x))
        else:
            raise UserError(
                f"activation is {self.activation!r}; choose 'swiglu', 'gelu', "
                "'exact_gelu' or 'relu'."
            )
        return dense(x.shape[-1], "out", nn.initializers.normal(self.output_scale))(h)
