"""Attention, feed-forward, norms and positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlm_jax.errors import UserError

embedding_init = nn.initializers.normal(0.02)


def norm(kind: str, dtype, name: str | None = None) -> nn.Module:
    """LayerNorm ("layer", epsilon 1e-5) or RMSNorm ("rms", epsilon 1e-6)."""
    if kind == "layer":
        return nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=name)
    if kind == "rms":
        return nn.RMSNorm(epsilon=1e-6, dtype=dtype, name=name)
    raise UserError(f"norm is {kind!r}; choose 'layer' or 'rms'.")


def _output_init(num_layers: int):
    """GPT-2's: the more layers add to the residual stream, the less each does."""
    return nn.initializers.normal(0.02 / (2 * num_layers) ** 0.5)


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


class SelfAttention(nn.Module):
    """Causal multi-head self-attention; the softmax is computed in float32."""

    num_heads: int
    rotary: bool
    bias: bool
    num_layers: int
    dtype: str

    @nn.compact
    def __call__(self, x, positions):
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
            q, k = rotate(q, positions), rotate(k, positions)
        # cuDNN's flash attention takes 16-bit inputs of certain widths only.
        flash = (
            jax.default_backend() == "gpu"
            and q.dtype != jnp.float32
            and head_width % 8 == 0
            and head_width <= 128
        )
        out = jax.nn.dot_product_attention(
            q, k, v, is_causal=True, implementation="cudnn" if flash else "xla"
        )
        return nn.Dense(
            width,
            self.bias,
            dtype=self.dtype,
            kernel_init=_output_init(self.num_layers),
            name="out",
        )(out.reshape(batch, length, width))


class FeedForward(nn.Module):
    """Two layers with an activation: swiglu, gelu (GPT-2's tanh form) or relu."""

    width: int
    activation: str
    bias: bool
    num_layers: int
    dtype: str

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
        elif self.activation in ("gelu", "relu"):
            h = getattr(nn, self.activation)(dense(self.width, "in", init)(x))
        else:
            raise UserError(
                f"activation is {self.activation!r}; choose 'swiglu', 'gelu' or 'relu'."
            )
        return dense(x.shape[-1], "out", _output_init(self.num_layers))(h)
