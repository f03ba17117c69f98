"""Controls: the same memory, made irrelevant.

A gain that remains under a control does not come from retrieval.

``shuffled`` permutes values among keys: the memory's unigram statistics remain.
``foreign`` gives each query another document's memory, of the same size.
"""

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours

REAL, SHUFFLED, FOREIGN = "real", "shuffled", "foreign"

NO_OTHER = (
    "note: there is one question alone, so the control shuffled, which gives it "
    "another's passages, is left out"
)


def shuffled_values(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """The values of a fixed datastore, permuted among its keys."""
    return np.random.default_rng(seed).permutation(values)


def foreign_positions(num_positions: int) -> np.ndarray:
    """For each position the one half a stream away, int64 [N]."""
    return (np.arange(num_positions) + num_positions // 2) % num_positions


def shuffled_neighbours(neighbours: Neighbours) -> Neighbours:
    """Each query is given the neighbours of another one, half the list away.

    Raises:
      UserError: there is one query only, which would be given its own.
    """
    if len(neighbours.ids) < 2:
        raise UserError(
            "One question alone cannot be given another's passages; give more."
        )
    turned = np.roll(np.arange(len(neighbours.ids)), len(neighbours.ids) // 2)
    return Neighbours(neighbours.scores[turned], neighbours.ids[turned])


def slot_sources(
    control: str, at: np.ndarray, start: int, num_positions: int, rng
) -> np.ndarray:
    """Which stream positions give their (key, value) to the slots of a growing memory.

    Args:
      control: real, shuffled or foreign.
      at: int [M], the slots' stream positions, rising: older segments, then the running
        one. Positions outside the stream are absent slots.
      start: first position of the running segment.
      num_positions: length of the stream.
      rng: a NumPy generator.

    Returns:
      int [2, M], sources of the keys and of the values; -1 for an absent slot. Shuffled
      keeps the keys. It permutes the values of older slots; in the running segment a
      permutation would hand future tokens to the present, so a slot draws its value
      from the positions up to its own. Foreign leaves out a slot that, in a stream
      shorter than two memories, would come from the running segment itself: its own
      answers.
    """
    inside = (at >= 0) & (at < num_positions)
    keys = np.where(inside, at, -1)
    if control == REAL:
        return np.stack([keys, keys])
    if control == FOREIGN:
        away = (at + num_positions // 2) % num_positions
        own = (away >= start) & (away <= at.max())
        keys = np.where(inside & ~own, away, -1)
        return np.stack([keys, keys])
    if control != SHUFFLED:
        raise ValueError(f"control {control!r} is not real, shuffled or foreign")
    values = keys.copy()
    older = np.flatnonzero(inside & (at < start))
    values[older] = at[rng.permutation(older)]
    first = max(0, int(at[0]))
    running = np.flatnonzero(inside & (at >= start))
    values[running] = rng.integers(first, at[running] + 1)
    return np.stack([keys, values])
