"""In-context RALM: a language model reads a document before the text (Ram et al. 2023).

    p(x_1..x_n) = prod_i prod_j p(x_{s i + j} | [d_i; x_{< s i + j}])            (eq. 4)

The text goes in strides of s tokens. For stride i a retriever finds K documents by the
tokens before it, and d_i is the one that is chosen among them:

    first      the retriever's best
    reranked   argmax_k log p(the tokens before the stride | d_k)          (section 6.1)
    trained    argmax_k f(the tokens before the stride, d_k)               (section 6.2)
    oracle     argmax_k log p(the stride | d_k): a control, which has seen the answer

The language model is a black box, a `LogProbs`, and stays as it is. f is the trained
reranker, `rlm_jax.methods.reranker`; all else is arithmetic on log-probabilities.

Each function takes ``values``, float32 [S, K, n] in nats: log p of the ``rank_tokens``
before each of S strides, and of the s tokens of the stride itself, under each document;
n = rank_tokens + s. An absent document is NaN everywhere. A stride of fewer than s
tokens is aligned at the end, after NaN. ``rlm_jax.evaluate.in_context`` makes such
arrays.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Integer

LogProbs = Callable[[np.ndarray, np.ndarray, int], Any]
"""``log_probs(tokens, lengths, last)`` -> float32 [B, last]: log p, in nats, of the
``last`` tokens of each row given all before them. ``tokens`` is int32 [B, T], rows from
the left, of which ``lengths``, int32 [B], count; any Python function will do."""

Placement = Literal["overwrite", "prepend"]


def with_document(
    document: Integer[np.ndarray, " m"],
    window: Integer[np.ndarray, " w"],
    placement: Placement,
) -> Integer[np.ndarray, " n"]:
    """[d; x], what the language model reads.

    Args:
      document: its tokens.
      window: tokens of the text.
      placement: overwrite, where the document takes the place of the window's first
        tokens (as released), or prepend, where the window stays whole.
    """
    kept = window[len(document) :] if placement == "overwrite" else window
    return np.concatenate([document, kept])


def first(
    values: Float[np.ndarray, "S K n"], rank_tokens: int
) -> Float[np.ndarray, "S {values.shape[2]-rank_tokens}"]:
    """log p of each stride under the retriever's first document."""
    return values[:, 0, rank_tokens:]


def reranked(
    values: Float[np.ndarray, "S K n"], rank_tokens: int
) -> Float[np.ndarray, "S {values.shape[2]-rank_tokens}"]:
    """Under the document that makes the tokens before a stride most likely.

    Zero-shot reranking, Ram et al. 2023, section 6.1.
    """
    return ranked_by(values, likelihood_before(values, rank_tokens), rank_tokens)


def oracle(
    values: Float[np.ndarray, "S K n"], rank_tokens: int
) -> Float[np.ndarray, "S {values.shape[2]-rank_tokens}"]:
    """Under the document that makes the stride itself most likely: a control.

    It has seen the answer: no way of choosing among these documents does better.
    """
    return ranked_by(values, likelihood(values, rank_tokens), rank_tokens)


def ranked_by(
    values: Float[np.ndarray, "S K n"],
    scores: Float[np.ndarray, "S K"] | Int[np.ndarray, "S K"],
    rank_tokens: int,
) -> Float[np.ndarray, "S {values.shape[2]-rank_tokens}"]:
    """Under the document with the largest of ``scores``."""
    return values[np.arange(len(values)), best(values, scores), rank_tokens:]


def best(
    values: Float[np.ndarray, "S K n"],
    scores: Float[np.ndarray, "S K"] | Int[np.ndarray, "S K"],
) -> Int[np.ndarray, " S"]:
    """The document with the largest of ``scores``."""
    return np.where(absent(values), -np.inf, scores).argmax(axis=1)


def absent(values: Float[np.ndarray, "S K n"]) -> Bool[np.ndarray, "S K"]:
    """Which documents are absent."""
    return np.isnan(values[..., -1])


def likelihood(
    values: Float[np.ndarray, "S K n"], rank_tokens: int
) -> Float32[np.ndarray, "S K"]:
    """log p of each stride under each document; -inf where absent."""
    return _sums(values, values[..., rank_tokens:])


def likelihood_before(
    values: Float[np.ndarray, "S K n"], rank_tokens: int
) -> Float32[np.ndarray, "S K"]:
    """log p of the tokens before each stride; -inf where absent."""
    return _sums(values, values[..., :rank_tokens])


def _sums(values, part):
    sums = np.nansum(part, axis=-1, dtype=np.float64)
    return np.where(absent(values), -np.inf, sums).astype(np.float32)
