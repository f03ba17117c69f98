"""A causal decoder, GPT-2 or modern, with a full or an adaptive vocabulary."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, Shaped

from rlm_jax.models import layers
from rlm_jax.models.decoder_config import DecoderConfig, check, check_length
from rlm_jax.models.embedding import Vocabulary
from rlm_jax.ops import Array


class DecoderOutput(NamedTuple):
    """What a decoder computes at each position."""

    features: Float[jax.Array, "B T D"]  # normalised; they meet the vocabulary
    keys: Float32[
        jax.Array, "B T D"
    ]  # the input of the last feed-forward, after its norm


class Cache(NamedTuple):
    """What attention needs of the tokens so far: S slots, filled from the left.

    Rows share the slots, so one update serves all of them; a row that had padding
    where another had a token does not see that slot. A token's position is the number
    of tokens before it in its row, wherever padding stood.
    """

    layers: tuple[layers.KeysValues, ...]
    valid: Bool[jax.Array, "B S"]  # the slots that hold a token of the row
    length: Int32[jax.Array, ""]  # slots used


def empty_cache(config: DecoderConfig, batch: int, capacity: int) -> Cache:
    """A cache of no tokens with ``capacity`` slots."""
    c = config
    head_width = c.head_width or c.width // c.num_heads
    shape = (batch, c.num_kv_heads or c.num_heads, capacity, head_width)
    return Cache(
        # An array each: a donated buffer cannot be two.
        tuple(
            layers.KeysValues(jnp.zeros(shape, c.dtype), jnp.zeros(shape, c.dtype))
            for _ in range(c.num_layers)
        ),
        jnp.zeros((batch, capacity), bool),
        jnp.zeros((), jnp.int32),
    )


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); pre-norm."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        self.attention_norm = _norm(c)
        self.attention = layers.SelfAttention(
            num_heads=c.num_heads,
            rotary=c.positions == "rotary",
            bias=c.bias,
            output_scale=layers.residual_scale(c.num_layers),
            dtype=c.dtype,
            num_kv_heads=c.num_kv_heads,
            head_width=c.head_width,
            rotary_base=c.rotary_base,
            rotary_scaling=tuple(c.rotary_scaling),
            qkv_bias=c.qkv_bias,
            window=c.attention_window,
        )
        self.feed_forward_norm = _norm(c)
        self.feed_forward = layers.FeedForward(
            width=c.feed_forward_width,
            activation=c.activation,
            bias=c.bias,
            output_scale=layers.residual_scale(c.num_layers),
            dtype=c.dtype,
        )
        self.dropout = nn.Dropout(c.dropout)

    def __call__(
        self,
        x: Float[jax.Array, "B T D"],
        positions: Int[Array, " T"],
        deterministic: bool,
    ) -> tuple[Float[jax.Array, "B T D"], Float[jax.Array, "B T D"]]:
        """(x after the block, the feed-forward's input)."""
        return self.feed(self.attend(x, positions, deterministic), deterministic)

    def attend(
        self,
        x: Float[jax.Array, "B T D"],
        positions: Int[Array, " T"],
        deterministic: bool,
    ) -> Float[jax.Array, "B T D"]:
        """The first half."""
        h = self.attention(self.attention_norm(x), positions)
        return x + self.dropout(h, deterministic=deterministic)

    def attend_after(
        self,
        x: Float[jax.Array, "B T D"],
        positions: Int[Array, " T"],
        past: layers.KeysValues | None,
        begun: Bool[jax.Array, ""] | bool,
        deterministic: bool,
    ) -> tuple[Float[jax.Array, "B T D"], layers.KeysValues]:
        """The same after a window, and the next past; see `SelfAttention.after`."""
        h, kept = self.attention.after(self.attention_norm(x), positions, past, begun)
        return x + self.dropout(h, deterministic=deterministic), kept

    def attend_cached(
        self, x: Float[jax.Array, "B T D"], positions: Int[Array, "B T"], *cache
    ) -> tuple[Float[jax.Array, "B T D"], layers.KeysValues]:
        """The same and the layer's cache; arguments as of `SelfAttention.extend`."""
        h = self.attention_norm(x)
        h, extended = self.attention.extend(h, positions, *cache)
        return x + h, extended

    def feed(
        self, x: Float[jax.Array, "B T D"], deterministic: bool
    ) -> tuple[Float[jax.Array, "B T D"], Float[jax.Array, "B T D"]]:
        """The second half: what the block returns."""
        key = self.feed_forward_norm(x)
        h = self.feed_forward(key)
        return x + self.dropout(h, deterministic=deterministic), key


def _norm(config: DecoderConfig) -> nn.Module:
    return layers.norm(config.norm, config.dtype, epsilon=config.norm_epsilon)


Between = Mapping[int, Callable[[jax.Array], jax.Array]]
"""Layer, from 0 -> what becomes of x [B, T, D] between its attention and its
feed-forward: where a model that is built around a decoder comes in."""

_NOTHING: Between = MappingProxyType({})


class Decoder(nn.Module):
    """A causal language model over tokens."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        check(c)
        self.vocabulary = Vocabulary(
            vocab_size=c.vocab_size,
            width=c.width,
            cutoffs=tuple(c.cutoffs),
            factor=c.adaptive_factor,
            tied=c.tie_embeddings,
            dtype=c.dtype,
        )
        if c.positions == "learned":
            self.position_embedding = self.param(
                "positions", layers.embedding_init, (c.max_length, c.width)
            )
        block = nn.remat(Block, static_argnums=(3,)) if c.remat else Block
        self.blocks = [block(c, name=f"block_{i}") for i in range(c.num_layers)]
        self.final_norm = _norm(c)
        self.dropout = nn.Dropout(c.dropout)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        deterministic: bool = True,
        between: Between = _NOTHING,
    ) -> DecoderOutput:
        """Features and keys for tokens."""
        c = self.config
        # Constants: sines of an iota would be computed again at each use.
        positions = np.arange(tokens.shape[1], dtype=np.int32)
        x = self.vocabulary.embed(tokens)
        if c.positions == "learned":
            check_length(c, tokens.shape[1], "the number of tokens of a row")
            x = x + self.position_embedding[: tokens.shape[1]].astype(x.dtype)
        elif c.positions == "sinusoidal":
            x = x + layers.sinusoids(positions, c.width).astype(x.dtype)
        x = self.dropout(x, deterministic=deterministic)
        key = x
        for i, block in enumerate(self.blocks):
            if i in between:
                halves = Block.attend, Block.feed
                if c.remat:
                    attend = nn.remat(Block.attend, static_argnums=(3,))
                    halves = attend, nn.remat(Block.feed, static_argnums=(2,))
                attend, feed = halves
                x = between[i](attend(block, x, positions, deterministic))
                x, key = feed(block, x, deterministic)
            else:
                x, key = block(x, positions, deterministic)
        return DecoderOutput(self.final_norm(x), key.astype(jnp.float32))

    def extend(
        self,
        tokens: Int[Array, "B T"],
        mask: Shaped[Array, "B T"],
        cache: Cache,
        between: Between = _NOTHING,
    ) -> tuple[DecoderOutput, Cache]:
        """Features and keys of the tokens that follow those of a cache.

        Args:
          tokens: int32.
          mask: 1 = token, 0 = padding, which may stand anywhere.
          cache: with T slots or more to spare. What does not fit there, or lies beyond
            learned positions, makes features of NaN.

        Returns:
          (output, the cache with the tokens in it). What stands at padding is noise.
        """
        c = self.config
        mask = mask > 0
        length, capacity = tokens.shape[1], cache.valid.shape[1]
        before = cache.valid.sum(axis=1, keepdims=True)
        positions = jnp.maximum(before + jnp.cumsum(mask, axis=1) - 1, 0)
        valid = jax.lax.dynamic_update_slice(cache.valid, mask, (0, cache.length))
        slots = jnp.arange(capacity)
        reached = slots <= cache.length + jnp.arange(length)[:, None]  # [T, S]
        visible = valid[:, None] & reached
        if c.attention_window:
            own = jnp.cumsum(valid, axis=1) - 1  # positions of the slots
            first = (positions // c.attention_window - 1) * c.attention_window
            visible &= own[:, None] >= first[..., None]
        x = self.vocabulary.embed(tokens)
        if c.positions == "learned":
            table = jnp.asarray(self.position_embedding, x.dtype)
            x = x + table.at[positions].get(mode="clip")
        elif c.positions == "sinusoidal":
            x = x + layers.sinusoids(positions, c.width).astype(x.dtype)
        key, extended = x, []
        for i, (block, old) in enumerate(zip(self.blocks, cache.layers, strict=True)):
            x, new = block.attend_cached(x, positions, old, cache.length, visible)
            if i in between:
                x = between[i](x)
            x, key = block.feed(x, True)
            extended.append(new)
        # NaN here and not in the cache, whose slots may be used again.
        fits = cache.length + length <= capacity
        if c.positions == "learned":
            fits = fits & (positions < c.max_length)[..., None]
        features = jnp.where(fits, self.final_norm(x), jnp.nan)
        output = DecoderOutput(features, key.astype(jnp.float32))
        return output, Cache(tuple(extended), valid, cache.length + length)

    def extend_and_score(
        self,
        tokens: Int[Array, "B T"],
        targets: Int[Array, "B T"],
        mask: Shaped[Array, "B T"],
        cache: Cache,
    ) -> tuple[
        tuple[
            Float32[jax.Array, "B T"],
            Float32[jax.Array, "B T"],
            Float32[jax.Array, "B T D"],
        ],
        Cache,
    ]:
        """((target_score, log_normaliser, keys) as of `score`, the extended cache)."""
        output, cache = self.extend(tokens, mask, cache)
        scores = self.vocabulary.scores(output.features, targets)
        return (*scores, output.keys), cache

    def extend_and_predict(
        self, tokens: Int[Array, "B T"], mask: Shaped[Array, "B T"], cache: Cache
    ) -> tuple[Float32[jax.Array, "B V"], Cache]:
        """(log p of what follows each row's last token, the cache)."""
        log_probs, _, _, cache = self.extend_and_tell(tokens, mask, cache)
        return log_probs, cache

    def extend_and_tell(
        self, tokens: Int[Array, "B T"], mask: Shaped[Array, "B T"], cache: Cache
    ) -> tuple[
        Float32[jax.Array, "B V"],
        Float32[jax.Array, " B"],
        Float32[jax.Array, "B T D"],
        Cache,
    ]:
        """As `extend_and_predict`, with what a memory needs besides: (log p [B, V], the
        log-normaliser of its scores [B], the keys of all tokens [B, T, D], cache)."""
        output, cache = self.extend(tokens, mask, cache)
        last = tokens.shape[1] - 1 - jnp.argmax(mask[:, ::-1] > 0, axis=1)
        features = jnp.take_along_axis(output.features, last[:, None, None], axis=1)
        log_probs = self.vocabulary.log_probs(features)[:, 0]
        none = jnp.zeros(features.shape[:2], jnp.int32)
        _, normaliser = self.vocabulary.scores(features, none)
        return log_probs, normaliser[:, 0], output.keys, cache

    def score(
        self,
        tokens: Int[Array, "B T"],
        targets: Int[Array, "B T"],
        *,
        deterministic: bool = True,
    ) -> tuple[
        Float32[jax.Array, "B T"],
        Float32[jax.Array, "B T"],
        Float32[jax.Array, "B T D"],
    ]:
        """(target_score, log_normaliser, keys)."""
        output = self(tokens, deterministic=deterministic)
        return *self.vocabulary.scores(output.features, targets), output.keys

    def log_probs(self, tokens: Int[Array, "B T"]) -> Float32[jax.Array, "B T V"]:
        """The next-token distribution in logarithms."""
        return self.vocabulary.log_probs(self(tokens).features)


def gpt2(**changes) -> DecoderConfig:
    """GPT-2: learned positions, LayerNorm, GELU, biases (Radford et al. 2019)."""
    return dataclasses.replace(
        DecoderConfig(positions="learned", norm="layer", activation="gelu", bias=True),
        **changes,
    )


def modern(**changes) -> DecoderConfig:
    """Llama: rotary positions, RMSNorm, SwiGLU, no biases."""
    return dataclasses.replace(DecoderConfig(), **changes)
