"""A datastore of training tokens, searched for every token of an evaluated text."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from rlm_jax.evaluate import controls, knn
from rlm_jax.evaluate.perplexity import StreamScores
from rlm_jax.retrieval import datastore, exact, index, scann


class Searched(NamedTuple):
    """A datastore with its index, and how queries meet it."""

    keys: datastore.Datastore
    index: index.Index
    k: int  # neighbours a token
    metric: str  # l2 (negated squared distance) or ip (inner product)
    scale: float  # multiplies the queries


def look_up(
    stream: StreamScores,
    searched: Searched,
    *,
    recompute: bool,
    limit: int | None = None,
    wrap: Callable[[Iterable], Iterable] = iter,
) -> tuple[knn.NeighbourValues, np.ndarray]:
    """The neighbours of a stream's tokens, and their ids, int32 [N, K].

    Args:
      stream: the scores, whose keys are the queries.
      recompute: whether similarities come from the stored keys, not from the index.
      limit: of the stream's first tokens; None: of all.
      wrap: what to put around the batches' iterator, such as a progress bar.
    """
    keys = searched.keys
    ids = []

    def search(queries: np.ndarray, k: int):
        neighbours = searched.index.search(queries, k)
        ids.append(neighbours.ids)
        return neighbours

    neighbours = knn.look_up(
        search,
        stream.keys[:limit] * np.float32(searched.scale),
        searched.k,
        values=keys.values(0, keys.num_entries),
        gather_keys=keys.gather_keys if recompute else None,
        metric=searched.metric,
        wrap=wrap,
    )
    return neighbours, np.concatenate(ids)


def by_control(
    neighbours: knn.NeighbourValues, ids: np.ndarray, keys: datastore.Datastore
) -> dict[str, knn.NeighbourValues]:
    """The neighbours under each control.

    Real leaves them as they are, shuffled permutes the values among all keys, and
    foreign gives each token the neighbours of a token half the split away.
    """
    shuffled = controls.shuffled_values(keys.values(0, keys.num_entries))
    elsewhere = controls.foreign_positions(len(ids))
    return {
        controls.REAL: neighbours,
        controls.SHUFFLED: neighbours._replace(
            values=np.where(ids < 0, -1, shuffled[np.maximum(ids, 0)])
        ),
        controls.FOREIGN: knn.NeighbourValues(*(x[elsewhere] for x in neighbours)),
    }


def compared_with_exact(
    stream: StreamScores,
    searched: Searched,
    log_probs: Callable[[knn.NeighbourValues, int], np.ndarray],
    *,
    num_tokens: int,
    recompute: bool,
    wrap: Callable[[Iterable], Iterable] = iter,
) -> dict[str, int | float]:
    """An approximate index beside exact search on a stream's first tokens.

    Args:
      log_probs: (neighbours, count) -> the final log p of the first ``count`` tokens.
      num_tokens: that are looked up in both.
      recompute, wrap: as for `look_up`.

    Returns:
      The number of tokens, both perplexities, and recall@10 and @100; empty for an
      exact index.
    """
    if isinstance(searched.index, exact.Exact):
        return {}
    count = min(num_tokens, len(stream.targets))
    truth = exact.build(searched.keys, metric=searched.metric)
    results = {}
    for name, one in (("approximate", searched.index), ("exact", truth)):
        neighbours, _ = look_up(
            stream,
            searched._replace(index=one),
            recompute=recompute,
            limit=count,
            wrap=wrap,
        )
        mean = log_probs(neighbours, count).mean(dtype=np.float64)
        results[f"perplexity_{name}"] = float(np.exp(-mean))
    queries = stream.keys[: min(count, 256)] * np.float32(searched.scale)
    for k in (10, 100):
        results[f"recall@{k}"] = scann.measure_recall(
            searched.index, truth, queries, min(k, searched.keys.num_entries)
        )
    return {"tokens": count, **results}
