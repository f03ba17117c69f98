"""T5: an encoder, a decoder over a memory of states, and the two joined.

Raffel et al. 2020; v1.1's gated feed-forward is Shazeer 2020's. The decoder stands
apart: it takes embedded tokens and the states of any encoder. Where readers want less
of it, Fusion-in-Decoder is made cheaper as in FiDO (de Jong et al. 2022): cross-
attention in every j-th layer, and fewer heads of keys and values.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int32, Shaped

from rlm_jax.configuration import check_fields
from rlm_jax.errors import UserError
from rlm_jax.models import layers, t5_layers
from rlm_jax.models.layers import KeysValues
from rlm_jax.models.t5_layers import CrossAttention, MemoryAttention, SelfAttention
from rlm_jax.ops import Array


@dataclasses.dataclass
class T5Config:
    """Sizes and choices; the default is T5 v1.0 small, `v1_1` its successor."""

    POSITIVE: ClassVar = ("head_width", "norm_epsilon")

    vocab_size: int = 0  # 0: taken from the tokenizer
    width: int = 512  # of the hidden states
    num_layers: int = 6  # of the encoder
    num_decoder_layers: int = 6  # blocks of the decoder
    num_heads: int = 8  # of attention
    head_width: int = 64  # num_heads times this may differ from width
    feed_forward_width: int = 2048  # inside a block
    activation: t5_layers.Activation = "relu"
    tied: bool = True  # the head is the embedding, and its input / sqrt(width)
    num_buckets: int = 32  # of relative positions
    max_distance: int = 128  # all that is farther shares a bucket
    norm_epsilon: float = 1e-6  # of the norms
    dropout: float = 0.1  # probability of it
    dtype: layers.Dtype = "float32"  # of the computation; parameters are always float32
    remat: bool = False  # recompute each block in the backward pass
    pad_id: int = 0  # of the token that fills rows up
    end_id: int = 1  # of the token that ends a text
    start_id: int = 0  # of the token that the decoder starts with
    cross_attention_every: int = 1  # j: in the decoder's layers j, 2j, ..., from 1
    decoder_kv_heads: int = 0  # of the decoder's keys and values; 0: num_heads
    legacy_cross_bias: bool = False  # as transformers 3.0.2; see `T5Decoder`


def v1_1(**changes: Any) -> T5Config:
    """T5 v1.1, LM-adapted T5 and Flan-T5: tanh-GELU gate, a head of its own."""
    return dataclasses.replace(T5Config(activation="gated_gelu", tied=False), **changes)


def check(config: T5Config) -> None:
    """Raises UserError where sizes or choices do not fit together."""
    check_fields(config)
    c = config
    if c.vocab_size < 1:
        raise UserError("vocab_size is 0; set it to the tokenizer's.")
    if c.num_buckets < 4 or c.num_buckets % 2:
        raise UserError(
            f"num_buckets is {c.num_buckets}; choose an even number, 4 or more."
        )
    if c.max_distance <= c.num_buckets // 2:
        raise UserError(
            f"max_distance is {c.max_distance} and half of the {c.num_buckets} buckets "
            "hold one distance each; choose one above "
            f"{c.num_buckets // 2}, or fewer buckets."
        )
    if c.dtype == "float16":
        raise UserError(
            "T5's residual stream overflows in float16; choose the dtype bfloat16 or "
            "float32."
        )
    for name in ("pad_id", "end_id", "start_id"):
        if getattr(c, name) >= c.vocab_size:
            raise UserError(
                f"{name} is {getattr(c, name)}; choose an id of the vocabulary, 0 to "
                f"{c.vocab_size - 1}."
            )
    if c.cross_attention_every > c.num_decoder_layers:
        raise UserError(
            f"cross_attention_every is {c.cross_attention_every} and the decoder has "
            f"{c.num_decoder_layers} layers, so that none would read the memory; "
            "choose at most that."
        )
    if c.decoder_kv_heads < 0 or c.num_heads % (c.decoder_kv_heads or 1):
        raise UserError(
            f"{c.num_heads} heads cannot share {c.decoder_kv_heads} of keys and values "
            "evenly; choose decoder_kv_heads that divides num_heads, or 0 for all."
        )


class Decoded(NamedTuple):
    """What a decoder makes of target tokens."""

    hidden: Float[jax.Array, "B L D"]  # as the head takes it
    attention: CrossAttention | None = None


class DecodingCache(NamedTuple):
    """What decoding keeps of B texts and of R sequences over them.

    R is a multiple of B, and the sequences of a text (a beam's) stand together; they
    share its ``memory``. `beam.beam_search` gathers the rows of ``slots`` and touches
    nothing else, so another model may put into either what it likes.
    """

    memory: Any  # leaves [B, ...]: `Memory` of a T5Decoder
    slots: Any  # leaves [R, ...]: a KeysValues of each layer, of S slots
    length: Int32[jax.Array, ""]  # slots used


class Memory(NamedTuple):
    """The memory as the cross-attending layers see it, as `t5_layers.attend` says."""

    layers: tuple[KeysValues, ...]
    mask: Shaped[Array, "B M"]


def _norm(config: T5Config) -> nn.Module:
    return layers.norm("rms", config.dtype, epsilon=config.norm_epsilon)


def _attention(module, config: T5Config, num_kv_heads: int):
    c = config
    sizes = c.num_heads, num_kv_heads, c.head_width, c.width
    return module(*sizes, c.dropout, c.dtype)


def _feed_forward(config: T5Config) -> t5_layers.FeedForward:
    c = config
    sizes = c.feed_forward_width, c.width
    return t5_layers.FeedForward(*sizes, c.activation, c.dropout, c.dtype)


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); pre-norm."""

    config: T5Config

    def setup(self):
        c = self.config
        self.attention_norm = _norm(c)
        self.attention = _attention(SelfAttention, c, c.num_heads)
        self.feed_forward_norm = _norm(c)
        self.feed_forward = _feed_forward(c)
        self.drop = nn.Dropout(c.dropout)

    def __call__(self, x, bias, visible, deterministic: bool):
        h = self.attention(self.attention_norm(x), bias, visible, deterministic)
        x = x + self.drop(h, deterministic=deterministic)
        h = self.feed_forward(self.feed_forward_norm(x), deterministic)
        return x + self.drop(h, deterministic=deterministic)


class DecoderBlock(nn.Module):
    """The same with attention to a memory, where there is, after that to tokens."""

    config: T5Config
    reads: bool  # whether it attends to the memory

    def setup(self):
        c = self.config
        num_kv_heads = c.decoder_kv_heads or c.num_heads
        self.attention_norm = _norm(c)
        self.attention = _attention(SelfAttention, c, num_kv_heads)
        if self.reads:
            self.cross_norm = _norm(c)
            self.cross = _attention(MemoryAttention, c, num_kv_heads)
        self.feed_forward_norm = _norm(c)
        self.feed_forward = _feed_forward(c)
        self.drop = nn.Dropout(c.dropout)

    def __call__(
        self, x, states, biases, visible, deterministic: bool, attention: bool
    ):
        """(x after the block, (logits, value norms) if wanted and there are any)."""
        bias, cross_bias = biases
        told = None
        h = self.attention(self.attention_norm(x), bias, visible[0], deterministic)
        x = x + self.drop(h, deterministic=deterministic)
        if self.reads:
            asked = self.cross_norm(x)
            how = cross_bias, visible[1], deterministic
            if attention:
                memory = self.cross.read(states)
                h, scores = self.cross.over(asked, memory, *how)
                told = scores, t5_layers.value_norms(memory, self.config.num_heads)
            else:
                h = self.cross(asked, states, *how)
            x = x + self.drop(h, deterministic=deterministic)
        h = self.feed_forward(self.feed_forward_norm(x), deterministic)
        return x + self.drop(h, deterministic=deterministic), told

    def read(self, states):
        """Keys and values of a memory."""
        return self.cross.read(states)

    def extend(self, x, slots, length, memory, biases, visible):
        """(x [R, D] after the block, the slots with it in them)."""
        bias, cross_bias = biases
        h = self.attention_norm(x)
        h, slots = self.attention.extend(h, slots, length, bias, visible[0])
        x = x + h
        if self.reads:
            # The sequences of a text are queries to its one memory.
            rows = self.cross_norm(x).reshape(memory.values.shape[0], -1, x.shape[-1])
            h, _ = self.cross.over(rows, memory, cross_bias, visible[1])
            x = x + h.reshape(x.shape)
        return x + self.feed_forward(self.feed_forward_norm(x), True), slots


def _table(module: nn.Module, name: str, config: T5Config):
    init = nn.initializers.normal(config.width**-0.5)
    return module.param(name, init, (config.num_buckets, config.num_heads))


class T5Encoder(nn.Module):
    """Embedded tokens to states."""

    config: T5Config

    def setup(self):
        c = self.config
        check(c)
        self.relative_bias = _table(self, "relative_bias", c)
        block = nn.remat(EncoderBlock, static_argnums=(4,)) if c.remat else EncoderBlock
        self.blocks = [block(c, name=f"block_{i}") for i in range(c.num_layers)]
        self.norm = _norm(c)
        self.drop = nn.Dropout(c.dropout)

    def __call__(
        self,
        x: Float[Array, "N T D"],
        mask: Shaped[Array, "N T"],
        *,
        deterministic: bool = True,
    ) -> Float[jax.Array, "N T D"]:
        """States in the computation's dtype; those of padding are noise, but finite.

        Args:
          x: embedded tokens.
          mask: 1 = token, 0 = padding, which may stand anywhere.
        """
        c = self.config
        length = x.shape[1]
        bias = t5_layers.relative_bias(
            self.relative_bias, jnp.arange(length), length,
            max_distance=c.max_distance, bidirectional=True,
        )  # fmt: skip
        visible = (mask > 0)[:, None]
        x = self.drop(x.astype(c.dtype), deterministic=deterministic)
        for block in self.blocks:
            x = block(x, bias, visible, deterministic)
        return self.drop(self.norm(x), deterministic=deterministic)


class T5Decoder(nn.Module):
    """Embedded target tokens and a memory of states to hidden vectors.

    It knows no vocabulary, and the memory's states may have a width of their own. With
    ``legacy_cross_bias`` all cross-attention has the relative bias of transformers
    3.0.2, with which the first published FiD readers were trained: of the state's
    number in the whole memory against the target's, the memory's future at distance 0.
    """

    config: T5Config

    def setup(self):
        c = self.config
        check(c)
        self.relative_bias = _table(self, "relative_bias", c)
        if c.legacy_cross_bias:
            self.cross_bias = _table(self, "cross_bias", c)
        block = DecoderBlock
        if c.remat:
            block = nn.remat(DecoderBlock, static_argnums=(5, 6))
        self.blocks = [
            block(c, (i + 1) % c.cross_attention_every == 0, name=f"block_{i}")
            for i in range(c.num_decoder_layers)
        ]
        self.norm = _norm(c)
        self.drop = nn.Dropout(c.dropout)

    def _biases(self, positions, num_targets, num_states):
        def bias(table, num_keys):
            return t5_layers.relative_bias(
                table, positions, num_keys,
                max_distance=self.config.max_distance, bidirectional=False,
            )  # fmt: skip

        cross = None
        if self.config.legacy_cross_bias:
            cross = bias(self.cross_bias, num_states)
        return bias(self.relative_bias, num_targets), cross

    def __call__(
        self,
        x: Float[Array, "B L D"],
        states: Float[Array, "B M E"],
        mask: Shaped[Array, "B M"],
        *,
        deterministic: bool = True,
        attention: bool = False,
    ) -> Decoded:
        """Hidden vectors, in the computation's dtype, and what layers attended to.

        Args:
          x: embedded tokens; each attends to those before it and itself.
          states: the memory.
          mask: 1 = state, 0 = padding. A row of padding alone has no memory: what
            cross-attention gives is zero.
          attention: whether to tell it.
        """
        c = self.config
        positions = jnp.arange(x.shape[1])
        biases = self._biases(positions, x.shape[1], states.shape[1])
        causal = positions <= positions[:, None]
        visible = causal[None], (mask > 0)[:, None]
        x = self.drop(x.astype(c.dtype), deterministic=deterministic)
        states = states.astype(c.dtype)
        told = []
        for block in self.blocks:
            x, of_layer = block(x, states, biases, visible, deterministic, attention)
            told += [of_layer] if of_layer is not None else []
        x = self.drop(self.norm(x), deterministic=deterministic)
        if not attention:
            return Decoded(x)
        scores, norms = zip(*told, strict=True)
        return Decoded(x, CrossAttention(jnp.stack(scores), jnp.stack(norms)))

    def start(
        self,
        states: Float[Array, "B M E"],
        mask: Shaped[Array, "B M"],
        max_length: int,
    ) -> DecodingCache:
        """A cache of no tokens with ``max_length`` slots for B sequences."""
        c = self.config
        states = states.astype(c.dtype)
        memory = tuple(block.read(states) for block in self.blocks if block.reads)
        shape = states.shape[0], c.decoder_kv_heads or c.num_heads, c.head_width
        slots = tuple(
            KeysValues(
                jnp.zeros((*shape, max_length), c.dtype),
                jnp.zeros((*shape[:2], max_length, shape[2]), c.dtype),
            )
            for _ in self.blocks
        )
        return DecodingCache(Memory(memory, mask), slots, jnp.zeros((), jnp.int32))

    def extend(
        self, x: Float[Array, "R D"], cache: DecodingCache
    ) -> tuple[Float[jax.Array, "R D"], DecodingCache]:
        """(hidden vectors of one more token in each sequence, the cache with it).

        A token for which there is no slot gets a vector of NaN.
        """
        memory, slots, length = cache
        x = x.astype(self.config.dtype)
        num_slots = slots[0].values.shape[2]
        biases = self._biases(length[None], num_slots, memory.mask.shape[1])
        visible = (
            (jnp.arange(num_slots) <= length)[None, None],
            (memory.mask > 0)[:, None],
        )
        extended, of_layers = [], iter(memory.layers)
        for block, old in zip(self.blocks, slots, strict=True):
            layer = next(of_layers) if block.reads else None
            x, new = block.extend(x, old, length, layer, biases, visible)
            extended.append(new)
        x = jnp.where(length < num_slots, self.norm(x), jnp.nan)
        return x, DecodingCache(memory, tuple(extended), length + 1)
