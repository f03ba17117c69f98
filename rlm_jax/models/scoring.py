"""Log-probabilities of a few tokens of each row; no others meet the vocabulary.

Rows that begin with the same tokens, as with the same document, can be taken apart:
the keys and values of what they share are computed once (`shared_prefixes`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int, Int32

from rlm_jax.models.decoder import (
    Decoder,
    DecoderConfig,
    check,
    check_length,
    empty_cache,
)
from rlm_jax.models.generation import with_room
from rlm_jax.ops import Array


def last_log_probs(config: DecoderConfig):
    """The jitted ``log_probs(params, tokens, lengths, last)``.

        log p(x_t | x_{<t}),  t = length - last, ..., length - 1

    Arguments of the function:
      tokens: int32 [B, T], rows from the left; what follows a row's length is ignored.
      lengths: int32 [B], the tokens of each row, more than ``last``.
      last: how many; static.

    It returns float32 [B, last], nats. Where positions are learned, a row longer than
    ``max_length`` raises UserError.
    """
    check(config)
    decoder = Decoder(config)

    @partial(jax.jit, static_argnames="last")
    def log_probs(
        params: Any, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], last: int
    ) -> Float32[jax.Array, "B {last}"]:
        check_length(config, tokens.shape[1], "the number of tokens of a row")
        start = lengths - last - 1
        at = start[:, None] + 1 + jnp.arange(last)
        targets = jnp.take_along_axis(tokens, at, axis=1)

        def features(some):
            output: Any = decoder.apply({"params": params}, some)
            return output.features

        inputs = tokens[:, :-1]  # the last of the longest row is a target alone
        scores: Any = decoder.apply(
            {"params": params},
            in_groups(features, inputs),
            targets,
            start,
            method=score_features,
        )
        target_score, log_normaliser = scores
        return target_score - log_normaliser

    return log_probs


def score_from(
    decoder: Decoder,
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B N"],
    start: Int[Array, " B"],
    *,
    deterministic: bool = True,
) -> tuple[Float32[jax.Array, "B N"], Float32[jax.Array, "B N"]]:
    """(target_score, log_normaliser) of N targets of each row.

    For ``decoder.apply(..., method=score_from)``: ``targets`` follow the inputs at
    ``start``, ``start`` + 1, and so on, of ``tokens``.
    """
    features = decoder(tokens, deterministic=deterministic).features
    return score_features(decoder, features, targets, start)


def score_features(
    decoder: Decoder,
    features: Float[Array, "B T D"],
    targets: Int[Array, "B N"],
    start: Int[Array, " B"],
) -> tuple[Float32[jax.Array, "B N"], Float32[jax.Array, "B N"]]:
    """`score_from` where the features of the tokens are there."""
    at = start[:, None] + jnp.arange(targets.shape[1])
    features = jnp.take_along_axis(features, at[..., None], axis=1)
    return decoder.vocabulary.scores(features, targets)


def in_groups(
    features: Callable[[Int[Array, "b T"]], Float[jax.Array, "b T D"]],
    tokens: Int[Array, "B T"],
) -> Float[jax.Array, "B T D"]:
    """``features(tokens)``; on a CPU few rows at a time, whose states stay in cache."""
    batch, length = tokens.shape
    rows = min(batch, max(1, GROUP // length))
    while batch % rows:
        rows -= 1
    if jax.default_backend() != "cpu" or rows == batch:
        return features(tokens)
    groups = jax.lax.map(features, tokens.reshape(-1, rows, length))
    return groups.reshape(batch, length, -1)


GROUP = 512
"""Tokens that `in_groups` takes at a time."""

STEP = 32
"""Shared prefixes are a multiple of so many tokens, so that few shapes are compiled."""


class Shared(NamedTuple):
    """Rows of tokens taken apart into what some have in common and what follows it."""

    prefixes: Int[np.ndarray, "U P"]  # all of one length, without padding
    which: Int32[np.ndarray, " B"]  # the prefix of each row
    rests: Int[np.ndarray, "B S"]
    lengths: Int32[np.ndarray, " B"]  # of the rests


def shared_prefixes(
    tokens: Int[np.ndarray, "B T"], lengths: Int[np.ndarray, " B"], last: int
) -> Shared | None:
    """The rows taken apart where that saves most; None where it saves under a tenth.

    A row without any other that begins like it costs the same as before. Prefixes are
    repeated to a whole quarter of the rows, which limits the shapes as well.

    Args:
      tokens, lengths, last: as of `last_log_probs`.
    """
    num, width = tokens.shape
    quarter = -(-num // 4)
    best, cost = None, 0.9 * num * width
    for size in range(STEP, int(lengths.min()) - last, STEP):
        found, which = np.unique(tokens[:, :size], axis=0, return_inverse=True)
        count = -(-len(found) // quarter) * quarter
        spent = count * size + num * (width - size)
        if spent < cost:
            best, cost = (found, which.reshape(-1), count), spent
    if best is None:
        return None
    found, which, count = best
    size = found.shape[1]
    return Shared(
        np.resize(found, (count, size)),
        which.astype(np.int32),
        tokens[:, size:],
        (lengths - size).astype(np.int32),
    )


def shared_log_probs(config: DecoderConfig):
    """The jitted ``log_probs(params, *Shared, last)``: `last_log_probs` of such rows.

    Attention is over the same tokens at the same positions, so the result is equal but
    for rounding.
    """
    check(config)
    decoder = Decoder(config)

    @partial(jax.jit, static_argnames="last")
    def log_probs(
        params: Any,
        prefixes: Int[Array, "U P"],
        which: Int[Array, " B"],
        rests: Int[Array, "B S"],
        lengths: Int[Array, " B"],
        last: int,
    ) -> Float32[jax.Array, "B {last}"]:
        length = prefixes.shape[1] + rests.shape[1]
        check_length(config, length, "the number of tokens of a row")
        start = lengths - last - 1
        at = start[:, None] + jnp.arange(last)
        targets = jnp.take_along_axis(rests, at + 1, axis=1)
        mask = jnp.arange(rests.shape[1]) < lengths[:, None]

        def run(decoder):
            cache = empty_cache(config, *prefixes.shape)
            _, cache = decoder.extend(prefixes, jnp.ones_like(prefixes), cache)
            rows = jax.tree.map(lambda x: x[which] if x.ndim else x, cache)
            output, _ = decoder.extend(rests, mask, with_room(rows, rests.shape[1]))
            features = jnp.take_along_axis(output.features, at[..., None], axis=1)
            return decoder.vocabulary.scores(features, targets)

        scores: Any = decoder.apply({"params": params}, method=run)
        target_score, log_normaliser = scores
        return target_score - log_normaliser

    return log_probs
