"""Plots of whole runs: training curves, and a metric by system and control."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlm_jax.report.plot_style import GREY, INK, PALETTE, canvas, legend_below
from rlm_jax.report.tables import Row, control_names, metric_style

# One colour for a control wherever it appears; the baselines are grey.
CONTROL_COLOURS = {
    "off": GREY,
    "init": GREY,
    "bm25": PALETTE[4],
    "shuffled": PALETTE[1],
    "foreign": PALETTE[2],
    "exact": PALETTE[3],
    "oracle": PALETTE[5],
}


def training_curves(
    path: str | os.PathLike,
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    key: str = "loss",
    validation_key: str | None = None,
    label: str = "loss (nats per token)",
    title: str = "Training",
) -> None:
    """Draw one metric of several runs against the step, in training and held out.

    Args:
      path: of the image; its ending says the format (png, svg, pdf).
      runs: records (the lines of ``metrics.jsonl``) by the name of the run; those of
        the split "validation" are the marked line, those of "train" the other.
      key: the metric; a record without it is passed over.
      validation_key: its name in the validation records, where that is another.
      label: of the vertical axis, with its unit.
      title: above the plot.

    Raises:
      UserError: the image cannot be written.
    """
    with canvas(path, 6.4, 3.8) as (figure, axes):
        for number, (name, records) in enumerate(runs.items()):
            colour = PALETTE[number % len(PALETTE)]
            steps, values = _series(records, "train", key)
            if len(values) > 100:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                values = _smoothed(values)
            axes.plot(steps, values, color=colour, label=name)
            steps, values = _series(records, "validation", validation_key or key)
            if values:
                axes.plot(
                    steps,
                    values,
                    color=colour,
                    linestyle="--",
                    marker="o",
                    markersize=4,
                    label=f"{name}, held out",
                )
        axes.set(xlabel="step", ylabel=label, title=title)
        axes.margins(x=0.01)
        legend_below(figure, *axes.get_legend_handles_labels())


def control_bars(
    path: str | os.PathLike,
    rows: Sequence[Row],
    *,
    metric: str = "perplexity",
    title: str = "With its memory, and under each control",
) -> None:
    """Draw a metric by system: the system itself and each of its controls, as bars.

    Args:
      path: of the image.
      rows: the systems, top to bottom; a control that a system lacks leaves no gap.
      metric: the name of the metric.
      title: above the plot.

    Raises:
      UserError: the image cannot be written.
    """
    from matplotlib.patches import Patch

    style = metric_style(metric)
    colours = {"the system itself": PALETTE[0]}
    colours.update((c, CONTROL_COLOURS.get(c, GREY)) for c in control_names(rows))
    bars, ticks, position = [], [], 0.0
    for row in rows:
        figures = {"the system itself": row.metrics}
        figures.update((c, row.controls[c]) for c in colours if c in row.controls)
        shown = {c: values[metric] for c, values in figures.items() if metric in values}
        if not shown:
            continue
        bars += [(position + i, c, shown[c]) for i, c in enumerate(shown)]
        ticks.append((position + (len(shown) - 1) / 2, row.system))
        position += len(shown) + 0.7

    # A control that is worse by far would make all the others look alike: it is cut.
    own = [value for _, name, value in bars if name == "the system itself"]
    limit = 2.5 * max(own, default=0.0) if style.lower_is_better else 0.0
    limit = limit or float("inf")
    with canvas(path, 7.2, 1.2 + 0.26 * max(position, 3.0)) as (figure, axes):
        for place, name, value in bars:
            cut = value > limit
            axes.barh(place, min(value, limit), 0.86, color=colours[name])
            axes.annotate(
                f"{value:,.{style.digits}f}" + (" (cut) ▸" if cut else ""),
                (min(value, limit), place),
                (-3 if cut else 3, 0),
                textcoords="offset points",
                va="center",
                ha="right" if cut else "left",
                fontsize=8,
                color="white" if cut else INK,
            )
        axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        better = "lower" if style.lower_is_better else "higher"
        axes.set(xlabel=f"{style.label} ({better} is better)", title=title)
        used = [name for name in colours if any(name == bar[1] for bar in bars)]
        legend_below(figure, [Patch(color=colours[name]) for name in used], used)


def leakage_curve(
    path: str | os.PathLike,
    alphas: Sequence[float],
    bits_per_byte: Mapping[str, Sequence[float]],
    num_chunks: Sequence[int],
    *,
    title: str = "By how much of a chunk its neighbours repeat",
) -> None:
    """Draw bits per byte by system over the chunks with r(C) <= alpha.

    Args:
      path: of the image.
      alphas: shares from 0 to 1, rising.
      bits_per_byte: system -> one figure an alpha.
      num_chunks: how many are behind each figure; they stand under the alphas.
      title: above the plot.

    Raises:
      UserError: the image cannot be written.
    """
    with canvas(path, 6.4, 3.8) as (figure, axes):
        for number, (name, values) in enumerate(bits_per_byte.items()):
            colour = PALETTE[number % len(PALETTE)]
            axes.plot(alphas, values, color=colour, marker="o", label=name)
        labels = [
            f"{alpha:.1%}\n{count:,}"
            for alpha, count in zip(alphas, num_chunks, strict=True)
        ]
        axes.set_xticks(list(alphas), labels)
        axes.set(
            xlabel="largest share of a chunk in one of its neighbours; chunks so far",
            ylabel="bits per byte (lower is better)",
            title=title,
        )
        legend_below(figure, *axes.get_legend_handles_labels())


def _series(
    records: Sequence[Mapping[str, Any]], split: str, key: str
) -> tuple[list[int], Sequence[float]]:
    """Steps and values; a figure that was not a number is null and is passed over."""
    of_split = [
        record
        for record in records
        if record.get("split", "train") == split and record.get(key) is not None
    ]
    return [r["step"] for r in of_split], [r[key] for r in of_split]


def _smoothed(values: Sequence[float]) -> np.ndarray:
    """A centred moving average over about 2% of the run, shorter at its ends."""
    width = max(3, len(values) // 50)
    ones = np.convolve(np.ones(len(values)), np.ones(width), "same")
    return np.convolve(values, np.ones(width), "same") / ones
