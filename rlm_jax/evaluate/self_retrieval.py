"""How well a document's own chunks are retrieved, and perplexity by position."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Retrieved(NamedTuple):
    """What Q chunks retrieved, and how they rank their scored candidates."""

    best: Int[np.ndarray, "Q n"]  # chunks back, best first; 0 = none
    scores: Float[np.ndarray, "Q S"]  # of the candidates; minus infinity where unknown


def measures(
    found: Retrieved,
    candidates: Int[np.ndarray, "Q S"],
    targets: Float[np.ndarray, "Q S"],
    k: int,
) -> dict[str, float]:
    """Means over the chunks that some scored candidate helps.

    precision@k is the share of k retrieved chunks that are candidates with a target
    above 0. ndcg has the gain 2^t - 1 of such a candidate and 0 of any other chunk, and
    the discount 1 / log2(1 + rank) up to rank n; ndcg_judged ranks the candidates
    alone, so that a chunk that nobody scored costs nothing.

    Args:
      found: what was retrieved.
      candidates: chunks back; 0 = none.
      targets: t, NaN where none was made.
      k: neighbours that a chunk reads.

    Järvelin and Kekäläinen 2002.
    """
    good = (candidates > 0) & (np.nan_to_num(targets, nan=-1.0) > 0)
    some = good.any(1)
    if not some.any():
        return {f"precision@{k}": 0.0, "ndcg": 0.0, "ndcg_judged": 0.0, "chunks": 0.0}
    good, candidates = good[some], candidates[some]
    best, scores = found.best[some], found.scores[some]
    t = np.where(good, targets[some], 0.0).astype(np.float64)
    # Times 2^-largest: only ratios count.
    largest = t.max(1, keepdims=True)
    gains = np.where(good, np.exp2(t - largest) - np.exp2(-largest), 0.0)
    same = (best[:, :, None] == candidates[:, None]) & (best > 0)[:, :, None]
    gained = np.where(same, gains[:, None], 0.0).sum(2)
    hits = (same & good[:, None]).any(2)[:, :k]
    ideal = _discounted(-np.sort(-gains, axis=1))
    order = np.argsort(-np.where(candidates > 0, scores, -np.inf), 1, kind="stable")
    judged = np.take_along_axis(gains, order, axis=1)
    return {
        f"precision@{k}": float(hits.sum(1).mean() / k),
        "ndcg": float((_discounted(gained) / ideal).mean()),
        "ndcg_judged": float((_discounted(judged) / ideal).mean()),
        "chunks": float(some.sum()),
    }


def of_list(
    best: Int[np.ndarray, "Q n"], candidates: Int[np.ndarray, "Q S"]
) -> Retrieved:
    """A ranking that is known by its first n alone."""
    same = best[:, None] == candidates[:, :, None]
    listed = same.any(2) & (candidates > 0)
    scores = np.where(listed, -same.argmax(2).astype(np.float64), -np.inf)
    return Retrieved(best, scores)


def by_position(
    log_probs: Float[np.ndarray, " N"], positions: Int[np.ndarray, " N"], window: int
) -> dict[str, float]:
    """Perplexity of the tokens by how far into their document they are.

    Bins begin at 0 and at W, 2 W, 4 W, ...; "0" is the first window, in which nothing
    can be retrieved.
    """
    bins = np.floor(np.log2(np.maximum(positions / window, 0.5))).astype(int)
    out = {}
    for each in np.unique(bins):
        begin = 0 if each < 0 else window * 2**each
        mean = np.mean(log_probs[bins == each], dtype=np.float64)
        out[str(begin)] = float(np.exp(-mean))
    return out


def _discounted(gains):
    return (gains / np.log2(np.arange(2, 2 + gains.shape[1]))).sum(1)
