"""Continuations of prompts by a decoder with a key-value cache.

The prompt fills the cache in one pass; then each step of one compiled loop draws a
token and extends the cache by it, in place.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlm_jax.errors import UserError
from rlm_jax.models.decoder import Cache, Decoder, DecoderConfig, check, empty_cache

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

    tokens: jax.Array  # int32 [B, N]; after a row's end its last token again
    lengths: jax.Array  # int32 [B], the end-of-text token counted
    log_probs: jax.Array  # float32 [B, N], log p of each token by the model


class Generator(NamedTuple):
    """A decoder with a cache, as pure functions of its parameters.

    A `Cache` is a value: one that is kept can be extended again and in another way. Who
    has no further use for it donates it to the jitted ``extend``, ``score`` or
    ``predict`` and spares the copy.
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
    decode: Callable[..., Generated]
    """``decode(params, cache, log_probs, key, *, max_new_tokens, sampling, end_ids,
    log_weights)`` -> what follows the cache; ``log_probs`` as `predict` gives them."""
    generate: Callable[..., Generated]
    """``generate(params, tokens, mask, key, ...)``: `predict`, then `decode`."""


def generator(config: DecoderConfig) -> Generator:
    """The functions of a decoder that generate text; `decode` and `generate` are jitted.

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
        _require_room(config, cache.valid.shape[1], max_new_tokens)
        mixed = _mixed(log_probs, log_weights)
        batch, copies = len(mixed), len(log_probs) // len(mixed)
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(batch))
        cache = with_room(cache, max_new_tokens)
        ends = jnp.asarray(end_ids, jnp.int32)

        class State(NamedTuple):
            step: jax.Array
            done: jax.Array
            last: jax.Array
            log_probs: jax.Array
            cache: Cache
            generated: Generated

        def going_on(state):
            return (state.step < max_new_tokens) & ~state.done.all()

        def choose(state):
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state.step)
            drawn = draw(step_keys, state.log_probs, sampling)
            token = jnp.where(state.done, state.last, drawn)
            log_p = jnp.take_along_axis(state.log_probs, token[:, None], axis=1)
            old = state.generated
            new = Generated(
                jax.lax.dynamic_update_slice(
                    old.tokens, token[:, None], (0, state.step)
                ),
                old.lengths + ~state.done,
                jax.lax.dynamic_update_slice(
                    old.log_probs,
                    jnp.where(state.done[:, None], 0.0, log_p),
                    (0, state.step),
                ),
            )
            done = state.done | (token[:, None] == ends).any(axis=1)
            return token, done, new

        def one_step(state):
            token, done, generated = choose(state)
            ids = jnp.repeat(token, copies)[:, None]
            log_probs, cache = predict(params, ids, jnp.ones_like(ids), state.cache)
            return State(
                state.step + 1,
                done,
                token,
                _mixed(log_probs, log_weights),
                cache,
                generated,
            )

        blank = Generated(
            jnp.zeros((batch, max_new_tokens), jnp.int32),
            jnp.zeros(batch, jnp.int32),
            jnp.zeros((batch, max_new_tokens), jnp.float32),
        )
        done = jnp.zeros(batch, bool)
        zero = jnp.zeros((), jnp.int32)
        start = State(zero, done, jnp.zeros(batch, jnp.int32), mixed, cache, blank)
        return jax.lax.while_loop(going_on, one_step, start).generated

    def generate(params, tokens, mask, key, **options):
        cache = empty(*tokens.shape)
        log_probs, cache = predict(params, tokens, mask, cache)
        return decode(params, cache, log_probs, key, **options)

    static = ("max_new_tokens", "sampling", "end_ids")
    return Generator(
        empty=empty,
        extend=method("extend"),
        score=method("extend_and_score"),
        predict=predict,
        decode=jax.jit(decode, static_argnames=static),
        generate=jax.jit(generate, static_argnames=static),
    )
