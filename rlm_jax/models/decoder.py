"""A causal decoder, GPT-2 or modern, with a full or an adaptive vocabulary."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlm_jax.errors import UserError
from rlm_jax.models import layers
from rlm_jax.models.embedding import Vocabulary


@dataclasses.dataclass
class DecoderConfig:
    """Sizes and choices; `gpt2` and `modern` are the usual combinations."""

    vocab_size: int = 0  # 0: taken from the tokenizer
    num_layers: int = 4
    width: int = 256
    num_heads: int = 4
    feed_forward_width: int = 1024
    max_length: int = 1024  # only learned positions end there
    positions: str = "rotary"  # rotary, learned or sinusoidal
    norm: str = "rms"  # rms or layer
    activation: str = "swiglu"  # swiglu, gelu or relu
    bias: bool = False
    tie_embeddings: bool = True
    cutoffs: tuple[
        int, ...
    ] = ()  # ends of the adaptive clusters but the last; () = full
    adaptive_factor: int = 4  # each cluster is this much narrower than the one before
    dropout: float = 0.0
    dtype: str = "float32"  # of the computation; parameters are always float32
    remat: bool = False  # recompute each block in the backward pass


def check(config: DecoderConfig) -> None:
    """Raises UserError where sizes or choices do not fit together."""
    c = config
    sizes = ("num_layers", "width", "num_heads", "feed_forward_width")
    for name in (*sizes, "adaptive_factor", "max_length"):
        if getattr(c, name) < 1:
            raise UserError(f"{name} is {getattr(c, name)}; choose 1 or more.")
    head_width, rest = divmod(c.width, c.num_heads)
    if c.vocab_size < 1:
        raise UserError("vocab_size is 0; set it to the tokenizer's.")
    if rest:
        raise UserError(
            f"width {c.width} does not divide into {c.num_heads} heads; choose a "
            "multiple of num_heads."
        )
    if c.positions not in ("rotary", "learned", "sinusoidal"):
        raise UserError(
            f"positions is {c.positions!r}; choose 'rotary', 'learned' or 'sinusoidal'."
        )
    if c.positions == "rotary" and head_width % 2:
        raise UserError(
            f"rotary positions turn pairs and a head is {head_width} wide; choose "
            "width and num_heads with an even quotient."
        )
    if c.positions == "sinusoidal" and (c.width % 2 or c.width < 4):
        raise UserError(
            f"width is {c.width}; sinusoidal positions want an even one, 4 or more."
        )
    if c.dtype not in layers.DTYPES:
        raise UserError(
            f"dtype is {c.dtype!r}; choose one of {', '.join(layers.DTYPES)}."
        )


class DecoderOutput(NamedTuple):
    """What a decoder computes at each position, [B, T, D]."""

    features: jax.Array  # normalised; they meet the vocabulary
    keys: jax.Array  # the input of the last feed-forward, after its norm; float32


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)); pre-norm."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, positions, deterministic: bool):
        c = self.config
        dropout = nn.Dropout(c.dropout, deterministic=deterministic)
        h = layers.norm(c.norm, c.dtype, name="attention_norm")(x)
        h = layers.SelfAttention(
            num_heads=c.num_heads,
            rotary=c.positions == "rotary",
            bias=c.bias,
            output_scale=layers.residual_scale(c.num_layers),
            dtype=c.dtype,
            name="attention",
        )(h, positions)
        x = x + dropout(h)
        key = layers.norm(c.norm, c.dtype, name="feed_forward_norm")(x)
        h = layers.FeedForward(
            width=c.feed_forward_width,
            activation=c.activation,
            bias=c.bias,
            output_scale=layers.residual_scale(c.num_layers),
            dtype=c.dtype,
            name="feed_forward",
        )(key)
        return x + dropout(h), key


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
        self.final_norm = layers.norm(c.norm, c.dtype)
        self.dropout = nn.Dropout(c.dropout)

    def __call__(self, tokens, *, deterministic: bool = True) -> DecoderOutput:
        """Features and keys for tokens int32 [B, T]."""
        c = self.config
        positions = jnp.arange(tokens.shape[1])
        x = self.vocabulary.embed(tokens)
        if c.positions == "learned":
            if tokens.shape[1] > c.max_length:
                raise UserError(
                    f"a row has {tokens.shape[1]} tokens and max_length, where learned "
                    f"positions end, is {c.max_length}; raise it or shorten the rows."
                )
            x = x + self.position_embedding[: tokens.shape[1]].astype(x.dtype)
        elif c.positions == "sinusoidal":
            x = x + layers.sinusoids(positions, c.width).astype(x.dtype)
        x = self.dropout(x, deterministic=deterministic)
        key = x
        for block in self.blocks:
            x, key = block(x, positions, deterministic)
        return DecoderOutput(self.final_norm(x), key.astype(jnp.float32))

    def score(self, tokens, targets, *, deterministic: bool = True):
        """(target_score [B, T], log_normaliser [B, T], keys [B, T, D]), all float32."""
        output = self(tokens, deterministic=deterministic)
        return *self.vocabulary.scores(output.features, targets), output.keys

    def log_probs(self, tokens):
        """The next-token distribution in logarithms, float32 [B, T, V]."""
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
