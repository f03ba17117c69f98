"""NPM: the nonparametric masked language model (Min et al. 2023).

A masked span x_s is replaced by two mask tokens, whose last hidden states q_s and q_e
are to find where it starts and ends in the other sequences of the batch, unmasked. With
s(q, c) = q.c / sqrt(D), the slots c_j of other sequences, and those c_j where the whole
span starts (S), or ends (E):

    L_s = log sum_j e^{s(q_s, c_j)} - log sum_{j in S} e^{s(q_s, c_j)}
        + log sum_j e^{s(q_e, c_j)} - log sum_{j in E} e^{s(q_e, c_j)}     (section 3.3)

NPM-single masks single tokens by one mask token and has the first line alone. Slots are
those of all devices, and their gradients flow back to their owners.

The released code subtracts the maximum of a row of scores before it masks, which
changes nothing in exact arithmetic; its ``contrastive_negative_selection=half`` is not
here. Both here and there the marks around a sequence are slots like any other token.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int32

from rlm_jax.configuration import check_fields
from rlm_jax.method import Batch, Method, shared
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.models.token_encoder import token_embedder
from rlm_jax.ops import Array, collectives, losses, memory

NONE, ABSENT = -1, -2
"""In a span: no further token, which every slot has. In a slot: no token."""


@dataclasses.dataclass
class NPMConfig:
    """One encoder for masked and for unmasked sequences."""

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    # phrase: two masks a span, its start and its end; token: NPM-single
    unit: Literal["phrase", "token"] = "phrase"
    scale: float = 0.0  # of the inner products; 0: 1 / sqrt(D), as in the paper
    remote_gradients: bool = True  # to slots on other devices; the released code: yes
    k: int = 4096  # tokens that a mask retrieves


def elsewhere(query: memory.Ids, slot: memory.Ids) -> Bool[Array, "..."]:
    """The tokens of all sequences but the query's own."""
    return (slot["segment"] >= 0) & (slot["segment"] != query["segment"])


def same_phrase(query: memory.Ids, slot: memory.Ids) -> Bool[Array, "..."]:
    """The slots from which on (or up to which) all of the query's tokens stand."""
    same = slot["segment"] == slot["segment"]
    for wanted, found in zip(query["tokens"], slot["tokens"], strict=True):
        same &= (wanted < 0) | (wanted == found)
    return same


def npm(config: NPMConfig) -> Method:
    """The method; parameters are the encoder's.

    A batch holds B sequences, each twice, with S masked spans of up to K tokens each:

      ids, mask                int32 [B, L]  the sequence
      masked_ids, masked_mask  int32 [B, T]  the same, two mask tokens for each span;
                                  of NPM-single one, and K is 1
      at         int32 [B, S]     where the first of a span's masks stands
      spans      int32 [B, S, K]  the span's tokens; -1 behind its end
      span_mask  float32 [B, S]   0 = padding
      weight     float32 [B]      0 = padding, whose tokens are no slots either

    A span that no other sequence holds counts for nothing but in "found", the share of
    spans that are held.

    Raises:
      UserError: an unknown unit, a scale below 0 or k below 1, or sizes that do not fit
        together.
    """
    return masked(config, *token_embedder(config.encoder))


def masked(config: NPMConfig, init, states) -> Method:
    """`npm` over any encoder: ``states(params, {"ids", "mask"}, key=None)``."""
    check_fields(config)

    def sums(params, batch, keys, axis):
        masked_rows = {"ids": batch["masked_ids"], "mask": batch["masked_mask"]}
        queries = states(params, masked_rows, key=keys[0])
        slots = states(params, batch, key=keys[1])
        lines = {
            name: span_log_sums(config, queries, slots, batch, axis, end=name == "end")
            for name in LINES[config.unit]
        }
        return span_sums(lines, batch)

    def loss(params, batch, key, *, axis=None):
        keys = jax.random.split(collectives.fold_rank(key, axis))
        return sums(params, batch, (keys[0], keys[1]), axis)

    def evaluate(params, batch, key=None, *, axis=None):
        return sums(params, batch, (None, None), axis)

    return Method(init, loss, evaluate, retrieval=shared(config.k, states))


LINES = {"phrase": ("start", "end"), "token": ("start",)}


def span_log_sums(
    config: NPMConfig,
    queries: Float[Array, "B T D"],
    slots: Float[Array, "B L D"],
    batch: Batch,
    axis: str | None,
    *,
    end: bool = False,
) -> memory.LogSums:
    """The two sums of a line of the loss, [B S], for the starts or the ends of spans.

    Args:
      queries: last hidden states of the masked sequences.
      slots: those of the unmasked ones; the other devices' are gathered here.
      batch: as `npm` takes it.
      axis: of the devices.
      end: the second line in place of the first.
    """
    rows, _, width = queries.shape
    places = batch["at"] + end
    queries = jnp.take_along_axis(queries, places[..., None], axis=1)
    segment = collectives.rank(axis) * rows + jnp.arange(rows, dtype=jnp.int32)
    spans = reverse(batch["spans"]) if end else batch["spans"]
    query_ids = {
        "segment": jnp.repeat(segment, places.shape[1]),
        "tokens": tuple(spans.reshape(-1, spans.shape[-1]).T),
    }
    tokens = jnp.where(
        (batch["mask"] > 0) & (batch["weight"][:, None] > 0), batch["ids"], ABSENT
    )
    slots, tokens = collectives.gather(
        (slots, tokens), axis, remote_gradients=config.remote_gradients
    )
    number = jnp.arange(len(tokens), dtype=jnp.int32)[:, None]
    away = [shifted(tokens, -i if end else i) for i in range(spans.shape[-1])]
    slot_ids = {
        "segment": jnp.where(tokens == ABSENT, -1, number).reshape(-1),
        "tokens": tuple(x.reshape(-1) for x in away),
    }
    return memory.log_sums(
        queries.reshape(-1, width), slots.reshape(-1, width), query_ids, slot_ids,
        visible=elsewhere, positive=same_phrase, scale=config.scale or width**-0.5,
    )  # fmt: skip


def span_sums(lines: dict[str, memory.LogSums], batch: Batch):
    """The loss and its lines over the spans that some visible slot holds."""
    mask = batch["span_mask"] * batch["weight"][:, None]
    found = jnp.isfinite(lines["start"].positive).reshape(mask.shape)
    nll = {
        f"{name}_loss": (x.all - x.positive).reshape(mask.shape)
        for name, x in lines.items()
    }
    total = functools.reduce(jnp.add, nll.values())
    return {
        "loss": losses.weighted(total, mask * found),
        **{name: losses.weighted(x, mask * found) for name, x in nll.items()},
        "found": losses.weighted(found, mask),
    }


def shifted(tokens: Int32[Array, "B L"], by: int) -> Int32[Array, "B L"]:
    """At each place the token ``by`` places on, within the sequence, or `ABSENT`."""
    length = tokens.shape[1]
    at = jnp.arange(length) + by
    inside = (at >= 0) & (at < length)
    return jnp.where(inside, tokens[:, jnp.clip(at, 0, length - 1)], ABSENT)


def reverse(spans: Int32[Array, "B S K"]) -> Int32[Array, "B S K"]:
    """Each span from its last token to its first, `NONE` behind that."""
    longest = spans.shape[-1]
    at = (spans >= 0).sum(-1, keepdims=True) - 1 - jnp.arange(longest)
    turned = jnp.take_along_axis(spans, jnp.maximum(at, 0), axis=-1)
    return jnp.where(at >= 0, turned, NONE)
