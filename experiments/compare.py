"""Reports of several runs in one table and one plot.

    python -m experiments.compare runs/lm runs/knn_lm runs/trime

prints the table for the terminal and, with ``--markdown``, for a page; ``--plot=PATH``
draws perplexity by system and control. ``NAME=WORKDIR`` gives a run another name.
"""

import argparse
import pathlib
import sys

from rlm_jax import terminal
from rlm_jax.errors import UserError
from rlm_jax.report import plots, tables
from rlm_jax.report.compared import rows


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("experiments.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", help="WORKDIR or NAME=WORKDIR")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--plot", type=pathlib.Path)
    parser.add_argument("--metric", help="the one under the controls; perplexity")
    given = parser.parse_args(arguments)
    found = rows(given.runs)
    draw = tables.markdown if given.markdown else tables.terminal
    groups: dict[str, list[tables.Row]] = {}
    for row, about in found:
        groups.setdefault(about, []).append(row)
    if len(groups) > 1:
        terminal.say(
            f"note: the runs are of {len(groups)} texts or collections, whose figures "
            "cannot be compared; each has a table of its own"
        )
    if given.plot and len(groups) > 1:
        raise UserError(
            "One plot holds runs on one text; give those of one, or no --plot."
        )
    for about, group in groups.items():
        of_text = any("perplexity" in row.metrics for row in group)
        metric = given.metric or ("perplexity" if of_text else None)
        table = draw(group, metric=metric)
        terminal.write(f"{about}\n\n{table}\n" if len(groups) > 1 else f"{table}\n")
        if given.plot:
            shown = metric or tables.metric_names(group)[0]
            plots.control_bars(given.plot, group, metric=shown)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        terminal.say(f"error: {error}")
        sys.exit(1)
