"""How much an approximate search does for k neighbours, and how that is tuned.

A search visits some leaves, scores their keys by their hashes, and scores the best
candidates of those exactly. What a target recall takes grows with k, in leaves as in
candidates, so an index keeps it for several k's.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rlm_jax.method import Neighbours
from rlm_jax.retrieval.datastore import Datastore
from rlm_jax.retrieval.index import recall

KS = (10, 64, 256, 1024)
"""The numbers of neighbours that an index is tuned for.

Fewer than 10 take what 10 do, for which the very nearest must be found as surely as all
ten: by inner products some keys are nearest to many queries, and are found or missed by
all of them together.
"""

# Queries on which an index is tuned. Of 1,000 the nearest one's share is known to
# 0.002, and what just meets the target there misses it elsewhere by twice that.
_SAMPLE = 2000
_SAMPLE_OF_MANY = 250  # ... for k of _MANY or more: each says k times something
_MANY = 256
_ENOUGH = 30  # given queries that are tuned on alone
_FEWEST = 30  # candidates that are scored exactly, however small k is
# Measured (width 576, 2 threads): the exact score of a candidate, with its share of the
# selection, takes as long as the scores of so many hashes.
_HASHES = 24


class Effort(NamedTuple):
    """What a search for k neighbours does."""

    k: int
    leaves: int
    candidates: int
    recall: float | None = None  # the least measured; None where the effort was given


def for_k(
    efforts: Sequence[Effort], k: int, *, num_leaves: int, num_entries: int
) -> Effort:
    """The effort for any k: the leaves of the next k that was tuned.

    The candidates lie geometrically between those of the k's on both sides. Below the
    smallest k both are that one's; above the largest they grow as k does.

    Args:
      efforts: by rising k, at least one.
      k: neighbours asked for, at least 1.
      num_leaves, num_entries: of the index, which bound it.
    """
    above = next((i for i, one in enumerate(efforts) if one.k >= k), len(efforts))
    low, high = efforts[max(above - 1, 0)], efforts[min(above, len(efforts) - 1)]
    if low.k == high.k:
        share = max(1.0, k / high.k)
        leaves, candidates = share * high.leaves, share * high.candidates
    else:
        at = math.log(k / low.k) / math.log(high.k / low.k)
        leaves = high.leaves
        candidates = low.candidates ** (1 - at) * high.candidates**at
    # Rounding must not raise what is a whole number but for the last bit.
    leaves, candidates = (math.ceil(x - 1e-6) for x in (leaves, candidates))
    return Effort(
        k,
        min(num_leaves, leaves),
        min(num_entries, max(_FEWEST, k, candidates)),
    )


def sample_queries(datastore: Datastore, queries: np.ndarray | None) -> np.ndarray:
    """About 2,000 queries [N, D] to tune on: of those given, or moved keys if few are.

    Drawn with a fixed seed; see `scann.build`.
    """
    rng = np.random.default_rng(0)
    given = np.zeros((0, datastore.dim), np.float32)
    if queries is not None:
        given = queries[rng.permutation(len(queries))[:_SAMPLE]]
    # A handful of questions would say little of the recall of others.
    if len(given) >= _ENOUGH:
        return given
    some = min(_SAMPLE, datastore.num_entries)
    ids = rng.integers(0, datastore.num_entries, (3, some))
    keys, plus, minus = datastore.gather_keys(ids)
    return np.concatenate([given, keys + np.float32(0.75) * (plus - minus)])


def tune(
    search: Callable[[np.ndarray, Effort], Neighbours],
    queries: np.ndarray,
    truth: Neighbours,
    target: float,
    *,
    first_leaves: int,
    num_leaves: int,
    num_entries: int,
    copies: int = 1,
    lossy: bool = False,
    slack: np.ndarray | None = None,
) -> tuple[Effort, ...]:
    """The efforts that find the target's share of the nearest, for each of `KS`.

    From the effort of the k before, leaves or candidates are raised, whichever gains
    more recall for its cost, until the target holds; then both are lowered as far as it
    goes on to hold. The cost is counted in hashes, not timed, so that an index is tuned
    the same way on every machine.

    Args:
      search: (queries float32 [N, D], effort) -> neighbours [N, k].
      queries: float32 [N, D].
      truth: the exact neighbours of the queries, ids [N, K]; k's beyond K are left out.
      target: share of them to be found.
      first_leaves: leaves that tuning starts with.
      num_leaves, num_entries: of the index.
      copies: leaves that a key stands in.
      lossy: the candidates' exact scores are rounded, so that the target may be out of
        reach; then it is given up where more effort gains nothing.
      slack: float32 [N], see `index.recall`; else many equal keys, of which the search
        finds others than exact search does, would never be enough.
    """
    depth = truth.ids.shape[1]
    hashes = copies * num_entries / num_leaves  # of a leaf

    def cost(effort: Effort) -> float:
        return effort.leaves * hashes + effort.candidates * _HASHES

    def measured(k: int, leaves: float, candidates: float) -> Effort:
        # A large k must not run out of keys in the leaves that are visited.
        leaves = max(leaves, 2 * k * num_leaves / num_entries)
        candidates = max(candidates, _FEWEST, 1.25 * k)
        effort = Effort(
            k,
            min(num_leaves, math.ceil(leaves)),
            min(num_entries, math.ceil(candidates)),
        )
        some = slice(_SAMPLE_OF_MANY if k >= _MANY else _SAMPLE)
        found = search(queries[some], effort)
        judged = (k, 1) if k == KS[0] else (k,)
        equal = None if slack is None else slack[some]
        return effort._replace(
            recall=min(
                recall(
                    found,
                    Neighbours(truth.scores[some, :n], truth.ids[some, :n]),
                    equal,
                )
                for n in judged
            )
        )

    def gain(to: Effort, at: Effort) -> float:
        return (to.recall or 0) - (at.recall or 0)

    tuned, leaves, candidates = [], first_leaves, _FEWEST
    for k in [k for k in KS if k < depth] + [min(depth, KS[-1])]:
        best = measured(k, leaves, candidates)
        while (best.recall or 0) < target:
            _, leaves, candidates, _ = best
            steps = []
            if leaves < num_leaves:
                steps.append(measured(k, 1.25 * leaves, candidates))
            if candidates < num_entries:
                steps.append(measured(k, leaves, 1.5 * candidates))
            if not steps:
                break
            missing = target - (best.recall or 0)
            useful = [to for to in steps if gain(to, best) >= 0.05 * missing]
            if useful:
                best = max(
                    useful, key=lambda to: gain(to, best) / (cost(to) - cost(best))
                )
                continue
            ahead = measured(k, 2 * leaves, 2 * candidates)
            # Keys kept in a lossy dtype have a recall that no search exceeds.
            at_ceiling = lossy and (best.recall or 0) > 0.8
            if at_ceiling and gain(ahead, best) < 0.1 * missing:
                break
            best = ahead
        if (best.recall or 0) >= target:
            # The last step may have gone too far, and an early one become superfluous.
            for less in ((1, 0.8), (0.8, 1)):
                while True:
                    _, leaves, candidates, _ = best
                    tried = measured(k, int(leaves * less[0]), candidates * less[1])
                    if (tried.recall or 0) < target or cost(tried) >= cost(best):
                        break
                    best = tried
        tuned.append(best)
        _, leaves, candidates, _ = best
    return tuple(tuned)
