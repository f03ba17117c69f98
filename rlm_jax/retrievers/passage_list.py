"""What a search found as text, for the terminal."""

import shutil
import textwrap
from collections.abc import Sequence

import numpy as np

from rlm_jax.data.passages import Passage


def listed(
    passages: Sequence[Passage],
    scores: np.ndarray,
    ids: np.ndarray,
    lines: int,
    notes: Sequence[str] = (),
) -> str:
    """The passages of one question with their scores, in the terminal's width.

    Args:
      passages: the collection by row.
      scores, ids: [K], best first; -1 = absent.
      lines: of a passage, at most.
      notes: a line below each passage that is there; none where there are none.
    """
    width = min(100, shutil.get_terminal_size().columns)
    blocks = []
    for score, row in zip(scores.tolist(), ids.tolist(), strict=True):
        if row < 0:
            continue
        passage = passages[row]
        head = f"{len(blocks) + 1:2d}. {score:.3f}  {passage.id}"
        if passage.title:
            head += f"  ·  {passage.title}"
        wrapped = textwrap.wrap(" ".join(passage.text.split()), width - 4)
        if len(wrapped) > lines:
            wrapped = [*wrapped[: lines - 1], f"{wrapped[lines - 1][: width - 6]} …"]
        below = notes[len(blocks) : len(blocks) + 1]
        blocks.append("\n".join([head, *(f"    {x}" for x in (*wrapped, *below))]))
    if not blocks:
        return "\nnothing was found; BM25 needs a word in common\n\n"
    return "\n" + "\n".join(blocks) + "\n\n"
