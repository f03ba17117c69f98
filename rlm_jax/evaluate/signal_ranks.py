"""How alike a reader's signals order passages, and how true to what passages do."""

import jax
import numpy as np

from rlm_jax.ops import distillation


def compared(
    signals: dict[str, np.ndarray],
    truths: dict[str, np.ndarray],
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
    first = {n: _first(x, present) for n, x in {**signals, **truths}.items()}
    told = holds.any(1) & (present & ~holds).any(1)
    right = np.take_along_axis(holds, np.stack(list(first.values()), 1), 1)
    at = dict(zip(first, right.T, strict=True))
    return {
        name: {
            **{truth: _tau(x, y, present) for truth, y in truths.items()},
            "best": float((first[name] == first["average"]).mean()),
            "answer_first": float(at[name][told].mean()) if told.any() else 0.0,
        }
        for name, x in {**signals, "true change": truths["average"]}.items()
    }


def among_each_other(
    signals: dict[str, np.ndarray], present: np.ndarray
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
