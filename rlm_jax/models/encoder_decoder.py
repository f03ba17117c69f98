"""An encoder of ours under a small decoder that is tied to its vocabulary.

For where no T5 can be had: BERT, a sentence encoder or a trained retriever already
tells tokens apart, so that a decoder of one or two layers over it soon reads. The
decoder is T5's, over the encoder's states and its embedding of tokens.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int, Int32, Shaped

from rlm_jax.errors import UserError
from rlm_jax.models import encoder, layers, t5
from rlm_jax.models.encoder import Encoder, EncoderConfig
from rlm_jax.models.seq2seq import Seq2Seq, functions
from rlm_jax.models.t5 import Decoded, DecodingCache, T5Config, T5Decoder
from rlm_jax.ops import Array


@dataclasses.dataclass
class EncoderDecoderConfig:
    """An encoder, and the sizes of the decoder over it."""

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    num_decoder_layers: int = 2  # blocks of the decoder
    cross_attention_every: int = 1  # as of `t5.T5Config`
    decoder_kv_heads: int = 0  # likewise
    start_id: int = 2  # [CLS] of a WordPiece trained here
    end_id: int = 3  # [SEP]
    mark_shared: bool = False  # type 1: what question and passage share


def decoder_config(config: EncoderDecoderConfig) -> T5Config:
    """T5's decoder, of the encoder's sizes."""
    c, e = config, config.encoder
    return T5Config(
        vocab_size=e.vocab_size,
        width=e.width,
        num_layers=1,  # of an encoder, which there is not
        num_decoder_layers=c.num_decoder_layers,
        num_heads=e.num_heads,
        head_width=e.width // e.num_heads,
        feed_forward_width=e.feed_forward_width,
        dropout=e.dropout,
        dtype=e.dtype,
        remat=e.remat,
        pad_id=e.pad_id,
        end_id=c.end_id,
        start_id=c.start_id,
        cross_attention_every=c.cross_attention_every,
        decoder_kv_heads=c.decoder_kv_heads,
    )


class EncoderDecoder(nn.Module):
    """Ids to states by the encoder, and ids over states to logits.

    The decoder reads and writes the encoder's tokens: their embedding, normed, is what
    goes in, and logits are products with it. The methods are those of `seq2seq.T5`.
    """

    config: EncoderDecoderConfig

    def setup(self):
        c = self.config
        self.encoder = Encoder(c.encoder)
        self.decoder = T5Decoder(decoder_config(c))
        self.target_norm = layers.norm("layer", c.encoder.dtype)
        self.bias = self.param("bias", nn.initializers.zeros, (c.encoder.vocab_size,))

    def embed(self, ids: Int[Array, " *B"]) -> Float[jax.Array, "*B D"]:
        """The tokens' vectors as the decoder reads them."""
        return self.target_norm(self.encoder.tokens[ids])

    def encode(
        self,
        ids: Int[Array, "N T"],
        mask: Shaped[Array, "N T"],
        *,
        deterministic: bool = True,
    ) -> Float[jax.Array, "N T D"]:
        """The encoder's last hidden states."""
        c = self.config
        types = shared(ids, mask, c.end_id) if c.mark_shared else None
        return self.encoder(ids, mask, types, deterministic=deterministic)

    def decode(
        self,
        targets_in: Int[Array, "B L"],
        states: Float[Array, "B M D"],
        mask: Shaped[Array, "B M"],
        *,
        deterministic: bool = True,
        attention: bool = False,
    ) -> Decoded:
        """See `T5Decoder`."""
        return self.decoder(
            self.embed(targets_in), states, mask,
            deterministic=deterministic, attention=attention,
        )  # fmt: skip

    def start(
        self, states: Float[Array, "B M D"], mask: Shaped[Array, "B M"], max_length: int
    ) -> DecodingCache:
        """See `T5Decoder`."""
        return self.decoder.start(states, mask, max_length)

    def extend(
        self, ids: Int[Array, " R"], cache: DecodingCache
    ) -> tuple[Float[jax.Array, "R D"], DecodingCache]:
        """See `T5Decoder`."""
        return self.decoder.extend(self.embed(ids), cache)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float32[jax.Array, "*B V"]:
        """Products with the embedding of tokens, and a bias."""
        table = self.encoder.tokens.astype(hidden.dtype)
        products = jnp.einsum(
            "...d,vd->...v", hidden, table, preferred_element_type=jnp.float32
        )
        return jnp.add(products, jnp.broadcast_to(self.bias, products.shape))

    def __call__(self, ids, mask, targets_in):
        """Logits; touches every parameter, as `init` wants."""
        states = self.encode(ids, mask)
        return self.logits(self.decode(targets_in, states, mask).hidden)


def shared(
    ids: Int[Array, "N T"], mask: Shaped[Array, "N T"], end_id: int
) -> Int32[jax.Array, "N T"]:
    """1 where a token after the first ``end_id`` also stands before it, and else 0.

    Of a question beside a passage the passage's tokens that the question holds as well:
    DrQA's feature of exact match (Chen et al. 2017, section 3.2), for an encoder that
    has yet to learn which tokens are alike. It is the token's type.
    """
    there = mask > 0
    ended = jnp.cumsum(ids == end_id, axis=1) > 0
    asked = there & ~ended
    same = (ids[:, :, None] == ids[:, None, :]) & asked[:, None, :]
    return (same.any(-1) & there & ended).astype(jnp.int32)


def encoder_decoder(config: EncoderDecoderConfig) -> Seq2Seq:
    """The pure functions; the parameters hold the encoder's under "encoder".

    Raises:
      UserError: sizes or choices do not fit together.
    """
    check(config)
    return functions(
        EncoderDecoder(config),
        start_id=config.start_id,
        end_id=config.end_id,
        pad_id=config.encoder.pad_id,
        width=config.encoder.width,
    )


def small() -> EncoderDecoderConfig:
    """From scratch: two layers of 128 under one; tokens that are shared are marked."""
    encoder = EncoderConfig(
        num_layers=2,
        width=128,
        num_heads=4,
        feed_forward_width=512,
        max_length=128,
        dropout=0.1,
    )
    return EncoderDecoderConfig(encoder, num_decoder_layers=1, mark_shared=True)


def check(config: EncoderDecoderConfig) -> None:
    """Raises UserError where sizes or choices do not fit together."""
    encoder.check(config.encoder)
    t5.check(decoder_config(config))
    if config.mark_shared and config.encoder.num_types < 2:
        raise UserError(
            f"Shared tokens are marked by their type, and the encoder has "
            f"{config.encoder.num_types}: choose mark_shared=False."
        )
