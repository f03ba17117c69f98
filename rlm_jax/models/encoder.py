"""A bidirectional encoder, BERT's or RoBERTa's, and the vector it makes of a text.

Devlin et al. 2019; Liu et al. 2019 differ in how positions are counted. The layout of
the parameters is ours; `rlm_jax.pretrained` reads and writes published ones.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int, PRNGKeyArray

from rlm_jax.configuration import check_fields
from rlm_jax.errors import UserError
from rlm_jax.models import layers
from rlm_jax.ops import Array

Params = Any
_init = nn.initializers.normal(0.02)


@dataclasses.dataclass
class EncoderConfig:
    """Sizes of an encoder, and how it makes one vector of a text."""

    POSITIVE: ClassVar = ("norm_epsilon",)

    vocab_size: int = 0  # 0: taken from the tokenizer
    num_layers: int = 6  # blocks
    width: int = 384  # of the hidden states
    num_heads: int = 12  # of attention
    feed_forward_width: int = 1536  # inside a block
    max_length: int = 512  # positions that there are
    num_types: int = 2  # token types; all tokens of a retriever have type 0
    first_position: int = 0  # RoBERTa: 2, and padding does not count
    pad_id: int = 0  # of the token that fills rows up
    norm_epsilon: float = 1e-12  # of the layer norms
    pooling: Literal["mean", "cls"] = "mean"  # mean: over [CLS] and [SEP] too
    projection: int = 0  # width of a last linear map; 0: none
    projection_norm: bool = False  # each token's projection is normed, then pooled
    normalise: bool = False  # vectors of length 1
    dropout: float = 0.1  # probability of it
    dtype: layers.Dtype = "float32"  # of the computation; parameters are always float32
    remat: bool = False  # recompute each block in the backward pass


def check(config: EncoderConfig) -> None:
    """Raises UserError where sizes or choices do not fit together."""
    check_fields(config)
    c = config
    if c.vocab_size < 1:
        raise UserError("vocab_size is 0; set it to the tokenizer's.")
    if c.width % c.num_heads:
        raise UserError(
            f"width {c.width} does not divide into {c.num_heads} heads; choose a "
            "multiple of num_heads."
        )
    if c.projection_norm and not c.projection:
        raise UserError(
            "projection_norm needs a projection; choose its width, or no norm."
        )


def _norm(config: EncoderConfig, name: str | None = None) -> nn.Module:
    return layers.norm("layer", config.dtype, name, epsilon=config.norm_epsilon)


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + feed_forward(x)); post-norm."""

    config: EncoderConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "N T D"], mask: Int[Array, "N T"], deterministic: bool
    ) -> Float[jax.Array, "N T D"]:
        c = self.config
        dropout = nn.Dropout(c.dropout, deterministic=deterministic)
        h = layers.SelfAttention(
            num_heads=c.num_heads,
            bias=True,
            dtype=c.dtype,
            causal=False,
            name="attention",
        )(x, mask=mask)
        x = _norm(c, "attention_norm")(x + dropout(h))
        h = layers.FeedForward(
            width=c.feed_forward_width,
            activation="exact_gelu",
            bias=True,
            dtype=c.dtype,
            name="feed_forward",
        )(x)
        return _norm(c, "feed_forward_norm")(x + dropout(h))


class Encoder(nn.Module):
    """Texts to a vector a token (`__call__`) or a vector a text (`embed`).

    Dropout follows the embeddings and each half of a block; attention weights have
    none, unlike BERT's, so that fused attention can serve.
    """

    config: EncoderConfig

    def setup(self):
        c = self.config
        check(c)
        self.tokens = self.param(
            "tokens", layers.embedding_init, (c.vocab_size, c.width)
        )
        self.positions = self.param(
            "positions",
            layers.embedding_init,
            (c.max_length + c.first_position, c.width),
        )
        self.types = self.param("types", layers.embedding_init, (c.num_types, c.width))
        self.norm = _norm(c)
        self.dropout = nn.Dropout(c.dropout)
        block = nn.remat(Block, static_argnums=(3,)) if c.remat else Block
        self.blocks = [block(c, name=f"block_{i}") for i in range(c.num_layers)]
        if c.projection:
            self.projection = layers.dense(
                c.projection, True, c.dtype, kernel_init=_init
            )
        if c.projection_norm:
            self.projection_norm = layers.norm("layer", c.dtype)

    def hidden_states(
        self,
        ids: Int[Array, "N T"],
        mask: Int[Array, "N T"],
        types: Int[Array, "N T"] | None = None,
        *,
        deterministic: bool = True,
    ) -> list[Float[jax.Array, "N T D"]]:
        """Before the first block and after each, in the computation's dtype.

        Args:
          ids: int32.
          mask: int32; 1 = token, 0 = padding.
          types: int32, or None where all are 0.

        Raises:
          UserError: a row is longer than there are positions.
        """
        c = self.config
        if ids.shape[1] > c.max_length:
            raise UserError(
                f"a text has {ids.shape[1]} tokens and max_length, where positions "
                f"end, is {c.max_length}; cut texts shorter."
            )
        if c.first_position:
            # RoBERTa counts ids that are not padding, also where a text spells "<pad>".
            real = mask * (ids != c.pad_id)
            counted = jnp.cumsum(real, axis=1) * real
            positions = self.positions[counted + c.first_position - 1]
        else:
            positions = self.positions[: ids.shape[1]]
        of_type = self.types[0] if types is None else self.types[types]
        x = self.norm((self.tokens[ids] + positions + of_type).astype(c.dtype))
        x = self.dropout(x, deterministic=deterministic)
        states = [x]
        for block in self.blocks:
            states.append(block(states[-1], mask, deterministic))
        return states

    def __call__(
        self,
        ids: Int[Array, "N T"],
        mask: Int[Array, "N T"],
        types: Int[Array, "N T"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[jax.Array, "N T D"]:
        """The last hidden states; arguments as in `hidden_states`."""
        return self.hidden_states(ids, mask, types, deterministic=deterministic)[-1]

    def embed(
        self,
        ids: Int[Array, "N T"],
        mask: Int[Array, "N T"],
        *,
        deterministic: bool = True,
    ) -> Float32[jax.Array, "N D"]:
        """One vector a text, as wide as the projection where there is one.

        FiD's and REALM's retrievers have ``projection_norm``: a linear map and a
        LayerNorm of every token, before tokens are pooled.
        """
        c = self.config
        x = self(ids, mask, deterministic=deterministic)
        if c.projection_norm:
            x = self.projection_norm(self.projection(x))
        if c.pooling == "cls":
            x = x[:, 0]
        else:
            x = x.astype(jnp.float32) * mask[..., None]
            x = x.sum(1) / jnp.maximum(mask.sum(1), 1)[:, None]
        if c.projection and not c.projection_norm:
            x = self.projection(x)
        x = x.astype(jnp.float32)
        if c.normalise:
            x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        return x


class MaskedLM(nn.Module):
    """An encoder with BERT's head: logits of the token at each position."""

    config: EncoderConfig

    def setup(self):
        c = self.config
        self.encoder = Encoder(c)
        self.dense = layers.dense(c.width, True, c.dtype, kernel_init=_init)
        self.norm = _norm(c)
        self.bias = self.param("bias", nn.initializers.zeros, (c.vocab_size,))

    def __call__(
        self,
        ids: Int[Array, "N T"],
        mask: Int[Array, "N T"],
        types: Int[Array, "N T"] | None = None,
        positions: Int[Array, "N M"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float32[jax.Array, "N _ V"]:
        """Logits of every token; the embedding of tokens is tied to them.

        Args:
          positions: int32, the only ones whose logits are wanted; None: all.
        """
        x = self.encoder(ids, mask, types, deterministic=deterministic)
        if positions is not None:
            x = jnp.take_along_axis(x, positions[..., None], axis=1)
        return self.head(x)

    def head(self, x: Float[Array, "N T D"]) -> Float32[jax.Array, "N T V"]:
        """The logits of some last hidden states."""
        x = self.norm(layers.exact_gelu(self.dense(x)))
        table = self.encoder.tokens.astype(x.dtype)
        logits = jnp.einsum("ntd,vd->ntv", x, table, preferred_element_type=jnp.float32)
        return logits + self.bias


class Embedder(NamedTuple):
    """An encoder as two pure functions."""

    init: Callable[[jax.Array], Params]
    embed: Callable[..., jax.Array]
    """``embed(params, {"ids", "mask"}, *, key=None)`` -> float32 [N, D]. With a key
    there is dropout."""


def embedder(config: EncoderConfig) -> Embedder:
    """The pure functions of an encoder that makes one vector a text.

    Raises:
      UserError: sizes or choices do not fit together.
    """
    check(config)
    module = Encoder(config)
    run = layers.applied(module, "embed")

    def init(key: PRNGKeyArray) -> Params:
        one = jnp.ones((1, 1), jnp.int32)
        return module.init(key, one, one, method="embed")["params"]

    def embed(
        params: Params, batch: Mapping[str, Any], *, key: PRNGKeyArray | None = None
    ) -> Float32[jax.Array, "N D"]:
        return run(params, batch["ids"], batch["mask"], key=key)

    return Embedder(init, embed)


def in_chunks(embed, rows: int):
    """The same encoder, which holds the activations of ``rows`` rows at a time.

    The backward pass encodes each chunk again, so memory is that of one chunk and of
    all vectors, whatever the batch. Without dropout nothing else changes; with it every
    chunk has a key of its own. Gao et al. 2021 (GradCache), section 3.
    """

    def embed_in_chunks(params, batch, *, key=None):
        total = len(batch["ids"])
        count = -(-total // rows)
        if count <= 1:
            return embed(params, batch, key=key)
        # The last chunk is filled up with the first rows, whose vectors are dropped.
        filled = jnp.arange(count * rows) % total
        chunks = jax.tree.map(
            lambda x: jnp.take(x, filled, 0).reshape(count, rows, *x.shape[1:]),
            dict(batch),
        )

        @jax.checkpoint
        def one(params, chunk, index):
            own = None if key is None else jax.random.fold_in(key, index)
            return embed(params, chunk, key=own)

        vectors = jax.lax.map(
            lambda inputs: one(params, *inputs), (chunks, jnp.arange(count))
        )
        return vectors.reshape(count * rows, *vectors.shape[2:])[:total]

    return embed_in_chunks


def small() -> EncoderConfig:
    """From scratch: unit vectors, or products would be in the thousands."""
    return EncoderConfig(
        num_layers=2,
        width=128,
        num_heads=2,
        feed_forward_width=512,
        max_length=128,
        normalise=True,
        dropout=0.0,
    )
