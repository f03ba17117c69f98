"""Controls of what a reader reads: another question's passages, or an answer first."""

from collections.abc import Callable, Sequence

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.retrievers.reading import Reading


def shuffled(reading: Reading, seed: int = 0) -> Reading:
    """A control: each question reads what another one was given, never its own.

    Raises:
      UserError: there is one question only.
    """
    num = len(reading.ids)
    if num < 2:
        raise UserError("One question alone cannot read another's passages; give more.")
    order = np.random.default_rng(seed).permutation(num)
    other = np.empty(num, np.int64)
    other[order] = np.roll(order, 1)  # each in one circle: none gets its own
    return reading._replace(
        ids=reading.ids[other],
        scores=reading.scores[other],
        source=f"{reading.source}-shuffled-{seed}",
        facts={**reading.facts, "control": "shuffled"},
    )


def oracle(
    reading: Reading,
    holds: Callable[[int, int], bool],
    relevant: Sequence[np.ndarray] | None = None,
) -> Reading:
    """A control: a passage with an answer comes first, wherever there is one.

    The first one found moves to the front. Where none was found, the best relevant
    passage is put there, and the last passage falls out; the rest stays in order.

    Args:
      holds: (place in the reading, row of a passage) -> whether it holds an answer.
      relevant: `reading.evidence` of the questions; None where they may not read it.

    Raises:
      UserError: no question reads any passage.
    """
    if not reading.ids.shape[1]:
        raise UserError("A closed-book reader has no oracle; let it read passages.")
    ids, scores = reading.ids.copy(), reading.scores.copy()
    moved = added = 0
    for place, row in enumerate(reading.ids):
        where = next((r for r, p in enumerate(row) if p >= 0 and holds(place, p)), -1)
        if where >= 0:
            first, moved = row[where], moved + (where > 0)
        elif relevant is not None and len(relevant[place]):
            first, added = relevant[place][0], added + 1
            same = np.flatnonzero(row == first)  # found, but holds no answer's string
            where = int(same[0]) if len(same) else len(row) - 1
        else:
            continue
        ids[place, 1 : where + 1], ids[place, 0] = row[:where], first
        best = reading.scores[place, 0] if row[0] >= 0 else 0.0
        scores[place, 1 : where + 1] = reading.scores[place, :where]
        scores[place, 0] = best
    return reading._replace(
        ids=ids,
        scores=scores,
        source=f"{reading.source}-oracle",
        facts={
            **reading.facts,
            "control": "oracle",
            "moved_to_the_front": moved,
            "relevant_put_in_front": added,
        },
    )
