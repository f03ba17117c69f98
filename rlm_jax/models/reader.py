"""A reader: a sequence-to-sequence model whose decoder attends to several passages.

Passages are encoded one by one, and the decoder attends to the states of all of them
(Izacard and Grave 2021, section 2, Fusion-in-Decoder). It may also copy tokens that it
reads (`ops.copying`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int, Int32, PRNGKeyArray, Shaped

from rlm_jax.models.encoder import in_chunks
from rlm_jax.models.seq2seq import Predict, Seq2Seq, shift_right
from rlm_jax.models.t5 import DecodingCache
from rlm_jax.models.t5_layers import CrossAttention
from rlm_jax.ops import Array, copying, losses

Params = Any

LONGEST_MATCH = 8
"""Tokens just written that count in what is copied next; more are as many."""


class Memory(NamedTuple):
    """What the decoder sees of the passages that it was given, M vectors in all."""

    states: Float[Array, "B M D"]
    mask: Int[Array, "B M"]
    tokens: Int[Array, "B M"]
    first: Bool[Array, " M"]  # where a passage begins


class Reader(NamedTuple):
    """A reader as pure functions of its parameters."""

    init: Callable[[jax.Array], Params]
    read: Callable[..., Memory]
    """``read(params, ids [B, K, T], mask [B, K, T], *, key=None)``; an absent passage
    is a row of mask 0, and all of a question's may be."""
    nll: Callable[..., Float32[jax.Array, "B L"]]
    """``nll(params, memory, targets [B, L], *, key=None)`` -> -log p(y_t | y_{<t}), in
    nats."""
    log_probs: Callable[..., Float32[jax.Array, "B L V"]]
    """``log_probs(params, memory, targets)`` -> log p(y | y_{<t}) of every y."""
    attention: Callable[..., CrossAttention]
    """``attention(params, memory, targets [B, L])``: where the decoder looked when it
    wrote each target."""
    start: Callable[..., DecodingCache]
    """``start(params, memory, length)``: the cache of answers of ``length`` tokens."""
    predict: Predict
    model: Seq2Seq


def reader(model: Seq2Seq, *, vectors: int = 0, chunk: int = 0, copy: bool = False):
    """The functions of a reader.

    Args:
      vectors: FiD-Light (Hofstätter et al. 2022): the decoder sees the first so many
        vectors of each passage; 0: all.
      chunk: passages encoded at once, 0: all; see `in_chunks`.
      copy: the decoder may copy tokens that it sees. The parameters are then
        {"model", "copy", "matches"}, and else the model's.
    """

    def encode(params, batch, *, key=None):
        return model.encode(params, batch["ids"], batch["mask"], key=key)

    encode = in_chunks(encode, chunk) if chunk else encode

    def of_model(params: Params) -> Params:
        return params["model"] if copy else params

    def init(key: PRNGKeyArray) -> Params:
        if not copy:
            return model.init(key)
        keys = jax.random.split(key)
        shape = model.width, model.width
        own = nn.initializers.normal(model.width**-0.5)(keys[1], shape)
        # It begins by going on: with what follows tokens like those just written.
        return {
            "model": model.init(keys[0]),
            "copy": jnp.stack([own, jnp.eye(model.width)]),
            "matches": jnp.arange(LONGEST_MATCH + 1, dtype=jnp.float32),
        }

    def read(
        params: Params,
        ids: Int[Array, "B K T"],
        mask: Shaped[Array, "B K T"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Memory:
        batch, number, length = ids.shape
        # An encoder is not asked to attend to nothing: an absent passage has one token
        # while it is encoded, which the decoder does not see.
        first = jnp.arange(length) == 0
        seen = mask.astype(bool) | (first[None, None] & ~mask.any(-1, keepdims=True))
        rows = {
            "ids": ids.reshape(batch * number, length),
            "mask": seen.reshape(batch * number, length).astype(jnp.int32),
        }
        states = encode(of_model(params), rows, key=key)
        kept = min(vectors or length, length)
        states = states.reshape(batch, number, length, -1)[:, :, :kept]
        fused = number * kept
        return Memory(
            states.reshape(batch, fused, -1),
            mask[:, :, :kept].reshape(batch, fused).astype(jnp.int32),
            ids[:, :, :kept].reshape(batch, fused),
            jnp.arange(fused) % kept == 0,
        )

    def copy_scores(
        params,
        hidden: Float[Array, "B L D"],
        memory: Memory,
        matches: Int32[Array, "B L M"],
    ):
        """c_j = o (W h_j + U h_{j-1}) / sqrt(D) + b_{m_j}: a token is also known by the
        one before it and by how many before it were just written, so that to go on
        copying asks for no layer of its own."""
        asked = jnp.einsum("bld,kde->kble", hidden, params["copy"].astype(hidden.dtype))
        own, next_one = jnp.einsum(
            "kbld,bmd->kblm", asked, memory.states, preferred_element_type=jnp.float32
        )
        before = jnp.pad(next_one[..., :-1], ((0, 0), (0, 0), (1, 0)))
        before = jnp.where(memory.first[None, None], 0.0, before)
        matches = jnp.minimum(matches, LONGEST_MATCH)
        # Not an index, whose gradient would add all that was scored into nine places.
        told = params["matches"]
        longest = sum(told[n] * (matches == n) for n in range(LONGEST_MATCH + 1))
        return (own + before) * model.width**-0.5 + longest

    def matched(memory: Memory, targets: Int[Array, "B L"]):
        return copying.match_lengths(memory.tokens, memory.first, targets)

    def decode(params, memory, targets, key, attention=False):
        inputs = shift_right(targets, model.start_id)
        return model.decode(
            of_model(params),
            inputs,
            memory.states,
            memory.mask,
            key=key,
            attention=attention,
        )

    def nll(
        params: Params,
        memory: Memory,
        targets: Int[Array, "B L"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float32[jax.Array, "B L"]:
        hidden = decode(params, memory, targets, key).hidden
        logits = model.logits(of_model(params), hidden)
        log_normaliser = jax.nn.logsumexp(logits, axis=-1)
        target_score = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        if not copy:
            return log_normaliser - target_score
        scores = copy_scores(params, hidden, memory, matched(memory, targets))
        sums = copying.log_sums(scores, memory.tokens, memory.mask, targets)
        return losses.joint_nll(target_score, log_normaliser, sums)

    def distributions(params, hidden, memory, matches):
        logits = model.logits(of_model(params), hidden)
        if not copy:
            return jax.nn.log_softmax(logits)
        scores = copy_scores(params, hidden, memory, matches)
        return copying.log_distributions(logits, scores, memory.tokens, memory.mask)

    def log_probs(
        params: Params, memory: Memory, targets: Int[Array, "B L"]
    ) -> Float32[jax.Array, "B L V"]:
        hidden = decode(params, memory, targets, None).hidden
        matches = matched(memory, targets) if copy else None
        return distributions(params, hidden, memory, matches)

    def attention(
        params: Params, memory: Memory, targets: Int[Array, "B L"]
    ) -> CrossAttention:
        told = decode(params, memory, targets, None, attention=True).attention
        assert told is not None
        return told

    def start(params: Params, memory: Memory, length: int) -> DecodingCache:
        cache = model.start(of_model(params), memory.states, memory.mask, length)
        matches = jnp.zeros(memory.tokens.shape, jnp.int32) if copy else None
        return cache._replace(
            memory=(cache.memory, memory), slots=(cache.slots, matches)
        )

    def predict(
        params: Params, tokens: Int[Array, " R"], cache: DecodingCache
    ) -> tuple[Float32[jax.Array, "R V"], DecodingCache]:
        (inner, memory), (slots, matches), length = cache
        hidden, cache = model.extend(
            of_model(params), tokens, cache._replace(memory=inner, slots=slots)
        )
        # The sequences of a question read its one memory.
        questions, size = memory.tokens.shape
        of_question = None
        if copy:
            source = jnp.repeat(memory.tokens, len(tokens) // questions, axis=0)
            after = copying.matches_after(matches, source, memory.first, tokens)
            matches = jnp.where(length == 0, 0, after)  # the first is the start's id
            of_question = matches.reshape(questions, -1, size)
        hidden = hidden.reshape(questions, -1, model.width)
        log_p = distributions(params, hidden, memory, of_question)
        cache = cache._replace(memory=(inner, memory), slots=(cache.slots, matches))
        return log_p.reshape(len(tokens), -1), cache

    return Reader(init, read, nll, log_probs, attention, start, predict, model)


def looked_at(
    attention: CrossAttention, mask: Shaped[Array, "B M"]
) -> Float32[jax.Array, "B L M"]:
    """The share of each vector in what each target was written from.

    The softmax of the cross-attention, averaged over layers and heads; zeros where
    there is nothing to look at.
    """
    there = (mask > 0)[None, :, None, None]
    scores = jnp.where(there, attention.scores, -jnp.inf)
    largest = scores.max(-1, keepdims=True)
    weight = jnp.exp(scores - jnp.where(jnp.isfinite(largest), largest, 0.0))
    share = weight / jnp.maximum(weight.sum(-1, keepdims=True), 1e-30)
    return share.mean((0, 2))
