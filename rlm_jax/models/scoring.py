"""Log-probabilities of the last tokens of rows, which alone meet the vocabulary."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rlm_jax.errors import UserError
from rlm_jax.models.decoder import Decoder, DecoderConfig, check


def last_log_probs(config: DecoderConfig):
    """The jitted ``log_probs(params, tokens, lengths, last)``.

        log p(x_t | x_{<t}),  t = length - last, ..., length - 1

    Arguments of the function:
      tokens: int32 [B, T], rows from the left; what follows a row's length is ignored.
      lengths: int32 [B], tokens of each row, more than ``last``.
      last: how many; static.

    It returns float32 [B, last], nats. Where positions are learned, a row longer than
    ``max_length`` raises UserError.
    """
    check(config)
    decoder = Decoder(config)

    @partial(jax.jit, static_argnames="last")
    def log_probs(params: Any, tokens, lengths, last: int) -> jax.Array:
        def score(module):
            at = lengths[:, None] - last + jnp.arange(last)
            features = module(tokens).features
            context = jnp.take_along_axis(features, at[..., None] - 1, axis=1)
            targets = jnp.take_along_axis(tokens, at, axis=1)
            target_score, log_normaliser = module.vocabulary.scores(context, targets)
            return target_score - log_normaliser

        if config.positions == "learned" and tokens.shape[1] > config.max_length:
            raise UserError(
                f"Rows of {tokens.shape[1]} tokens go past max_length, "
                f"{config.max_length}, where learned positions end; make the window or "
                "the documents shorter."
            )
        scored: Any = decoder.apply({"params": params}, method=score)
        return scored

    return log_probs
