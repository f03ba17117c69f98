"""Perplexity and bits per byte of a stream, from the scores of its every token."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np

from rlm_jax import processes
from rlm_jax.method import Batch, Batches, Method, Params, TokenScores
from rlm_jax.retrieval.encode_stream import encode_stream


class StreamScores(NamedTuple):
    """`method.TokenScores` of consecutive predictions, and their targets."""

    target_score: np.ndarray  # float32 [N]
    log_normaliser: np.ndarray  # float32 [N]
    keys: np.ndarray  # float32 [N, D]
    targets: np.ndarray  # int32 [N]

    @property
    def log_probs(self) -> np.ndarray:
        """Without any memory, float32 [N], nats."""
        return self.target_score - self.log_normaliser


def score_stream(
    score: Callable[[Params, Batch], TokenScores],
    params: Params,
    tokens: np.ndarray,
    **options,
) -> StreamScores:
    """All of a stream's scores, collected; options as for `encode_stream`."""
    parts = list(encode_stream(score, params, tokens, **options))
    joined = [np.concatenate(x) for x in zip(*parts, strict=True)]
    return StreamScores(*joined, targets=np.asarray(tokens[1:], np.int32))


class Scored(NamedTuple):
    """A split's tokens, scored, and the text's size in bytes and words."""

    stream: StreamScores
    tokens: np.ndarray
    num_bytes: int
    num_words: int

    def metrics(self, log_probs: np.ndarray) -> dict[str, float]:
        """`text_metrics` of the split, from float32 [N] in nats."""
        return text_metrics(
            log_probs, num_bytes=self.num_bytes, num_words=self.num_words
        )


def as_scored(
    tokens: np.ndarray, log_probs: np.ndarray, size: tuple[int, int]
) -> Scored:
    """A text of which log p alone is known, float32 [N - 1], as reports want it.

    ``size`` is its bytes and words.
    """
    targets = np.asarray(tokens[1:], np.int32)
    none = np.zeros_like(log_probs)
    keys = np.zeros((len(targets), 0), np.float32)
    stream = StreamScores(log_probs, none, keys, targets)
    return Scored(stream, tokens, *size)


def target_log_probs(method: Method) -> Callable[[Params, Batch], jax.Array]:
    """(params, batch) -> log p of the targets without any memory, float32 [B, T]."""
    score = method.score
    assert score is not None

    @jax.jit
    def log_probs(params: Params, batch: Batch) -> jax.Array:
        scores = score(params, batch)
        return scores.target_score - scores.log_normaliser

    return log_probs


def score_batches(
    log_probs: Callable[[Params, Batch], jax.Array],
    params: Params,
    batches: Batches,
    *,
    wrap: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> np.ndarray:
    """log p of every token of a text but the first, float32 [N - 1], nats.

    Args:
      log_probs: by `target_log_probs`; one for several texts compiles once.
      params: the model's.
      batches: the text's windows in their order, with the mask of what is scored.
      wrap: what to put around the batches' iterator, such as a progress bar.
    """
    params = processes.replicated(params)
    rows = []
    for i in wrap(range(batches.num_batches)):
        batch = batches.batch_at(0, i)
        values = np.asarray(log_probs(params, processes.spread(batch)))
        rows.append(values[batch["mask"] > 0])
    return np.concatenate(rows)


def text_metrics(
    log_probs: np.ndarray, *, num_words: int, num_bytes: int
) -> dict[str, float]:
    """What the log-probabilities of a text's tokens add up to.

    perplexity = exp(-sum / tokens), word_perplexity = exp(-sum / words) and
    bits_per_byte = -sum / (bytes ln 2), summed in float64. Words are
    whitespace-separated, bytes those of the original UTF-8.

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
