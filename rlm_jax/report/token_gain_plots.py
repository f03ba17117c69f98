"""Plots of single tokens: where retrieval helped, and where it hurt."""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.report.plot_style import INK, PALETTE, canvas

HELPED, HURT = PALETTE[0], PALETTE[5]
STRIP_TOKENS = 400


class TokenGains(NamedTuple):
    """A stretch of text, and what retrieval did to the probability of each token."""

    pieces: Sequence[str]
    """The tokens as text, N of them, in reading order."""
    without: np.ndarray
    """float [N]: log p of each token without retrieval, in nats."""
    with_retrieval: np.ndarray
    """float [N]: log p of each token with retrieval, in nats."""


def of_text(
    folder: pathlib.Path,
    targets: np.ndarray,
    piece: Callable[[int], str],
    without: np.ndarray,
    with_retrieval: np.ndarray,
) -> None:
    """Draw where retrieval helped, as a histogram and as a strip of text.

    Args:
      folder: of ``token_gain_plots.png`` and ``gains_text.png``.
      targets: int32 [N], the text's tokens.
      piece: a token as text.
      without, with_retrieval: float [N], log p of each token.
    """
    unread = [""] * len(targets)  # the histogram shows no text
    gain_histogram(
        folder / "token_gain_plots.png", TokenGains(unread, without, with_retrieval)
    )
    # The stretch that gains most says most of how the memory works.
    size = min(STRIP_TOKENS, len(targets))
    gain = np.convolve(with_retrieval - without, np.ones(size), "valid")
    start = int(gain.argmax())
    stretch = slice(start, start + size)
    pieces = [piece(int(token)) for token in targets[stretch]]
    gain_strip(
        folder / "gains_text.png",
        TokenGains(pieces, without[stretch], with_retrieval[stretch]),
    )


def gain_histogram(
    path: str | os.PathLike,
    gains: TokenGains,
    *,
    title: str = "Where retrieval helped",
) -> None:
    """Draw each token's gain against its log-probability, and the gains' distribution.

    gain = log p(with retrieval) - log p(without), in nats.

    Args:
      path: of the image.
      gains: the tokens.
      title: above the plot.

    Raises:
      UserError: there is no token, or the image cannot be written.
    """
    gain = _gain(gains)
    without = np.asarray(gains.without, np.float64)
    halves = ((gain >= 0, HELPED), (gain < 0, HURT))
    # The outermost bars hold the tails; an edge at zero, so that no bar mixes help
    # with harm.
    low, high = np.quantile(gain, [0.001, 0.999])
    edges = np.linspace(min(low, -1e-3), max(high, 1e-3), 61)
    edges = np.unique(np.append(edges, 0.0))
    with canvas(path, 7.6, 3.8, 1, 2, sharey=True, width_ratios=(3, 1)) as (_, pair):
        scatter, histogram = pair
        for part, colour in halves:
            scatter.scatter(
                without[part],
                gain[part],
                s=5,
                color=colour,
                alpha=float(np.clip(4000 / gain.size, 0.1, 0.6)),
                linewidths=0,
                rasterized=True,
            )
            histogram.hist(
                np.clip(gain[part], edges[0], edges[-1]),
                edges.tolist(),
                orientation="horizontal",
                color=colour,
            )
        for axes in pair:
            axes.axhline(0.0, color=INK, linewidth=0.8)
        scatter.set(
            xlabel="log p without retrieval (nats)",
            ylabel="gain in log p from retrieval (nats)",
            title=title,
        )
        histogram.set(xlabel="tokens", xscale="log")
        histogram.set_xlim(left=0.7)
        histogram.xaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
        histogram.minorticks_off()
        summary = (
            f"mean {gain.mean():+.3f} nats\n"
            f"{np.mean(gain > 0):.0%} of {gain.size:,} tokens gain"
        )
        histogram.set_title(
            summary.replace("-", "−"), fontsize=8.5, fontweight="normal"
        )


def gain_strip(
    path: str | os.PathLike,
    gains: TokenGains,
    *,
    columns: int = 88,
    title: str = "Where retrieval helped, token by token",
) -> None:
    """Draw the text itself, each token coloured by its gain: blue helped, orange hurt.

    Args:
      path: of the image.
      gains: the tokens; a few hundred make a readable picture.
      columns: characters in a line.
      title: above the text.

    Raises:
      UserError: there is no token, or the image cannot be written.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.patches import Rectangle

    gain = _gain(gains)
    # The scale is even on both sides, and one outlier does not bleach the others.
    limit = max(0.1, float(np.quantile(np.abs(gain), 0.95)))
    colours = LinearSegmentedColormap.from_list("gain", (HURT, "#FFFFFF", HELPED))
    scale = Normalize(-limit, limit, clip=True)
    placed, lines = _wrapped(gains.pieces, columns)

    char, line_height = 0.078, 0.20  # inches
    width, height = columns * char, lines * line_height
    with canvas(path, width + 0.3, height + 1.0) as (figure, axes):
        axes.set(xlim=(0, columns), ylim=(lines, 0))
        axes.set_axis_off()
        axes.set_title(title)
        for index, line, column, text in placed:
            red, green, blue, _ = colours(scale(gain[index]))
            axes.add_patch(
                Rectangle(
                    (column, line + 0.05), len(text), 0.9, color=(red, green, blue)
                )
            )
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            # A glyph at a time: the text stays on its grid whatever the font's advance.
            for offset, glyph in enumerate(text):
                if glyph != " ":
                    axes.text(
                        column + offset + 0.5,
                        line + 0.5,
                        glyph if glyph.isprintable() else "·",
                        family="monospace",
                        fontsize=8,
                        ha="center",
                        va="center_baseline",
                        color="white" if dark else INK,
                    )
        bar = figure.colorbar(
            ScalarMappable(scale, colours),
            ax=axes,
            orientation="horizontal",
            fraction=0.12 / (height + 0.4),
            pad=0.1 / (height + 0.4),
            aspect=30,
            anchor=(0.0, 1.0),
            shrink=0.6,
            extend="both",
        )
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
        bar.set_label("gain in log p from retrieval (nats)")


def _gain(gains: TokenGains) -> np.ndarray:
    gain = np.asarray(gains.with_retrieval, np.float64) - np.asarray(
        gains.without, np.float64
    )
    if gain.shape != (len(gains.pieces),) or gain.size == 0:
        raise UserError(
            f"There are {len(gains.pieces)} tokens and gains of shape {gain.shape}: "
            "give one gain per token, and at least one."
        )
    return gain


def _wrapped(
    pieces: Sequence[str], columns: int
) -> tuple[list[tuple[int, int, int, str]], int]:
    """Where each piece goes: (index, line, column, text), and the number of lines."""
    placed, line, column = [], 0, 0
    for index, piece in enumerate(pieces):
        *whole, last = piece.replace("\t", "    ").split("\n")
        for text, ends in [*((text + "↵", True) for text in whole), (last, False)]:
            while text:
                if column and column + len(text) > columns:
                    line, column = line + 1, 0
                placed.append((index, line, column, text[:columns]))
                column += len(text[:columns])
                text = text[columns:]
            if ends:
                line, column = line + 1, 0
    return placed, line + (column > 0)
