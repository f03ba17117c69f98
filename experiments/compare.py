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
from rlm_jax.report import plots, report, tables


def rows(runs: list[str]) -> list[tables.Row]:
    """The rows of some workdirs, each given as WORKDIR or NAME=WORKDIR."""
    found = []
    for run in runs:
        name, _, workdir = run.rpartition("=")
        row = tables.row_of_text(report.read(pathlib.Path(workdir) / "report.json"))
        found.append(row._replace(system=name) if name else row)
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("experiments.compare", description=__doc__)
    parser.add_argument("runs", nargs="+", help="WORKDIR or NAME=WORKDIR")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--plot", type=pathlib.Path)
    parser.add_argument("--metric", default="perplexity")
    given = parser.parse_args(arguments)
    found = rows(given.runs)
    draw = tables.markdown if given.markdown else tables.terminal
    terminal.write(draw(found, metric=given.metric) + "\n")
    if given.plot:
        plots.control_bars(given.plot, found, metric=given.metric)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        terminal.say(f"error: {error}")
        sys.exit(1)
