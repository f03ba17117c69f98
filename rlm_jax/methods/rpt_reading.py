"""RPT reads a document window by window, in the memory of one.

Each window goes on from the `RptState` that the one before left, and retrieves from the
last M chunks. The numbers are those of `methods.rpt` over a row, as far as the row's
chunks are in reach.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int, Int32

from rlm_jax.method import Batch, Params
from rlm_jax.methods.rpt import RPTConfig, chooser, model_sizes
from rlm_jax.models.generation import Sampling, draw
from rlm_jax.models.rpt import Rpt, RptState, empty_state
from rlm_jax.ops import self_retrieval


class Window(NamedTuple):
    """What a window of a document was given, and how likely its targets are."""

    log_probs: Float32[jax.Array, "B W"]
    scores: Float32[jax.Array, "B C P"]  # of the pool, minus infinity where hidden
    neighbours: Int[jax.Array, "B C K"]  # chunks back; 0 = none


class Reader(NamedTuple):
    """Documents window by window; a document's length costs no memory."""

    empty: Callable[[int], RptState]
    """``empty(B)`` -> the state before the first windows."""
    read: Callable[..., tuple[Window, RptState]]
    """``read(params, batch, state)``: tokens and targets int32 [B, W] and, to be given
    them, neighbours int32 [B, C, K]; jitted, the state is donated."""
    predict: Callable[..., tuple[jax.Array, jax.Array, RptState]]
    """``predict(params, tokens, last, state)`` -> (log p of what follows position
    ``last`` of the window, float32 [B, V]; neighbours; the window's end); jitted."""


def reader(config: RPTConfig, memory: int) -> Reader:
    """The functions that read documents with the last ``memory`` chunks in reach."""
    sizes = model_sizes(config)
    model = Rpt(config.decoder, sizes)

    def empty(batch: int) -> RptState:
        return empty_state(config.decoder, sizes, batch, memory)

    def read(params: Params, batch: Batch, state: RptState):
        scores, reading = model.apply(
            {"params": params},
            batch["tokens"],
            batch["targets"],
            chooser(config, batch),
            state,
            method="score",
        )
        target_score, log_normaliser = scores
        return (
            Window(
                target_score - log_normaliser,
                jnp.where(reading.visible, reading.scores, -jnp.inf),
                self_retrieval.to_distances(reading.chosen, reading.scores.shape[-1]),
            ),
            reading.state,
        )

    def predict(params: Params, tokens, last, state: RptState):
        log_probs, reading = model.apply(
            {"params": params},
            tokens,
            last,
            chooser(config, {}),
            state,
            method="predict",
        )
        pool = reading.scores.shape[-1]
        given = self_retrieval.to_distances(reading.chosen, pool)
        return log_probs, given, reading.state

    return Reader(empty, jax.jit(read, donate_argnums=2), jax.jit(predict))


def continued(
    config: RPTConfig,
    memory: int,
    params: Params,
    tokens: Int32[np.ndarray, " T"],
    key: jax.Array,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    end_ids: tuple[int, ...] = (),
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Continues a text of any length.

    Whole windows are read once and leave their state; the running one is read again for
    each new token, by the same compiled function.

    Args:
      config: of the model.
      memory: chunks in reach.
      params: the model's.
      tokens: the text.
      key: from which tokens are drawn.
      max_new_tokens: how many, at most.
      sampling: how.
      end_ids: tokens that end the continuation.

    Returns:
      (all tokens, int32; number of a full chunk -> what it retrieved, int32 [K] chunks
      back, 0 = none).
    """
    functions = reader(config, memory)
    m, window = config.chunk_length, config.decoder.attention_window
    sample = jax.jit(functools.partial(draw, sampling=sampling))
    text, state, read = list(tokens.tolist()), functions.empty(1), 0
    retrieved: dict[int, np.ndarray] = {}

    def predict(last):
        row = np.zeros((1, window), np.int32)
        row[0, : last + 1] = text[read : read + last + 1]
        log_probs, given, after = functions.predict(params, row, np.int32(last), state)
        for chunk in range((last + 1) // m):
            retrieved[read // m + chunk] = np.asarray(given)[0, chunk]
        return log_probs, after

    for _ in range(max_new_tokens):
        while len(text) - read > window:  # a window that is over
            _, state = predict(window - 1)
            read += window
        log_probs, _ = predict(len(text) - read - 1)
        keys = jax.random.fold_in(key, len(text))[None]
        text.append(int(np.asarray(sample(keys, log_probs))[0]))
        if text[-1] in end_ids:
            break
    return np.array(text, np.int32), retrieved
