"""Tables of systems against their controls, for the terminal and in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Metric(NamedTuple):
    """How a metric is shown."""

    label: str
    digits: int
    lower_is_better: bool


METRICS = {
    "perplexity": Metric("perplexity", 2, True),
    "word_perplexity": Metric("per word", 1, True),
    "bits_per_byte": Metric("bits/byte", 3, True),
    "ndcg@10": Metric("nDCG@10", 3, False),
    "recall@5": Metric("recall@5", 3, False),
    "recall@20": Metric("recall@20", 3, False),
    "mrr@10": Metric("MRR@10", 3, False),
    "answer_recall@20": Metric("answer@20", 3, False),
    "exact_match": Metric("exact match", 3, False),
    "f1": Metric("F1", 3, False),
}

CONTROLS = ("off", "init", "bm25", "shuffled", "foreign", "exact", "oracle")
"""The order in which controls stand; any other follows them."""

ABSENT = "–"


class Row(NamedTuple):
    """One system: its figures and the same figures under each control."""

    system: str
    metrics: Mapping[str, float]
    controls: Mapping[str, Mapping[str, float]]


class Table(NamedTuple):
    """Cells as text: the first column is words, the others are numbers."""

    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    note: str


def row_of(report: Mapping[str, Any]) -> Row:
    """The row of one report.json."""
    return Row(report["system"], report["metrics"], report["controls"])


def row_of_text(report: Mapping[str, Any]) -> Row:
    """The row of a language model's report.json, without figures that say nothing.

    Where tokens are words, the perplexity per word is the one per token; and program
    text, which the embedded corpus is, has no words to speak of.
    """
    row = row_of(report)
    if report["corpus"] != "stdlib" and (
        report.get("protocol", {}).get("tokenizer") != "word"
    ):
        return row
    shown = {name: x for name, x in row.metrics.items() if name != "word_perplexity"}
    return row._replace(metrics=shown)


def row_of_ranking(report: Mapping[str, Any]) -> Row:
    """The row of a retriever's report.json, of its metrics those in `METRICS`."""
    row = row_of(report)
    known = {name: x for name, x in row.metrics.items() if name in METRICS}
    return row._replace(metrics=known or row.metrics)


def curve_lines(
    alphas: Sequence[float],
    figures: Mapping[str, Sequence[float]],
    counts: Sequence[int],
) -> str:
    """A leakage curve as lines of text, one for each alpha.

    Args:
      alphas: largest shares of a chunk that its neighbours hold.
      figures: system -> bits per byte at each alpha.
      counts: chunks behind each.
    """
    lines = ["bits per byte of the chunks with r(C) <= alpha:"]
    for i, alpha in enumerate(alphas):
        each = ", ".join(f"{name} {values[i]:.3f}" for name, values in figures.items())
        lines.append(f"  {alpha:6.1%} ({counts[i]:,} chunks): {each}")
    return "\n".join(lines)


def metric_style(name: str) -> Metric:
    """How a metric is shown; an unknown one by its own name, larger being better."""
    return METRICS.get(name, Metric(name, 3, False))


def control_names(rows: Sequence[Row]) -> list[str]:
    """The controls that any row has, in the order of `CONTROLS`."""
    names = dict.fromkeys(name for row in rows for name in row.controls)
    known = [name for name in CONTROLS if name in names]
    return known + [name for name in names if name not in CONTROLS]


def metric_names(rows: Sequence[Row]) -> list[str]:
    """The metrics that any row has, in the order of `METRICS`."""
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    known = [name for name in METRICS if name in names]
    return known + [name for name in names if name not in METRICS]


def table(rows: Sequence[Row], *, metric: str | None = None) -> Table:
    """Rows are systems; columns their metrics, then one metric under each control.

    A control's cell is its figure and the ratio control / system. For a metric that is
    better when lower, a ratio above 1 is what real retrieval gains over the control.

    Args:
      rows: the systems, in the order in which they shall stand.
      metric: the one shown under the controls; the first of `metric_names` by default.
    """
    metrics, controls = metric_names(rows), control_names(rows)
    metric = metric or (metrics[0] if metrics else "")
    style = metric_style(metric)
    head = (
        "system",
        *(metric_style(name).label for name in metrics),
        *controls,
    )
    body = tuple(
        (
            row.system,
            *(_figure(row.metrics.get(name), name) for name in metrics),
            *(_control(row, name, metric) for name in controls),
        )
        for row in rows
    )
    note = ""
    if controls:
        better = "above" if style.lower_is_better else "below"
        note = (
            f"Controls: {style.label}, and × = control / system "
            f"({better} ×1: better than the control)."
        )
    return Table(head, body, note)


def terminal(rows: Sequence[Row], *, metric: str | None = None, title: str = "") -> str:
    """The table as aligned plain text with rules; arguments as in `table`."""
    cells = table(rows, metric=metric)
    widths = _widths(cells)
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    lines = [title, ""] if title else []
    lines += [_aligned(cells.head, widths), rule]
    lines += [_aligned(line, widths) for line in cells.body]
    lines += [rule]
    lines += [cells.note] if cells.note else []
    return "\n".join(lines) + "\n"


def markdown(rows: Sequence[Row], *, metric: str | None = None) -> str:
    """The table in Markdown, aligned in its source too; arguments as in `table`."""
    cells = table(rows, metric=metric)
    cells = Table(
        cells.head,
        tuple((_escaped(line[0]), *line[1:]) for line in cells.body),
        cells.note,
    )
    widths = _widths(cells)
    dashes = [
        "-" * widths[0],
        *("-" * (width - 1) + ":" for width in widths[1:]),
    ]
    lines = [
        "| " + " | ".join(_padded(line, widths)) + " |"
        for line in (cells.head, dashes, *cells.body)
    ]
    if cells.note:
        lines += ["", cells.note]
    return "\n".join(lines) + "\n"


def _figure(value: float | None, metric: str) -> str:
    if value is None:
        return ABSENT
    return f"{value:,.{metric_style(metric).digits}f}"


def _control(row: Row, control: str, metric: str) -> str:
    value = row.controls.get(control, {}).get(metric)
    own = row.metrics.get(metric)
    if value is None or not own:
        return _figure(value, metric)
    return f"{_figure(value, metric)} ×{value / own:.2f}"


def _widths(cells: Table) -> list[int]:
    columns = zip(cells.head, *cells.body, strict=True)
    return [max(3, *map(len, column)) for column in columns]


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(line, widths, strict=True)
    return [
        first[0].ljust(first[1]),
        *(cell.rjust(width) for cell, width in others),
    ]


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(_padded(line, widths)).rstrip()


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
