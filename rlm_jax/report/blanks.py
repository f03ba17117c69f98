"""A picture of filled blanks: a question, the phrases found, and where they stand."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from rlm_jax import characters
from rlm_jax.report.plot_style import GREY, INK, PALETTE, canvas

_CONTEXT = 78  # characters of a context, at most


class Candidate(NamedTuple):
    """A phrase for a blank, and where its best place is."""

    phrase: str
    score: float
    context: str  # with the phrase in it
    passage: str  # the passage's id


def draw(
    path: str | os.PathLike, *, question: str, blanks: Sequence[Sequence[Candidate]]
) -> None:
    """Draw the phrases of each blank as bars, the best on top, beside where they stand.

    Args:
      path: of the image; its ending says the format (png, svg, pdf).
      question: with its blanks.
      blanks: of each blank the candidates, best first.

    Raises:
      UserError: the image cannot be written.
    """
    rows = max(1, sum(len(blank) + 1 for blank in blanks))
    scores = [x.score for blank in blanks for x in blank]
    widest = max([1e-9, *scores])
    with canvas(path, 9.6, 0.8 + 0.34 * rows) as (_, axes):
        axes.set_axis_off()
        axes.set_xlim(0, 100)
        axes.set_ylim(-0.7, rows - 0.3)
        axes.invert_yaxis()
        at = 0
        for number, blank in enumerate(blanks, 1):
            nothing = "" if blank else ": nothing was found"
            axes.text(0, at, f"blank {number}{nothing}", color=GREY, va="center")
            at += 1
            for place, found in enumerate(blank):
                colour = PALETTE[0] if place == 0 else PALETTE[4]
                axes.barh(at, 18 * found.score / widest, 0.62, 20, color=colour)
                label = _short(found.phrase, 24)
                axes.text(19.4, at, label, ha="right", va="center", color=INK)
                axes.text(
                    39, at, f"{found.score:.3f}", va="center", fontsize=7, color=GREY
                )
                where = _short(found.passage, _CONTEXT)
                source = f"{_short(found.context, _CONTEXT)}   [{where}]"
                axes.text(44, at, source, va="center", fontsize=6.5, color=INK)
                at += 1
        axes.set_title(characters.visible(question))


def _short(text: str, limit: int) -> str:
    text = characters.visible(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"
