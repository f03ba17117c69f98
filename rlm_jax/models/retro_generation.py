"""Continuations of prompts by RETRO, which retrieves as chunks are completed.

The host goes from token to token, since it searches in between: a chunk that a new
token completes gets its neighbours before that token is read.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.models.decoder import DecoderConfig
from rlm_jax.models.generation import Generated, Sampling, draw
from rlm_jax.models.neighbours import NeighbourEncoderConfig
from rlm_jax.models.retro import Retro, RetroCache, check, empty_cache

Retrieve = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray] | None]
"""Tokens so far, int32 [B, (u+1) m] -> (neighbours int32 [B, K, r], mask [B, K, r]) of
their last chunk, or None for none."""

_PLAIN = Sampling()


class RetroGenerator(NamedTuple):
    """RETRO with a cache, as functions of its parameters."""

    empty: Callable[[int, int, int, int], RetroCache]
    """``empty(B, S, K, r)`` -> a cache of S slots for K neighbours of r tokens."""
    predict: Callable[..., Any]
    """``predict(params, tokens, mask, cache[, neighbours, neighbour_mask])`` -> (log p
    of the token after the last, float32 [B, V]; cache), jitted; see `Retro.extend`."""
    generate: Callable[..., Generated]
    """``generate(params, tokens, retrieve, key, *, neighbours_shape, max_new_tokens,
    sampling, end_ids)`` -> what follows the tokens."""


def retro_generator(
    config: DecoderConfig,
    encoder: NeighbourEncoderConfig,
    chunk_length: int,
    cross_layers: tuple[int, ...],
) -> RetroGenerator:
    """The functions that continue texts.

    Arguments of ``generate``:
      tokens: int32 [B, P], prompts of one length, without padding.
      retrieve: a `Retrieve`, called once for each chunk of the prompts and of what is
        generated; None: retrieval off.
      neighbours_shape: (K, r), of what ``retrieve`` gives.
      max_new_tokens, sampling, end_ids: as of `generation.generator`.

    Raises:
      UserError: sizes do not fit together, a prompt is empty, or a continuation would
        run past learned positions.
    """
    sizes = config, encoder, chunk_length, cross_layers
    check(*sizes)
    model, m = Retro(*sizes), chunk_length

    def empty(batch, capacity, k, r):
        return empty_cache(*sizes, (batch, capacity, k, r))

    @partial(jax.jit, donate_argnums=3)
    def predict(params, tokens, mask, cache, *neighbours):
        args = tokens, mask, cache, *neighbours
        output = model.apply({"params": params}, *args, method="extend_and_predict")
        return cast(tuple[jax.Array, RetroCache], output)

    def generate(
        params,
        tokens,
        retrieve,
        key,
        *,
        neighbours_shape,
        max_new_tokens,
        sampling=_PLAIN,
        end_ids=(),
    ):
        text = np.asarray(tokens, np.int32)
        batch, prompt = text.shape
        total = prompt + max_new_tokens
        if not prompt:
            raise UserError("a prompt has no token; give it one or more.")
        if config.positions == "learned" and total > config.max_length:
            raise UserError(
                f"Prompts of {prompt} tokens and {max_new_tokens} new ones go past "
                f"max_length, {config.max_length}, where learned positions end; "
                "shorten either."
            )
        cache = empty(batch, total, *neighbours_shape)

        def read(start, stop, cache):
            """Tokens of one window, after the neighbours where it begins."""
            neighbours = None
            if retrieve is not None and start % m == m - 1:
                neighbours = retrieve(text[:, : start + 1])
            new = text[:, start:stop]
            return predict(params, new, np.ones_like(new), cache, *(neighbours or ()))

        log_probs = jnp.zeros(())
        for start, stop in _windows(prompt, m):
            log_probs, cache = read(start, stop, cache)
        row_keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(batch))
        done = np.zeros(batch, bool)
        lengths = np.zeros(batch, np.int32)
        given = np.zeros((batch, max_new_tokens), np.float32)
        for step in range(max_new_tokens):
            keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, step)
            drawn = np.asarray(draw(keys, log_probs, sampling))
            token = np.where(done, text[:, -1], drawn).astype(np.int32)
            log_p = np.asarray(log_probs)[np.arange(batch), token]
            given[:, step] = np.where(done, 0, log_p)
            lengths += ~done
            done |= np.isin(token, np.asarray(end_ids, np.int32))
            text = np.append(text, token[:, None], axis=1)
            if done.all():
                break
            if step + 1 < max_new_tokens:
                log_probs, cache = read(prompt + step, prompt + step + 1, cache)
        new = text[:, prompt:]
        missing = max_new_tokens - new.shape[1]
        new = np.pad(new, ((0, 0), (0, missing)), mode="edge")
        return Generated(jnp.asarray(new), jnp.asarray(lengths), jnp.asarray(given))

    return RetroGenerator(empty, predict, generate)


def _windows(length: int, m: int):
    """(start, stop) of the positions before the first window, then of each window."""
    edges = [0, *range(m - 1, length, m), length]
    return [(a, b) for a, b in zip(edges, edges[1:], strict=False) if a < b]
