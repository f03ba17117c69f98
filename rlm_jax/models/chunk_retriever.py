"""RPT's retriever of chunks, and what becomes of the neighbours that it finds.

Rubin and Berant 2023, section 3.1. The parts of `models.rpt` that a decoder does not
have: chunks to queries, keys and values; and neighbours in the light of their chunk,
with a gate each.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from rlm_jax.models import layers
from rlm_jax.models.decoder import DecoderConfig
from rlm_jax.models.neighbours import (
    NeighbourEncoderConfig,
    both_ways,
    chunk_attention,
    norms,
)
from rlm_jax.ops import Array

LEAST_GATE = 0.1
"""No gate closes entirely, so that a neighbour's states always have a gradient."""


class ChunkRetriever(nn.Module):
    """States of chunks to queries, keys and the states that are retrieved."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, states: Float[Array, "B C m D"]
    ) -> tuple[
        Float32[jax.Array, "B C D"],
        Float32[jax.Array, "B C D"],
        Float[jax.Array, "B C m D"],
    ]:
        """(queries, keys, encoded states)."""
        c = self.config
        batch, count, m, width = states.shape
        norm = norms(c)
        flat = states.reshape(batch * count, m, width)
        scale = layers.residual_scale(c.num_layers)
        attend = both_ways(c, c.num_heads, c.head_width, scale, name="attention")
        encoded = flat + attend(norm("attention_norm")(flat), jnp.arange(m))
        encoded = jnp.asarray(encoded).reshape(states.shape)
        pooled = encoded.astype(jnp.float32).mean(2)
        init = nn.initializers.normal(0.02)

        def head(name):
            dense = nn.Dense(width, dtype="float32", kernel_init=init, name=name)
            return dense(norm(f"{name}_norm")(pooled).astype(jnp.float32))

        return head("query"), head("key"), encoded


class NeighbourAugmenter(nn.Module):
    """What was retrieved, in the light of its chunk, and how far it counts.

    The released code can put causal attention over the neighbours of all chunks before
    the gate; here each has its gate by itself.
    """

    config: DecoderConfig
    reader: NeighbourEncoderConfig

    @nn.compact
    def __call__(
        self,
        neighbours: Float[Array, "N K r D"],
        chunk_states: Float[Array, "N m D"],
        deterministic: bool,
    ) -> Float[jax.Array, "N K r D"]:
        """Gated states.

        Args:
          neighbours: those of N chunks.
          chunk_states: the lower layers' of the N chunks.
          deterministic: no dropout.
        """
        c, sizes = self.config, self.reader
        count, k, r, width = neighbours.shape
        norm = norms(c)
        dropout = nn.Dropout(c.dropout, deterministic=deterministic)
        x, positions = neighbours.reshape(count * k, r, width), jnp.arange(r)
        scale = layers.residual_scale(c.num_layers)
        attention = both_ways(
            c, sizes.num_heads, sizes.head_width, scale, name="self_attention"
        )
        x = x + dropout(attention(norm("self_attention_norm")(x), positions))
        cross = chunk_attention(c, sizes, width, scale)
        asked, read = norm("cross_attention_norm")(x), norm("chunk_norm")(chunk_states)
        x = x + dropout(cross.of_neighbours(asked, positions, read))
        pooled = norm("gate_norm")(x.astype(jnp.float32).mean(1)).astype(jnp.float32)
        logit = nn.Dense(1, dtype="float32", name="gate")(pooled) / width
        gate = LEAST_GATE + (1 - LEAST_GATE) * nn.sigmoid(logit)
        # The norm comes first, or it would undo the gate.
        gated = norm("final_norm")(x) * gate[:, None].astype(x.dtype)
        return gated.reshape(neighbours.shape)
