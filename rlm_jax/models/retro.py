"""RETRO: a decoder with chunked cross-attention to retrieved neighbours.

Borgeaud et al. 2022, section 2 and algorithm 1. The decoder is a `Decoder`, parameters
and all, so RETRO can be built around a trained one; without neighbours it is called as
it is. Where this differs from the paper:

* Queries and keys of cross-attention are turned by their positions (rotary), where the
  paper adds relative logits; the distances are the paper's.
* The encoder embeds tokens with the decoder's table and a linear map to its own width.
* Cross-attention, the decoder's too, has the encoder's heads: what a narrow encoder
  says does not grow by wider keys.
* A head of chunked cross-attention may attend to nothing, as a learned logit says; one
  of the public rebuilds learns a null key and a null value.
* The output of chunked cross-attention starts at zero, so that a new RETRO is its
  decoder.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int, Int32, Shaped

from rlm_jax.errors import UserError
from rlm_jax.models import decoder as decoders
from rlm_jax.models.decoder import Decoder, DecoderConfig, DecoderOutput
from rlm_jax.models.layers import KeysValues
from rlm_jax.models.neighbours import (
    ChunkedCrossAttention,
    NeighbourEncoder,
    NeighbourEncoderConfig,
    check_layers,
    filled,
)
from rlm_jax.ops import Array, chunks


def usual_layers(num_layers: int) -> tuple[int, ...]:
    """Which layers, from 1, have cross-attention in the paper: 6, 9, 12, ..."""
    return tuple(range(6, num_layers + 1, 3))


def check(
    decoder: DecoderConfig,
    encoder: NeighbourEncoderConfig,
    chunk_length: int,
    cross_layers: tuple[int, ...],
) -> None:
    """Raises UserError where sizes or choices do not fit together."""
    decoders.check(decoder)
    filled(encoder, decoder)
    if chunk_length < 1:
        raise UserError(f"chunk_length is {chunk_length}; choose 1 or more.")
    if not cross_layers:
        raise UserError(
            f"no layer of {decoder.num_layers} has cross-attention, whose usual layers "
            "start at 6; name some in cca_layers."
        )
    check_layers("cca_layers", cross_layers, decoder.num_layers)


class RetroCache(NamedTuple):
    """A decoder's `Cache`, and what is read of the last full chunk's neighbours.

    Rows have no padding, so that their chunks end together.
    """

    layers: tuple[KeysValues, ...]
    valid: Bool[jax.Array, "B S"]
    length: Int32[jax.Array, ""]  # tokens so far
    states: Float[jax.Array, "B m D"]  # of the running chunk, which the encoder reads
    cross: tuple[KeysValues, ...]  # [B, K r, H, d], a layer each
    mask: Bool[jax.Array, "B Kr"]
    end: Int32[jax.Array, ""]  # the first position after their window


def empty_cache(
    config: DecoderConfig,
    encoder: NeighbourEncoderConfig,
    chunk_length: int,
    cross_layers: tuple[int, ...],
    shape: tuple[int, int, int, int],
) -> RetroCache:
    """A cache of no tokens; ``shape`` is B, slots, neighbours K, their length r."""
    batch, capacity, k, r = shape
    sizes = filled(encoder, config)
    heads = batch, k * r, sizes.num_heads, sizes.head_width
    return RetroCache(
        *decoders.empty_cache(config, batch, capacity),
        jnp.zeros((batch, chunk_length, config.width), config.dtype),
        tuple(
            KeysValues(jnp.zeros(heads, config.dtype), jnp.zeros(heads, config.dtype))
            for _ in cross_layers
        ),
        jnp.zeros((batch, k * r), bool),
        jnp.zeros((), jnp.int32),
    )


class Retro(nn.Module):
    """A causal language model over tokens and the neighbours of their chunks."""

    config: DecoderConfig
    encoder_config: NeighbourEncoderConfig
    chunk_length: int
    cross_layers: tuple[int, ...]  # from 1, as the paper counts

    def setup(self):
        c = self.config
        check(c, self.encoder_config, self.chunk_length, self.cross_layers)
        sizes = filled(self.encoder_config, c)
        self.decoder = Decoder(c)
        self.encoder = NeighbourEncoder(c, sizes)
        cross = ChunkedCrossAttention
        if c.remat:
            cross = nn.remat(cross, static_argnums=(4,))
        self.cross = {
            # Named as the decoder names its blocks, from 0.
            f"block_{layer - 1}": cross(c, sizes, self.chunk_length)
            for layer in self.cross_layers
        }

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        neighbours: Int[Array, "rows C K r"] | None = None,
        mask: Shaped[Array, "rows C K r"] | None = None,
        *,
        deterministic: bool = True,
    ) -> DecoderOutput:
        """Features and keys of tokens.

        Args:
          tokens: int32.
          neighbours: int32, of the C = T // m full chunks of the B rows, or None: the
            decoder alone.
          mask: 1 = token, 0 = padding, which stands at the end of a neighbour or is all
            of it; None: all are tokens.
          deterministic: no dropout.

        Raises:
          UserError: the neighbours are not those of the chunks.
        """
        batch, length = tokens.shape
        m = self.chunk_length
        if neighbours is None or length < m:
            return self.decoder(tokens, deterministic=deterministic)
        if neighbours.shape[:2] != (batch, length // m):
            raise UserError(
                f"there are neighbours of {neighbours.shape[1]} chunks in "
                f"{neighbours.shape[0]} rows and {batch} rows of {length} tokens have "
                f"{length // m} chunks of {m}; give neighbours of each full chunk."
            )
        neighbours = neighbours.reshape(-1, *neighbours.shape[2:])
        mask = jnp.ones_like(neighbours) if mask is None else mask
        mask = mask.reshape(neighbours.shape)
        encoded = None

        def cross(name, x):
            nonlocal encoded
            if encoded is None:  # once, at the first of the layers
                states = chunks.split(x, m)
                states = states.reshape(-1, *states.shape[2:])
                encoded = self._encode(neighbours, mask, states, deterministic)
            return x + self.cross[name](x, encoded, mask, deterministic)

        between = self._between(cross)
        return self.decoder(tokens, deterministic=deterministic, between=between)

    def score(
        self,
        tokens: Int[Array, "B T"],
        targets: Int[Array, "B T"],
        neighbours: Int[Array, "rows C K r"] | None = None,
        mask: Shaped[Array, "rows C K r"] | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[
        Float32[jax.Array, "B T"],
        Float32[jax.Array, "B T"],
        Float32[jax.Array, "B T D"],
    ]:
        """(target_score, log_normaliser, keys)."""
        output = self(tokens, neighbours, mask, deterministic=deterministic)
        scores = self.decoder.vocabulary.scores(output.features, targets)
        return *scores, output.keys

    def log_probs(
        self,
        tokens: Int[Array, "B T"],
        neighbours: Int[Array, "rows C K r"] | None = None,
        mask: Shaped[Array, "rows C K r"] | None = None,
    ) -> Float32[jax.Array, "B T V"]:
        """The next-token distribution in logarithms."""
        features = self(tokens, neighbours, mask).features
        return self.decoder.vocabulary.log_probs(features)

    def extend(
        self,
        tokens: Int[Array, "B T"],
        mask: Shaped[Array, "B T"],
        cache: RetroCache,
        neighbours: Int[Array, "B K r"] | None = None,
        neighbour_mask: Shaped[Array, "B K r"] | None = None,
    ) -> tuple[DecoderOutput, RetroCache]:
        """Features and keys of the tokens that follow those of a cache.

        Args:
          tokens: int32.
          mask: all 1.
          cache: with T slots or more to spare.
          neighbours: int32, of the chunk that the first of the tokens ends;
            the T tokens, m at most, read them, and so do those of the next calls as far
            as their window reaches. None: no chunk ends here, or it has none.
          neighbour_mask: 1 = token, 0 = padding; None where all are tokens.

        Returns:
          (output, the cache with the tokens in it). Neighbours that come when no chunk
          ends make features of NaN.
        """
        m, length = self.chunk_length, tokens.shape[1]
        positions = cache.length + jnp.arange(length)
        aligned = jnp.array(True)
        if neighbours is not None:
            if length > m:
                raise ValueError(f"{length} tokens do not fit in a window of {m}")
            if neighbour_mask is None:
                neighbour_mask = jnp.ones_like(neighbours)
            aligned = positions[0] % m == m - 1
            cache = cache._replace(
                mask=neighbour_mask.reshape(cache.mask.shape) > 0,
                end=cache.length + m,
            )
        names = list(self.cross)

        def cross(name, x):
            nonlocal cache
            if name == names[0]:
                if neighbours is not None:
                    states = cache.states.at[:, m - 1].set(x[:, 0])
                    encoded = self._encode(neighbours, neighbour_mask, states, True)
                    new = (self.cross[n].keys_values(encoded) for n in names)
                    cache = cache._replace(cross=tuple(new))
                states = cache.states.at[:, positions[-m:] % m].set(x[:, -m:])
                cache = cache._replace(states=states)
            kept = cache.cross[names.index(name)]
            h = self.cross[name].within(x, positions, kept, cache.mask)
            return x + jnp.where((positions < cache.end)[:, None], h, 0)

        plain = decoders.Cache(cache.layers, cache.valid, cache.length)
        output, plain = self.decoder.extend(tokens, mask, plain, self._between(cross))
        features = jnp.where(aligned, output.features, jnp.nan)
        return output._replace(features=features), cache._replace(**plain._asdict())

    def extend_and_predict(self, *args) -> tuple[Float32[jax.Array, "B V"], RetroCache]:
        """(log p of what follows the last token, the cache).

        Arguments as of `extend`.
        """
        output, cache = self.extend(*args)
        log_probs = self.decoder.vocabulary.log_probs(output.features[:, -1:])
        return log_probs[:, 0], cache

    def _encode(self, neighbours, mask, chunk_states, deterministic):
        embedded = self.decoder.vocabulary.embed(neighbours)
        return self.encoder(embedded, mask, chunk_states, deterministic)

    def _between(self, cross):
        """What `Decoder` calls after the attention of each of the layers."""

        def at(layer):
            return layer - 1, lambda x: cross(f"block_{layer - 1}", x)

        return dict(at(layer) for layer in self.cross_layers)
