"""A picture of the fusion step: what the decoder saw, and where it looked."""

import os
from collections.abc import Sequence

import numpy as np

from rlm_jax import characters
from rlm_jax.report.plot_style import GREY, INK, PALETTE, canvas

_SHOWN = 64  # tokens of a row, at most


def draw(
    path: str | os.PathLike,
    *,
    question: str,
    answer: str,
    tokens: Sequence[Sequence[str]],
    share: Sequence[np.ndarray],
) -> None:
    """Draw each passage as a row of tokens, darker where the decoder looked more.

    Every row was encoded alone; the decoder attended to all of them at once, so the
    shares of all rows add up to 1.

    Args:
      path: of the image; its ending says the format (png, svg, pdf).
      question, answer: as text.
      tokens: of each of K passages, with the question in front.
      share: float32 [T] of each, of the decoder's attention.

    Raises:
      UserError: the image cannot be written.
    """
    rows = max(1, len(tokens))
    longest = max([1, *(min(_SHOWN, len(row)) for row in tokens)])
    most = max([1e-9, *(float(np.max(x[:_SHOWN], initial=0)) for x in share)])
    height = 0.7 + 0.75 * rows
    with canvas(path, 9.6, height) as (figure, axes):
        axes.set_axis_off()
        axes.set_xlim(-0.5, 100)
        axes.set_ylim(-0.5, rows - 0.2)
        axes.invert_yaxis()
        cell = 74 / longest
        for at, (row, weights) in enumerate(zip(tokens, share, strict=True)):
            axes.text(-0.5, at - 0.24, f"passage {at + 1}", color=INK, fontsize=7)
            named = 0
            for i, (token, weight) in enumerate(
                zip(row[:_SHOWN], weights, strict=False)
            ):
                strength = float(weight) / most
                axes.add_patch(_box(i * cell, at - 0.14, cell * 0.92, 0.5, strength))
                if strength > 0.3:
                    named += 1  # of neighbours each second one a line lower
                    axes.text(
                        (i + 0.46) * cell,
                        at + (0.4 if named % 2 else 0.53),
                        characters.visible(token),
                        ha="center",
                        va="top",
                        fontsize=6,
                        color=INK,
                    )
            total = float(np.sum(weights))
            axes.annotate(
                "",
                xy=(86, (rows - 1) / 2 + 0.1),
                xytext=(75, at + 0.1),
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": PALETTE[0],
                    "linewidth": 0.4 + 3 * total,
                    "alpha": 0.35 + 0.65 * min(1.0, total),
                },
            )
            axes.text(75.2, at - 0.2, f"{total:.0%}", fontsize=7, color=GREY)
        axes.text(
            87,
            (rows - 1) / 2 + 0.1,
            f"decoder\n{characters.visible(answer) or '(nothing)'}",
            va="center",
            fontsize=9,
            color=INK,
        )
        axes.set_title(characters.visible(question))


def _box(x: float, y: float, width: float, height: float, strength: float):
    from matplotlib.patches import Rectangle

    return Rectangle(
        (x, y),
        width,
        height,
        facecolor=PALETTE[0],
        alpha=0.06 + 0.94 * strength,
        linewidth=0,
    )
