"""How every plot looks: palette, style, and a figure that saves itself."""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rlm_jax.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart under every common colour blindness; black is left
# out, and the yellow, which does not show on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
GREY = "#8A929B"
INK = "#1F2328"

STYLE: dict[Any, Any] = {
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 150,
    "font.size": 9,
    "grid.color": "#E4E7EB",
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextlib.contextmanager
def canvas(
    path: str | os.PathLike, width: float, height: float, *grid: int, **options: Any
) -> Iterator[tuple["Figure", Any]]:
    """A figure and its axes, saved when the block ends.

    The style is ours whatever the user's matplotlibrc says, and is put back afterwards;
    pyplot, with its global figures, is left alone.

    Args:
      path: of the image; its ending says the format (png, svg, pdf).
      width, height: of the figure, in inches.
      *grid, **options: of `matplotlib.figure.Figure.subplots`.

    Raises:
      UserError: the image cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    path = pathlib.Path(path)
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Glyphs that the font lacks are drawn as boxes; no warning for each.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(*grid, **options)
        try:
            figure.savefig(path)
        except (OSError, ValueError) as error:
            raise UserError(
                f"Cannot write the plot {path} ({error}): "
                "free space there, or name a .png, .svg or .pdf elsewhere."
            ) from error


def legend_below(figure: "Figure", handles: Sequence[Any], labels: list[str]) -> None:
    """The legend under the plot, where it can hide no data."""
    if labels:
        inches = 0.6 + 0.075 * max(map(len, labels))
        columns = max(1, min(len(labels), int(figure.get_figwidth() / inches)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
