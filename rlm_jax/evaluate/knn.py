"""kNN-LM at evaluation: look neighbours up, mix, tune on validation."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.methods import knn_lm


class NeighbourValues(NamedTuple):
    """What the neighbours of each prediction say."""

    similarities: np.ndarray  # float32 [N, K]; larger is nearer, -inf where absent
    values: np.ndarray  # int32 [N, K]; -1 where absent


class Mixture(NamedTuple):
    """How a kNN distribution is formed and mixed in."""

    k: int
    temperature: float
    weight: float  # lambda


def look_up(
    search: Callable[[np.ndarray, int], Neighbours],
    queries: np.ndarray,
    k: int,
    *,
    values: np.ndarray,
    gather_keys: Callable[[np.ndarray], np.ndarray] | None = None,
    metric: str = "l2",
    chunk: int = 1024,
    wrap: Callable[[Iterable], Iterable] = iter,
) -> NeighbourValues:
    """Neighbours of every query, with their similarities and values.

    Args:
      search: an index's ``search``.
      queries: float32 [N, D].
      k: neighbours a query.
      values: int32 [M], the datastore's (or a control's).
      gather_keys: int32 [n, k] -> float32 [n, k, D]. Given, similarities are recomputed
        from the stored keys, as the released kNN-LM does; else the index's are taken.
      metric: l2 (negated squared distance) or ip, for the recomputation.
      chunk: queries at a time.
      wrap: what to put around the chunks' iterator, such as a progress bar.
    """
    parts = []
    for i in wrap(range(0, len(queries), chunk)):
        part = queries[i : i + chunk]
        neighbours = search(part, k)
        absent = neighbours.ids < 0
        similarities = neighbours.scores
        if gather_keys is not None:
            similarities = _recompute(
                knn_lm.SIMILARITIES[metric], part, neighbours.ids, gather_keys
            )
        parts.append(
            NeighbourValues(
                np.where(absent, -np.inf, similarities).astype(np.float32),
                np.where(absent, -1, values[np.maximum(neighbours.ids, 0)]).astype(
                    np.int32
                ),
            )
        )
    return NeighbourValues(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def _recompute(similarity, queries, ids, gather_keys, rows: int = 64):
    out = np.empty(ids.shape, np.float32)
    for i in range(0, len(ids), rows):
        keys = gather_keys(np.maximum(ids[i : i + rows], 0))
        out[i : i + rows] = similarity(queries[i : i + rows], keys)
    return out


@partial(jax.jit, static_argnames="k")
def _log_probs(similarities, values, targets, temperature, k):
    return knn_lm.neighbour_log_probs(
        similarities, values, targets, k=k, temperature=temperature
    )


def knn_log_probs(
    neighbours: NeighbourValues,
    targets: np.ndarray,
    *,
    k: int,
    temperature: float,
    chunk: int = 8192,
) -> np.ndarray:
    """`methods.knn_lm.neighbour_log_probs` of every target, float32 [N]."""
    arrays = (*neighbours, targets)
    return np.concatenate(
        [
            _log_probs(*(x[i : i + chunk] for x in arrays), temperature, k)
            for i in range(0, len(targets), chunk)
        ]
    )


def neighbour_weights(neighbours: NeighbourValues, temperature: float) -> np.ndarray:
    """softmax(similarity / temperature) over the neighbours, [N, K]."""
    logits = neighbours.similarities / temperature
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def mix(log_probs: np.ndarray, knn: np.ndarray, weight: float) -> np.ndarray:
    """`methods.knn_lm.mix`, float32 [N]."""
    return np.asarray(knn_lm.mix(log_probs, knn, weight))


def tune(
    log_probs: np.ndarray,
    neighbours: NeighbourValues,
    targets: np.ndarray,
    *,
    ks: Sequence[int],
    temperatures: Sequence[float],
    weights: Sequence[float],
) -> Mixture:
    """The (k, temperature, lambda) of a grid with the lowest perplexity.

    For validation data; never the tokens that are reported.
    """
    best = None
    for k, temperature in itertools.product(ks, temperatures):
        knn = knn_log_probs(neighbours, targets, k=k, temperature=temperature)
        for weight in weights:
            mean = float(mix(log_probs, knn, weight).mean(dtype=np.float64))
            if best is None or mean > best[0]:
                best = mean, Mixture(k, temperature, weight)
    if best is None:
        raise UserError(
            "A grid to tune on is empty; give at least one k, temperature and weight."
        )
    return best[1]
