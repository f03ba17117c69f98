"""Reports of several runs as rows of one table."""

import collections
import pathlib
from typing import NamedTuple

from rlm_jax.report import report, tables


class Named(NamedTuple):
    """A run's row, and what its figures are of."""

    row: tables.Row
    about: str  # the corpus or collection, and the split


def rows(runs: list[str]) -> list[Named]:
    """The rows of some workdirs, each given as WORKDIR or NAME=WORKDIR.

    Runs of one system that are given no names are told apart by their workdirs.
    """
    found = []
    for run in runs:
        name, workdir = _taken_apart(run)
        result = report.read(pathlib.Path(workdir) / "report.json")
        of_text = "perplexity" in result["metrics"]
        row = (tables.row_of_text if of_text else tables.row_of_ranking)(result)
        found.append((name, workdir, row, _about(result)))
    systems = collections.Counter(row.system for name, _, row, _ in found if not name)
    named = []
    for name, workdir, row, about in found:
        if not name and systems[row.system] > 1:
            name = f"{row.system} ({workdir})"
        named.append(Named(row._replace(system=name) if name else row, about))
    return named


def _taken_apart(run: str) -> tuple[str, str]:
    """(name, workdir); "=" may stand in either, and what there is decides."""
    ways = [("", run)]
    ways += [(run[:at], run[at + 1 :]) for at, x in enumerate(run) if x == "="]
    there = (way for way in ways if (pathlib.Path(way[1]) / "report.json").exists())
    return next(there, ways[-1])


def _about(result: report.Report) -> str:
    protocol = result.get("protocol", {})
    split = protocol.get("split")
    about = f"{result['corpus']}, {split} split" if split else str(result["corpus"])
    told = [f"{protocol[n]:,} {n}" for n in ("tokens",) if n in protocol]
    return ", ".join([about, *told])
