"""Log-probabilities of a few tokens of each row; no others meet the vocabulary."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float32, Int

from rlm_jax.models.decoder import Decoder, DecoderConfig, check, check_length
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
        scores: Any = decoder.apply(
            {"params": params}, tokens, targets, start, method=score_from
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
    at = start[:, None] + jnp.arange(targets.shape[1])
    features = jnp.take_along_axis(features, at[..., None], axis=1)
    return decoder.vocabulary.scores(features, targets)
