"""The encoder of neighbours, and the attention of a decoder's chunks to them.

One line of positions starts with each chunk: the chunk's tokens, its window and its
neighbours all have places on it (see `ops.chunks.window_positions`), and queries and
keys are turned by them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped

from rlm_jax.errors import UserError
from rlm_jax.models import layers
from rlm_jax.models.decoder import DecoderConfig
from rlm_jax.ops import Array, chunks


@dataclasses.dataclass
class NeighbourEncoderConfig:
    """Sizes of the encoder of neighbours; the rest is the decoder's choice."""

    MAY_BE_ZERO: ClassVar = ("width", "num_heads", "feed_forward_width")

    num_layers: int = 2  # blocks
    width: int = 0  # 0: the decoder's
    num_heads: int = 0  # of it and of the cross-attention; 0: the decoder's
    feed_forward_width: int = 0  # 0: the decoder's, in proportion
    head_width: int = 0  # of those heads; 0: as many as make up the width
    cca_layers: tuple[int, ...] = ()  # from 1, those that read the chunk; (): all

    @property
    def heads_width(self) -> int:
        """Of all heads together, once `filled`."""
        return self.num_heads * self.head_width


def filled(
    encoder: NeighbourEncoderConfig, decoder: DecoderConfig
) -> NeighbourEncoderConfig:
    """The sizes with the decoder's in place of 0.

    Raises:
      UserError: they do not fit together.
    """
    width = encoder.width or decoder.width
    heads = encoder.num_heads or decoder.num_heads
    full = NeighbourEncoderConfig(
        num_layers=encoder.num_layers,
        width=width,
        num_heads=heads,
        feed_forward_width=encoder.feed_forward_width
        or decoder.feed_forward_width * width // decoder.width,
        head_width=encoder.head_width or width // max(heads, 1),
        cca_layers=tuple(encoder.cca_layers) or tuple(range(1, encoder.num_layers + 1)),
    )
    for name in ("num_layers", "width", "num_heads", "feed_forward_width"):
        size = getattr(full, name)
        if size < 1:
            raise UserError(f"the encoder's {name} is {size}; choose 1 or more.")
    if not encoder.head_width and width % (2 * heads):
        raise UserError(
            f"the encoder is {width} wide with {heads} heads; choose a width "
            "that gives each head an even part."
        )
    if full.head_width < 1 or full.head_width % 2:
        raise UserError(
            f"the encoder's head_width is {full.head_width}, and rotary positions turn "
            "pairs; choose an even one."
        )
    check_layers("the encoder's cca_layers", full.cca_layers, full.num_layers)
    return full


def check_layers(name: str, cca_layers: tuple[int, ...], num_layers: int) -> None:
    """Raises UserError where they are not some of the layers 1 ... ``num_layers``."""
    rising = sorted(set(cca_layers)) == list(cca_layers)
    if not rising or cca_layers[0] < 1 or cca_layers[-1] > num_layers:
        raise UserError(
            f"{name} are {cca_layers}; choose layers that rise from 1 to {num_layers}."
        )


class CrossAttention(nn.Module):
    """Multi-head attention to other states, rotary, without biases."""

    width: int  # of all heads together
    num_heads: int
    out_width: int
    dtype: layers.Dtype
    out_init: Any
    rotary_base: float
    rotary_scaling: tuple[float, ...]

    def setup(self):
        init = nn.initializers.normal(0.02)

        def dense(width, init):
            return layers.dense(width, False, self.dtype, kernel_init=init)

        self.query = dense(self.width, init)
        self.key_value = dense(2 * self.width, init)
        self.out = dense(self.out_width, self.out_init)

    def queries(
        self, x: Float[Array, "N T D"], positions: Int[Array, " T"]
    ) -> Float[jax.Array, "N T H d"]:
        """Queries of the states x."""
        return self._turned(self.query(x), positions)

    def keys_values(
        self, states: Float[Array, "N S D"], positions: Int[Array, " S"]
    ) -> layers.KeysValues:
        """Keys and values of states, [N, S, H, d] each."""
        k, v = jnp.split(self.key_value(states), 2, axis=-1)
        return layers.KeysValues(self._turned(k, positions), self._heads(v))

    def project(self, attended: Float[Array, "N T H d"]) -> Float[jax.Array, "N T D"]:
        """One vector of what the heads attended to."""
        return self.out(attended.reshape(*attended.shape[:2], self.width))

    def of_neighbours(
        self,
        x: Float[Array, "NK r D"],
        positions: Int[Array, " r"],
        chunk_states: Float[Array, "N m E"],
    ) -> Float[jax.Array, "NK r F"]:
        """What the states x of N chunks' K neighbours attend to in their chunk's."""
        q = self.queries(x, positions)
        count, m, _ = chunk_states.shape
        k, v = self.keys_values(chunk_states, jnp.arange(m))
        h = chunks.cross_attention(q.reshape(count, -1, *q.shape[2:]), k, v, None)
        return self.project(h.reshape(q.shape))

    def _turned(self, x, positions):
        heads = self._heads(x)
        return layers.rotate(heads, positions, self.rotary_base, self.rotary_scaling)

    def _heads(self, x):
        return x.reshape(*x.shape[:-1], self.num_heads, self.width // self.num_heads)


def norms(c: DecoderConfig) -> Callable[[str], nn.Module]:
    """The decoder's norm, by name."""
    return lambda name: layers.norm(c.norm, c.dtype, name, epsilon=c.norm_epsilon)


def both_ways(
    c: DecoderConfig, num_heads: int, head_width: int, scale: float, *, name: str
) -> layers.SelfAttention:
    """Attention to what stands before and after, rotary as the decoder's.

    Args:
      num_heads, head_width: its own.
      scale: of the initial output.
    """
    return layers.SelfAttention(
        num_heads=num_heads,
        head_width=head_width,
        bias=c.bias,
        dtype=c.dtype,
        causal=False,
        rotary=True,
        rotary_base=c.rotary_base,
        rotary_scaling=tuple(c.rotary_scaling),
        output_scale=scale,
        name=name,
    )


def chunk_attention(
    c: DecoderConfig, sizes: NeighbourEncoderConfig, out_width: int, scale: float
) -> CrossAttention:
    """Attention of neighbours to the chunk that they were retrieved for."""
    return CrossAttention(
        width=sizes.heads_width,
        num_heads=sizes.num_heads,
        out_width=out_width,
        dtype=c.dtype,
        out_init=nn.initializers.normal(scale),
        rotary_base=c.rotary_base,
        rotary_scaling=tuple(c.rotary_scaling),
        name="cross_attention",
    )


class EncoderBlock(nn.Module):
    """Self-attention over a neighbour, cross-attention to its chunk, feed-forward."""

    config: DecoderConfig
    sizes: NeighbourEncoderConfig
    reads_chunk: bool = True  # whether this layer has the cross-attention

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "NK r E"],
        mask: Shaped[Array, "NK r"],
        chunk_states: Float[Array, "N m D"],
        deterministic: bool,
    ) -> Float[jax.Array, "NK r E"]:
        """The states x of N K neighbours after the block."""
        c, sizes = self.config, self.sizes
        scale = layers.residual_scale(sizes.num_layers)
        dropout = nn.Dropout(c.dropout, deterministic=deterministic)
        positions, norm = jnp.arange(x.shape[1]), norms(c)
        attention = both_ways(
            c, sizes.num_heads, sizes.head_width, scale, name="attention"
        )
        x = x + dropout(attention(norm("attention_norm")(x), positions, mask))
        if self.reads_chunk:
            cross = chunk_attention(c, sizes, sizes.width, scale)
            asked = norm("cross_attention_norm")(x)
            x = x + dropout(cross.of_neighbours(asked, positions, chunk_states))
        h = layers.FeedForward(
            width=sizes.feed_forward_width,
            activation=c.activation,
            bias=c.bias,
            output_scale=scale,
            dtype=c.dtype,
            name="feed_forward",
        )(norm("feed_forward_norm")(x))
        return x + dropout(h)


class NeighbourEncoder(nn.Module):
    """Neighbours in the light of the chunk that they were retrieved for."""

    config: DecoderConfig
    sizes: NeighbourEncoderConfig

    @nn.compact
    def __call__(
        self,
        embedded: Float[Array, "N K r D"],
        mask: Shaped[Array, "N K r"],
        chunk_states: Float[Array, "N m D"],
        deterministic: bool,
    ) -> Float[jax.Array, "N K r E"]:
        """States of the neighbours of N chunks.

        Args:
          embedded: the decoder's embeddings of their tokens.
          mask: 1 = token, 0 = padding, which stands at a neighbour's end.
          chunk_states: the decoder's states of the chunk.

        Returns:
          The states. What stands at padding is noise.
        """
        c, sizes = self.config, self.sizes
        count, k, r, width = embedded.shape
        x = layers.dense(
            sizes.width,
            False,
            c.dtype,
            kernel_init=nn.initializers.normal(width**-0.5),
            name="embedding",
        )(embedded.reshape(count * k, r, width))
        # One token of an absent neighbour stays: attention over none is undefined.
        visible = (mask.reshape(count * k, r) > 0) | (jnp.arange(r) == 0)
        norm = norms(c)
        chunk_states = norm("chunk_norm")(chunk_states)
        block = nn.remat(EncoderBlock, static_argnums=(4,)) if c.remat else EncoderBlock
        for i in range(sizes.num_layers):
            reads_chunk = i + 1 in sizes.cca_layers
            x = block(c, sizes, reads_chunk, name=f"block_{i}")(
                x, visible, chunk_states, deterministic
            )
        return norm("final_norm")(x).reshape(count, k, r, sizes.width)


class ChunkedCrossAttention(nn.Module):
    """What a layer of the decoder reads of the neighbours; 0 where there are none."""

    config: DecoderConfig
    sizes: NeighbourEncoderConfig
    m: int

    def setup(self):
        c = self.config
        self.norm = layers.norm(c.norm, c.dtype, epsilon=c.norm_epsilon)
        self.attention = CrossAttention(
            width=self.sizes.heads_width,
            num_heads=self.sizes.num_heads,
            out_width=c.width,
            dtype=c.dtype,
            out_init=nn.initializers.zeros,
            rotary_base=c.rotary_base,
            rotary_scaling=tuple(c.rotary_scaling),
        )
        self.nothing = nn.Dense(  # a logit, which are float32 whatever c.dtype is
            self.sizes.num_heads, dtype="float32", kernel_init=nn.initializers.zeros
        )
        self.dropout = nn.Dropout(c.dropout)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        encoded: Float[Array, "BC K r E"],
        mask: Shaped[Array, "BC K r"],
        deterministic: bool,
    ) -> Float[jax.Array, "B T D"]:
        """What is added to x, from the encoded neighbours of its B C chunks."""
        positions = chunks.window_positions(jnp.arange(x.shape[1]), self.m)
        h = self.norm(x)
        q, nothing = (
            chunks.windows(of_rows, self.m)
            for of_rows in (self.attention.queries(h, positions), self.nothing(h))
        )
        k, v = self.keys_values(encoded)
        out = chunks.cross_attention(
            q.reshape(-1, *q.shape[2:]),
            k,
            v,
            mask.reshape(len(mask), -1),
            nothing.reshape(-1, *nothing.shape[2:]),
        )
        out = chunks.from_windows(out.reshape(q.shape), x.shape[1])
        return self.dropout(self.attention.project(out), deterministic=deterministic)

    def keys_values(self, encoded: Float[Array, "N K r E"]) -> layers.KeysValues:
        """Of the encoded neighbours of N chunks, [N, K r, H, d] each."""
        count, k, r, width = encoded.shape
        states = encoded.reshape(count, k * r, width)
        return self.attention.keys_values(states, jnp.tile(jnp.arange(r), k))

    def within(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, " T"],
        keys_values: layers.KeysValues,
        mask: Shaped[Array, "B Kr"],
    ) -> Float[jax.Array, "B T D"]:
        """What is added to x at row positions of a single window.

        Args:
          x: the decoder's states.
          positions: of the T in their rows.
          keys_values: as `keys_values` gives them, of B chunks.
          mask: 1 = a token of a neighbour.
        """
        positions = chunks.window_positions(positions, self.m)
        h = self.norm(x)
        q, nothing = self.attention.queries(h, positions), self.nothing(h)
        k, v = keys_values
        out = chunks.cross_attention(q, k, v, mask, nothing)
        return self.attention.project(out)
