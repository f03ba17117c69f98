"""Pictures of a document that retrieves from itself."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from rlm_jax.report.plot_style import GREY, INK, PALETTE, canvas, legend_below
from rlm_jax.report.plots import CONTROL_COLOURS


def positions(
    path: str | os.PathLike, curves: Mapping[str, Mapping[str, float]]
) -> None:
    """Perplexity by position in the document, a line for each control.

    Args:
      path: of the image.
      curves: name ("real" and controls) -> first token of a bin -> perplexity.

    Raises:
      UserError: the image cannot be written.
    """
    with canvas(path, 6.4, 3.8) as (figure, axes):
        ticks = sorted({int(begin) for curve in curves.values() for begin in curve})
        for name, curve in curves.items():
            begins = sorted(curve, key=int)
            axes.plot(
                [ticks.index(int(x)) for x in begins],
                [curve[x] for x in begins],
                marker="o",
                markersize=3,
                color=CONTROL_COLOURS.get(name, PALETTE[0] if name == "real" else INK),
                linestyle="-" if name == "real" else "--",
                label="RPT" if name == "real" else name,
            )
        axes.set_xticks(range(len(ticks)), [f"{x:,}" for x in ticks])
        axes.set_xlabel("tokens of the document before, from")
        axes.set_ylabel("perplexity")
        axes.set_title("Perplexity by position in the document")
        legend_below(figure, *axes.get_legend_handles_labels())


def window(
    path: str | os.PathLike,
    texts: Sequence[str],
    chunks: np.ndarray,
    *,
    spans: Sequence[tuple[int, int]],
    retrieved: np.ndarray,
    candidates: np.ndarray,
    targets: np.ndarray,
) -> None:
    """The chunks of one window, what they retrieved and what would have helped.

    A row is a chunk, and what it may retrieve is shaded; dots are scored candidates,
    filled where they help, the larger the more; rings are what was retrieved.

    Args:
      path: of the image.
      texts: of the C chunks.
      chunks: int [C], their numbers in the document.
      spans: the chunks that each may retrieve, (first, the one after the last).
      retrieved, candidates: int [C, K] and [C, S], numbers of chunks; a chunk's own
        number: none.
      targets: float [C, S], in nats; NaN where nothing was scored.

    Raises:
      UserError: the image cannot be written.
    """
    count = len(chunks)
    with canvas(path, 9.6, 1.6 + 0.42 * count) as (figure, axes):
        largest = np.nanmax(np.where(targets > 0, targets, np.nan), initial=1.0)
        labels: dict[str, None] = {}

        def once(label: str) -> str | None:
            new = label not in labels
            labels[label] = None
            return label if new else None

        for row, (number, (first, stop)) in enumerate(zip(chunks, spans, strict=True)):
            axes.barh(
                row, max(stop - first, 0), left=first - 0.5, height=0.8,
                color="#EEF1F4", label=once("may be retrieved"),
            )  # fmt: skip
            axes.barh(
                row, 1, left=number - 0.5, height=0.8, color=GREY,
                label=once("the chunk"),
            )  # fmt: skip
            for j, value in zip(candidates[row], targets[row], strict=True):
                if j == number or not np.isfinite(value):
                    continue
                helps = value > 0
                axes.scatter(
                    j, row,
                    s=14 + 90 * max(value, 0) / largest,
                    facecolor=PALETTE[2] if helps else "none",
                    edgecolor=PALETTE[2] if helps else GREY,
                    label=once("target: it helps" if helps else "candidate: it hurts"),
                    zorder=3,
                )  # fmt: skip
            there = retrieved[row][retrieved[row] != number]
            if len(there):
                axes.scatter(
                    there, np.full(len(there), row), s=150, facecolor="none",
                    edgecolor=PALETTE[5], linewidth=1.6, label=once("retrieved"),
                    zorder=4,
                )  # fmt: skip
        axes.set_yticks(range(count), [_line(text) for text in texts], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlim(min(first for first, _ in spans) - 1, max(chunks) + 1)
        axes.set_xlabel("chunk of the document")
        axes.locator_params(axis="x", integer=True)
        axes.set_title("A window, what its chunks retrieved, and their targets")
        legend_below(figure, *axes.get_legend_handles_labels())


def _line(text: str, width: int = 52) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."
