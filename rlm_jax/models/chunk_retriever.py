"""RPT's retriever of chunks, and what becomes of the neighbours that it finds.

Rubin and Berant 2023, section 3.1. The parts of `models.rpt` that a decoder does not
have: chunks to queries, keys and values; and neighbours in the light of their chunk,
with a gate each.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from rlm_jax.models import layers
from rlm_jax.models.decoder import DecoderConfig
from rlm_jax.models.neighbours import CrossAttention, NeighbourEncoderConfig
from rlm_jax.ops import Array, chunks

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
        norm = _norms(c)
        flat = states.reshape(batch * count, m, width)
        encoded = flat + _both_ways(c, name="attention")(
            norm("attention_norm")(flat), jnp.arange(m)
        )
        encoded = encoded.reshape(states.shape)
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
        norm = _norms(c)
        dropout = nn.Dropout(c.dropout, deterministic=deterministic)
        x, positions = neighbours.reshape(count * k, r, width), jnp.arange(r)
        attention = _both_ways(
            c, sizes.num_heads, sizes.head_width, name="self_attention"
        )
        x = x + dropout(attention(norm("self_attention_norm")(x), positions))
        cross = CrossAttention(
            width=sizes.heads_width,
            num_heads=sizes.num_heads,
            out_width=width,
            dtype=c.dtype,
            out_init=nn.initializers.normal(layers.residual_scale(c.num_layers)),
            rotary_base=c.rotary_base,
            rotary_scaling=tuple(c.rotary_scaling),
            name="cross_attention",
        )
        q = cross.queries(norm("cross_attention_norm")(x), positions)
        read = norm("chunk_norm")(chunk_states)
        kv = cross.keys_values(read, jnp.arange(read.shape[1]))
        h = chunks.cross_attention(q.reshape(count, k * r, *q.shape[2:]), *kv, None)
        x = x + dropout(cross.project(h.reshape(q.shape)))
        pooled = norm("gate_norm")(x.astype(jnp.float32).mean(1)).astype(jnp.float32)
        logit = nn.Dense(1, dtype="float32", name="gate")(pooled) / width
        gate = LEAST_GATE + (1 - LEAST_GATE) * nn.sigmoid(logit)
        # The norm comes first, or it would undo the gate.
        gated = norm("final_norm")(x) * gate[:, None].astype(x.dtype)
        return gated.reshape(neighbours.shape)


def _norms(c: DecoderConfig) -> Callable[[str], nn.Module]:
    return lambda name: layers.norm(c.norm, c.dtype, name, epsilon=c.norm_epsilon)


def _both_ways(
    c: DecoderConfig, num_heads: int = 0, head_width: int = 0, *, name: str
) -> layers.SelfAttention:
    return layers.SelfAttention(
        num_heads=num_heads or c.num_heads,
        head_width=head_width or c.head_width,
        bias=c.bias,
        dtype=c.dtype,
        causal=False,
        rotary=True,
        rotary_base=c.rotary_base,
        rotary_scaling=tuple(c.rotary_scaling),
        output_scale=layers.residual_scale(c.num_layers),
        name=name,
    )
