"""What an index is: the protocol every search obeys, and what they all check."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours

METRICS = ("l2", "ip")

# At 0.95 a sentence encoder lost 0.02 of nDCG@10 to exact search on SciFact, at 0.995
# nothing: what an index misses is as often a relevant passage as any other.
TARGET_RECALL = 0.995


class Index(Protocol):
    """A set of keys that can be searched.

    Scores are larger for nearer keys: the inner product for the metric "ip", the
    negated squared Euclidean distance for "l2".
    """

    @property
    def dim(self) -> int: ...

    @property
    def num_entries(self) -> int: ...

    def search(self, queries: np.ndarray, k: int) -> Neighbours:
        """The k nearest keys of each query, best first.

        Args:
          queries: float32 [N, D].
          k: how many; beyond num_entries, ids are -1 and scores minus infinity.

        Raises:
          UserError: queries of another width or with NaN or infinity, or k below 1.
        """
        ...


def check_metric(metric: str) -> str:
    """Returns the metric, or raises a UserError if there is none of that name."""
    if metric not in METRICS:
        raise UserError(f"Metric {metric!r} is unknown; use one of {METRICS}.")
    return metric


def check_target(target_recall: float) -> float:
    """Returns the target recall, or raises a UserError where it is no share."""
    if not 0 < target_recall <= 1:
        raise UserError(
            f"A target recall of {target_recall} cannot be met; use one above 0 and at "
            "most 1."
        )
    return target_recall


def check_search(queries: np.ndarray, k: int, dim: int) -> np.ndarray:
    """Returns the queries as float32 [N, D], or raises what `Index.search` promises."""
    queries = np.ascontiguousarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise UserError(
            f"Queries of shape {list(queries.shape)} do not fit an index of width {dim}"
            "; encode them with the model that made its keys."
        )
    if k < 1:
        raise UserError(
            f"A search for k = {k} neighbours is empty; use k of at least 1."
        )
    if not np.isfinite(queries).all():
        raise UserError("Queries hold NaN or infinity; check the encoder's checkpoint.")
    return queries


def first_kept(
    neighbours: Neighbours, keep: Callable[[np.ndarray], np.ndarray], k: int
) -> Neighbours:
    """The best k of each query's neighbours that may stay: over-fetch, then drop.

    Args:
      neighbours: [N, K].
      keep: ids int32 [N, K] -> bool [N, K]; what it says of absent ones, which it sees
        as 0, does not matter.
      k: how many are left, -1 and minus infinity where they are too few.
    """
    kept = (neighbours.ids >= 0) & keep(np.maximum(neighbours.ids, 0))
    order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    scores, ids = none_found(len(kept), k)
    width = order.shape[1]
    kept, best = (np.take_along_axis(x, order, axis=1) for x in (kept, neighbours.ids))
    ids[:, :width] = np.where(kept, best, -1)
    best = np.take_along_axis(neighbours.scores, order, axis=1)
    scores[:, :width] = np.where(kept, best, -np.inf)
    return Neighbours(scores, ids)


def none_found(num_queries: int, k: int) -> Neighbours:
    """What a search returns where nothing was found."""
    shape = num_queries, k
    return Neighbours(np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int32))


def recall(
    approximate: Neighbours, exact: Neighbours, slack: np.ndarray | None = None
) -> float:
    """The share of the exact neighbours that an approximate search found as well.

    Args:
      approximate: what is judged, ids [N, K].
      exact: the truth, ids [N, K']; ids of -1 are not counted.
      slack: float32 [N]. Given, a key whose score is within it of the last exact
        neighbour's counts as found too: of equal keys any will do.
    """
    wanted = (exact.ids >= 0).sum(axis=1)
    hit = np.stack(
        [
            np.isin(ids, truth)
            for ids, truth in zip(approximate.ids, exact.ids, strict=True)
        ]
    )
    if slack is not None:
        last = np.min(exact.scores, axis=1, where=exact.ids >= 0, initial=np.inf)
        hit |= approximate.scores >= (last - slack)[:, None]
    found = np.minimum((hit & (approximate.ids >= 0)).sum(axis=1), wanted)
    return float(found.sum() / wanted.sum()) if wanted.any() else 1.0
