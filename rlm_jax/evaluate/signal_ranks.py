"""Signals of which retrievers learn, ranked beside what passages truly do."""

from collections.abc import Mapping

import jax
import numpy as np

from rlm_jax.ops import distillation

CHANGE = "true change"
"""The average change itself, as a signal: what the others could reach."""


def compared(
    signals: Mapping[str, np.ndarray],
    truths: Mapping[str, np.ndarray],
    present: np.ndarray,
    holds: np.ndarray,
) -> dict[str, dict[str, float]]:
    """Of each signal its rank correlation with every true change, and its first place.

    ``best``: how often its first passage is the one with the largest average change;
    ``answer_first``: how often it holds an answer, where some do and some do not.

    Args:
      signals, truths: [N, K], larger is better.
      present: bool [N, K].
      holds: bool [N, K], which passages hold an answer.
    """
    every = {**signals, CHANGE: truths["average"]}
    first = {name: _first(x, present) for name, x in every.items()}
    told = holds.any(1) & (present & ~holds).any(1)

    def answers(places: np.ndarray) -> float:
        right = np.take_along_axis(holds, places[:, None], 1)[:, 0]
        return float(right[told].mean()) if told.any() else 0.0

    return {
        name: {
            **{truth: _tau(x, y, present) for truth, y in truths.items()},
            "best": float((first[name] == first[CHANGE]).mean()),
            "answer_first": answers(first[name]),
        }
        for name, x in every.items()
    }


def among_each_other(
    signals: Mapping[str, np.ndarray], present: np.ndarray
) -> dict[str, dict[str, float]]:
    """Kendall's tau of every two signals, the mean over questions."""
    return {
        a: {b: _tau(x, y, present) for b, y in signals.items()}
        for a, x in signals.items()
    }


def _tau(a: np.ndarray, b: np.ndarray, present: np.ndarray) -> float:
    each = np.asarray(_rank_correlation(a, b, present))
    return float(each[present.sum(1) > 1].mean())


_rank_correlation = jax.jit(distillation.rank_correlation)


def _first(x: np.ndarray, present: np.ndarray) -> np.ndarray:
    return np.where(present, x, -np.inf).argmax(1)
