"""Measures of retrieval within a document, against loops."""

import numpy as np
import pytest

from rlm_jax.evaluate import self_retrieval
from rlm_jax.evaluate.self_retrieval import Retrieved


def test_measures_against_a_loop():
    rng = np.random.default_rng(0)
    count, s, n, k = 30, 4, 5, 2
    candidates = np.stack([rng.permutation(9)[:s] for _ in range(count)])  # 0 = none
    targets = np.where(
        rng.random((count, s)) < 0.1, np.nan, rng.normal(size=(count, s))
    )
    best = np.stack([1 + rng.permutation(9)[:n] for _ in range(count)])
    best[3, 2:] = 0
    scores = rng.normal(size=(count, s))
    found = self_retrieval.measures(Retrieved(best, scores), candidates, targets, k)
    precision, ndcg, judged = [], [], []
    for i in range(count):
        gain = {
            int(c): 2**t - 1
            for c, t in zip(candidates[i], targets[i], strict=True)
            if c and t > 0
        }
        if not gain:
            continue
        ideal = sum(
            g / np.log2(2 + r) for r, g in enumerate(sorted(gain.values())[::-1])
        )
        precision.append(sum(int(c) in gain for c in best[i, :k]) / k)
        ndcg.append(
            sum(gain.get(int(c), 0) / np.log2(2 + r) for r, c in enumerate(best[i]))
            / ideal
        )
        order = sorted(
            range(s), key=lambda j: -scores[i, j] + 99 * (not candidates[i, j])
        )
        judged.append(
            sum(
                gain.get(int(candidates[i, j]), 0) / np.log2(2 + r)
                for r, j in enumerate(order)
            )
            / ideal
        )
    assert found["chunks"] == len(ndcg) < count
    assert found["precision@2"] == pytest.approx(np.mean(precision))
    assert found["ndcg"] == pytest.approx(np.mean(ndcg))
    assert found["ndcg_judged"] == pytest.approx(np.mean(judged))


def test_a_perfect_ranking_has_one():
    candidates = np.array([[3, 5, 2]])
    targets = np.array([[200.0, 300.0, -1.0]])  # 2 to that power is no float
    found = self_retrieval.of_list(np.array([[5, 3, 9]]), candidates)
    figures = self_retrieval.measures(found, candidates, targets, 2)
    assert figures == {"precision@2": 1, "ndcg": 1, "ndcg_judged": 1, "chunks": 1}
    none = self_retrieval.measures(found, candidates, -targets[:, [0, 0, 0]], 2)
    assert none["chunks"] == none["ndcg"] == 0


def test_perplexity_by_position():
    log_probs = np.log(np.array([0.5, 0.25, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0.7]))
    found = self_retrieval.by_position(log_probs, np.arange(9), 2)
    assert list(found) == ["0", "2", "4", "8"]
    assert found["2"] == pytest.approx(10) and found["4"] == pytest.approx(5)
    assert found["0"] == pytest.approx(8**0.5)
