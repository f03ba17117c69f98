"""Scores of every token of a stream under a sliding window, and what they add up to.

The stream of N tokens has N - 1 predictions; prediction i has token i as its last input
and token i + 1 as its target. Windows of ``window`` inputs advance by ``stride``: each
prediction is made once, with at least ``window - stride`` tokens of left context as soon
as the stream has them.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from rlm_jax.errors import UserError


class StreamScores(NamedTuple):
    """`method.TokenScores` of consecutive predictions, on the host, with their targets."""

    target_score: np.ndarray  # float32 [N]
    log_normaliser: np.ndarray  # float32 [N]
    keys: np.ndarray  # float32 [N, D]
    targets: np.ndarray  # int32 [N]

    @property
    def log_probs(self) -> np.ndarray:
        """Without any memory, float32 [N], nats."""
        return self.target_score - self.log_normaliser


class Windows(NamedTuple):
    """Where the windows of a stream lie, and which of their predictions are fresh."""

    start: np.ndarray  # int64 [W], first input
    offset: np.ndarray  # int32 [W], first fresh prediction, counted from the start
    window: int
    stride: int
    num_predictions: int


def windows(num_tokens: int, *, window: int, stride: int) -> Windows:
    """Windows whose fresh predictions tile a stream.

    Raises:
      UserError: the stream is empty, or not 1 <= stride <= window.
    """
    if num_tokens < 2:
        raise UserError(
            f"the stream to evaluate has {num_tokens} tokens; give at least 2."
        )
    if not 1 <= stride <= window:
        raise UserError(
            f"stride {stride} and window {window}: choose 1 <= stride <= window."
        )
    fresh = np.arange(0, num_tokens - 1, stride, dtype=np.int64)
    start = np.maximum(0, fresh + stride - window)
    offset = (fresh - start).astype(np.int32)
    return Windows(start, offset, window, stride, num_tokens - 1)


def window_batch(tokens: np.ndarray, spec: Windows, rows: np.ndarray):
    """The language-model batch of some windows; beyond the stream the mask is 0."""
    at = spec.start[rows, None] + np.arange(spec.window + 1)
    inside = at < len(tokens)
    ids = np.where(inside, tokens[np.minimum(at, len(tokens) - 1)], 0).astype(np.int32)
    number = np.arange(len(rows), dtype=np.int32)
    return {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "mask": inside[:, 1:].astype(np.float32),
        "segment": number,
        "group": number,
    }


def encode_stream(
    encode: Callable[[Any, Any], Any],
    params,
    tokens: np.ndarray,
    *,
    window: int,
    stride: int,
    batch_size: int,
    first: int = 0,
    wrap: Callable[[Iterator], Iterator] = iter,
) -> Iterator[Any]:
    """Run ``encode(params, batch)`` over a stream; yield its fresh rows in stream order.

    Memory stays bounded by two batches: one computes while the last one is consumed.

    Args:
      encode: returns a pytree of arrays [B, window, ...] (a method's ``score``, or the
        ``encode_keys`` of its retrieval).
      tokens: int [N], may be memory-mapped.
      window, stride: in tokens.
      batch_size: windows at a time; one compilation serves all.
      first: prediction to start from, a multiple of the stride (to resume).
      wrap: what to put around the batches' iterator, such as a progress bar.

    Yields:
      The pytree in NumPy, [n, ...], n predictions on from the last; always in order.
    """
    spec = windows(len(tokens), window=window, stride=stride)
    if first % stride:
        raise ValueError(f"first={first} is not a multiple of the stride {stride}")

    @jax.jit
    def fresh(params, batch, offset):
        return jax.tree.map(
            lambda x: jax.vmap(
                lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, stride)
            )(x, offset),
            encode(params, batch),
        )

    def fetch(pending):
        out, count = pending
        return jax.tree.map(
            lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[:count], out
        )

    rows = np.arange(first // stride, len(spec.start))
    pending = None
    for i in wrap(range(0, len(rows), batch_size)):
        some = rows[i : i + batch_size]
        # The last batch repeats a window to keep its shape.
        padded = np.resize(some, batch_size)
        out = fresh(params, window_batch(tokens, spec, padded), spec.offset[padded])
        end = min(int(some[-1] + 1) * stride, spec.num_predictions)
        if pending is not None:
            yield fetch(pending)
        pending = out, end - int(some[0]) * stride
    if pending is not None:
        yield fetch(pending)


def score_stream(score, params, tokens: np.ndarray, **options) -> StreamScores:
    """All of a stream's scores, collected; options as for `encode_stream`."""
    parts = list(encode_stream(score, params, tokens, **options))
    joined = [np.concatenate(x) for x in zip(*parts, strict=True)]
    return StreamScores(*joined, targets=np.asarray(tokens[1:], np.int32))


def text_metrics(
    log_probs: np.ndarray, *, num_words: int, num_bytes: int
) -> dict[str, float]:
    """What the log-probabilities of a text's tokens add up to.

    perplexity = exp(-sum / tokens), word_perplexity = exp(-sum / words) and bits_per_byte
    = -sum / (bytes ln 2), summed in float64. Words are whitespace-separated, bytes those
    of the original UTF-8.

    Args:
      log_probs: float32 [N], nats; every token of the text but the first.
      num_words, num_bytes: of the whole text.
    """
    nll = -float(np.sum(log_probs, dtype=np.float64))
    return {
        "perplexity": float(np.exp(nll / len(log_probs))),
        "word_perplexity": float(np.exp(min(nll / max(num_words, 1), 700.0))),
        "bits_per_byte": nll / (num_bytes * np.log(2)),
    }
