"""Continuations of prompts by a decoder with a key-value cache.

The prompt fills the cache in one pass; then each step of one compiled loop draws a
token and extends the cache by it, in place.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int, Int32, Key, PRNGKeyArray

from rlm_jax.errors import UserError
from rlm_jax.models.decoder import Cache, Decoder, DecoderConfig, check, empty_cache
from rlm_jax.ops import Array

Params = Any


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the next-token distribution.

    First the ``top_k`` most likely tokens are kept, then the fewest of these whose
    probabilities, at the temperature, add up to ``top_p`` (the nucleus of Holtzman et
    al. 2020); the rest have none.
    """

    temperature: float = 1.0  # 0: the most likely token
    top_k: int = 0  # 0: all
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0:
            raise UserError(
                f"temperature is {self.temperature}; choose 0 for the most likely "
                "token, or more."
            )
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; choose a number, or 0 for all.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; choose it in (0, 1].")


GREEDY = Sampling(temperature=0.0)


class Generated(NamedTuple):
    """Continuations, in rows of one length."""

    tokens: Int32[jax.Array, "B N"]  # after a row's end its last token again
    lengths: Int32[jax.Array, " B"]  # the end-of-text token counted
    log_probs: Float32[jax.Array, "B N"]  # log p of each token by the model


class Generator(NamedTuple):
    """A decoder with a cache, as pure functions of its parameters.

    A `Cache` is a value: one that is kept can be extended again and in another way. A
    caller that does not need it any more donates it to the jitted ``extend``, ``score``
    or ``predict``, which saves a copy.
    """

    empty: Callable[[int, int], Cache]
    """``empty(B, S)`` -> a cache of S slots."""
    extend: Callable[..., Any]
    """``extend(params, tokens [B, T], mask [B, T], cache)`` -> (DecoderOutput, cache);
    see `Decoder.extend`."""
    score: Callable[..., Any]
    """``score(params, tokens, targets, mask, cache)`` -> ((target_score,
    log_normaliser, keys), cache)."""
    predict: Callable[..., Any]
    """``predict(params, tokens, mask, cache)`` -> (log p of the token after each row's
    last, float32 [B, V]; cache)."""
    tell: Callable[..., Any]
    """``tell(params, tokens, mask, cache)``: `predict`, with the log-normaliser of the
    scores and the keys of all tokens, by which a memory is asked; see
    `Decoder.extend_and_tell`."""
    decode: Callable[..., Generated]
    """``decode(params, cache, log_probs, key, *, max_new_tokens, sampling, end_ids,
    log_weights)`` -> what follows the cache; ``log_probs`` as `predict` gives them."""
    generate: Callable[..., Generated]
    """``generate(params, tokens, mask, key, ...)``: `predict`, then `decode`."""


def generator(config: DecoderConfig) -> Generator:
    """The functions that continue texts; `decode` and `generate` are jitted.

    Options of both:
      max_new_tokens: N.
      sampling: a `Sampling`; `GREEDY` takes the most likely token.
      end_ids: tokens that end a row.
      log_weights: float32 [B / k, k], or None. With it each k rows that stand together
        continue one text, as REPLUG's documents do: every token is drawn from
        log sum_i exp(log_weights_i + log p_i) and goes to all k. The result has B / k
        rows.

    What a row becomes depends on its prompt, its number and the key, never on other
    rows, nor on where its padding stands.

    Raises:
      UserError: sizes do not fit together, or a continuation would run past learned
        positions.
    """
    check(config)
    decoder = Decoder(config)

    def method(name):
        def call(params, *args):
            return decoder.apply({"params": params}, *args, method=name)

        return call

    predict: Any = method("extend_and_predict")
    empty = partial(empty_cache, config)

    def decode(
        params,
        cache,
        log_probs,
        key,
        *,
        max_new_tokens,
        sampling=Sampling(),
        end_ids=(),
        log_weights=None,
    ):
        first = _mixed(log_probs, log_weights)
        copies = len(log_probs) // len(first)

        def read(token, cache):
            ids = jnp.repeat(token, copies)[:, None]
            log_probs, cache = predict(params, ids, jnp.ones_like(ids), cache)
            return _mixed(log_probs, log_weights), cache

        return continued(
            read,
            first,
            with_room(cache, max_new_tokens),
            key,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            end_ids=end_ids,
        )

    def generate(params, tokens, mask, key, *, max_new_tokens, **options):
        _require_positions(config, tokens.shape[1], max_new_tokens)
        cache = empty(*tokens.shape)
        log_probs, cache = predict(params, tokens, mask, cache)
        return decode(
            params, cache, log_probs, key, max_new_tokens=max_new_tokens, **options
        )

    static = ("max_new_tokens", "sampling", "end_ids")
    return Generator(
        empty=empty,
        extend=method("extend"),
        score=method("extend_and_score"),
        predict=predict,
        tell=method("extend_and_tell"),
        decode=jax.jit(decode, static_argnames=static),
        generate=jax.jit(generate, static_argnames=static),
    )


def continued(
    read: Callable[[Array, Any], tuple[Array, Any]],
    log_probs: Float32[Array, "B V"],
    cache: Any,
    key: PRNGKeyArray,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    end_ids: Sequence[int],
) -> Generated:
    """The loop of every model with a cache: draw a token, read it.

    Args:
      read: (tokens int32 [B], cache) -> (log p of what follows them, float32 [B, V];
        cache).
      log_probs: of the first tokens.
      cache: in which there is room for all of them but the last.
      key: folded with each row's number, so that a row does not depend on others.
      max_new_tokens, sampling, end_ids: as of `generator`.
    """
    batch = len(log_probs)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(batch))
    choose = partial(_choose, keys=keys, sampling=sampling, end_ids=end_ids)

    def one_step(state):
        generation, cache = state
        log_probs, cache = read(generation.token, cache)
        return choose(generation, log_probs), cache

    def goes_on(state):
        generation, _ = state
        return (generation.step < max_new_tokens) & ~generation.done.all()

    # The first token is drawn before the loop, so that the last is not read.
    start = choose(_blank(batch, max_new_tokens), log_probs)
    return jax.lax.while_loop(goes_on, one_step, (start, cache))[0].generated


def with_room(cache: Cache, more: int) -> Cache:
    """The cache with ``more`` slots at its end."""
    widths = ((0, 0), (0, 0), (0, more), (0, 0))
    return cache._replace(
        layers=jax.tree.map(lambda x: jnp.pad(x, widths), cache.layers),
        valid=jnp.pad(cache.valid, ((0, 0), (0, more))),
    )


def rewind(cache: Cache, length: int | Int[Array, ""]) -> Cache:
    """The cache as it was when ``length`` of its slots were used."""
    kept = jnp.arange(cache.valid.shape[1]) < length
    return cache._replace(
        valid=cache.valid & kept, length=jnp.asarray(length, jnp.int32)
    )


def draw(
    keys: Key[Array, " B"], log_probs: Float[Array, "B V"], sampling: Sampling
) -> Int32[jax.Array, " B"]:
    """A token of each row's distribution.

    Args:
      keys: one a row.
      log_probs: float32.
      sampling: of equally likely tokens at the edge of ``top_k`` or ``top_p`` the
        lower ids stay.
    """
    if sampling.temperature == 0:
        # On a CPU argmax takes several times as long.
        return jax.lax.top_k(log_probs, 1)[1][:, 0]
    categorical = jax.vmap(jax.random.categorical)
    logits = log_probs / sampling.temperature
    size = logits.shape[-1]
    if sampling.top_p == 1 and sampling.top_k in (0, size):
        return categorical(keys, logits).astype(jnp.int32)
    kept, ids = jax.lax.top_k(logits, min(sampling.top_k or size, size))
    if sampling.top_p < 1:
        p = jax.nn.softmax(kept)
        above = jnp.cumsum(p, axis=-1) - p
        kept = jnp.where(above < sampling.top_p, kept, -jnp.inf)
    place = categorical(keys, kept)
    return jnp.take_along_axis(ids, place[:, None], axis=-1)[:, 0]


class _Generation(NamedTuple):
    """Where the loop stands."""

    step: Int32[jax.Array, ""]
    token: Int32[jax.Array, " B"]  # the last one
    done: Bool[jax.Array, " B"]
    generated: Generated


def _blank(batch: int, max_new_tokens: int) -> _Generation:
    zeros = jnp.zeros(batch, jnp.int32)
    shape = (batch, max_new_tokens)
    return _Generation(
        jnp.zeros((), jnp.int32),
        zeros,
        zeros > 0,
        Generated(jnp.zeros(shape, jnp.int32), zeros, jnp.zeros(shape, jnp.float32)),
    )


def _choose(state: _Generation, log_probs, *, keys, sampling, end_ids) -> _Generation:
    """The next token of the rows that go on; the others' last one again."""
    step, token, done, generated = state
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    token = jnp.where(done, token, draw(step_keys, log_probs, sampling))
    log_p = jnp.take_along_axis(log_probs, token[:, None], axis=1)
    column = (0, step)
    generated = Generated(
        jax.lax.dynamic_update_slice(generated.tokens, token[:, None], column),
        generated.lengths + ~done,
        jax.lax.dynamic_update_slice(
            generated.log_probs, jnp.where(done[:, None], 0, log_p), column
        ),
    )
    ends = jnp.asarray(end_ids, jnp.int32)
    done = done | (token[:, None] == ends).any(axis=1)
    return _Generation(step + 1, token, done, generated)


def _mixed(log_probs, log_weights):
    """log sum_i exp(log_weights_i + log p_i) over the rows of a prompt, [B / k, V]."""
    if log_weights is None:
        return log_probs
    each = log_probs.reshape(*log_weights.shape, -1)
    return jax.nn.logsumexp(each + log_weights[..., None], axis=1)


def _require_positions(config: DecoderConfig, length: int, more: int) -> None:
    if config.positions == "learned" and length + more > config.max_length:
        raise UserError(
            f"Prompts of {length} tokens, padding counted, and {more} new ones go past "
            f"max_length, {config.max_length}, where learned positions end; shorten "
            "the prompts or ask for fewer."
        )
