"""Questions that are themselves passages of the collection, and would find themselves.

In ArguAna and Quora a question stands among the passages under its own id. BEIR leaves
such a passage out of what its question found (``ignore_identical_ids``), and so do we:
unless it was judged to answer the question, or the ids are numbers of lines, which are
equal by chance, and the texts differ.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlm_jax.data.passages import Passages
from rlm_jax.data.question_files import Question
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import index


class OwnPassages(NamedTuple):
    """The row of the passage that each of N questions itself is, int32; -1: none."""

    rows: np.ndarray

    @property
    def count(self) -> int:
        return int((self.rows >= 0).sum())

    def deeper(self, k: int) -> int:
        """How many passages are searched for, so that k remain."""
        return k + bool(self.count)

    def left_out(self, found: Neighbours) -> Neighbours:
        """What a search to the depth of `deeper` found, without them, [N, k]."""
        if not self.count:
            return found
        keep = lambda ids: (ids >= 0) & (ids != self.rows[:, None])
        return index.first_kept(found, keep, found.ids.shape[1] - 1)


def find(
    questions: Sequence[Question],
    relevance: Mapping[str, Mapping[str, int]],
    passages: Passages,
) -> OwnPassages:
    """The passages that are questions, by their ids."""
    ids = [question.id for question in questions]
    rows = passages.rows_of(ids).copy()
    numbered = ids == [str(number) for number in range(1, len(ids) + 1)]
    for place in np.flatnonzero(rows >= 0).tolist():
        question, passage = questions[place], passages[int(rows[place])]
        answers = relevance.get(question.id, {}).get(question.id, 0) > 0
        text = " ".join(question.text.split())
        same = text in (" ".join(x.split()) for x in (passage.text, passage.joined))
        if answers or (numbered and not same):
            rows[place] = -1
    return OwnPassages(rows)
