"""The figures of a campaign: counted, kept beside the benchmarks', told in the page."""

import collections
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import record
from tests.faults.names import BELOW, KINDS, SYSTEMS

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = record.RESULTS / "faults.json"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"

OUTCOMES = ("held", "below", "lost", "silent", "traceback", "hang")


def outcome(told: str, faults: Sequence[str] = ()) -> str:
    """The class of what a try told: empty if nothing was lost."""
    if not told:
        return "below" if faults and faults[-1].endswith(BELOW) else "held"
    if "traceback" in told:
        return "traceback"
    if "hang" in told:
        return "hang"
    return "silent" if told.startswith("silent") else "lost"


def figures(tries: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """Tries and outcomes by kind and system, and where they were counted."""
    counted: dict[str, dict[str, dict[str, int]]] = {}
    for kind in KINDS:
        for system in SYSTEMS:
            ours = [x for x in tries if (x["kind"], x["system"]) == (kind, system)]
            if ours:
                counts = collections.Counter(
                    outcome(x["told"], x["faults"]) for x in ours
                )
                counted.setdefault(kind, {})[system] = {
                    "tries": len(ours),
                    "faults": sum(len(x["faults"]) for x in ours),
                    **{name: counts[name] for name in OUTCOMES if counts[name]},
                }
    return {
        "command": f"python -m tests.faults --seed {seed}",
        **record.surroundings(),
        "seed": seed,
        "seconds": round(sum(x["seconds"] for x in tries)),
        "processor_seconds": round(sum(x["processor"] for x in tries)),
        "commits": sorted({x["commit"] for x in tries}),
        "counted": counted,
        "failed": [
            {name: x[name] for name in ("kind", "system", "number", "told")}
            for x in tries
            if x["told"]
        ],
    }


def table(found: Mapping[str, Any]) -> str:
    """A table of kinds of faults: tries, systems, and what was lost."""
    heads = ("fault", "systems", "tries", "faults", *OUTCOMES[1:])
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    total = collections.Counter()
    for kind, systems in found["counted"].items():
        counts = collections.Counter()
        for numbers in systems.values():
            counts.update(numbers)
        total.update(counts)
        lines.append(_row(KINDS[kind], str(len(systems)), counts))
    lines.append(_row("all", "", total))
    versions = found["versions"]
    told = ", ".join(f"{name} {versions[name]}" for name in ("python", "jax"))
    commits = found["commits"]
    state = f"commit{'s' * (len(commits) > 1)} {', '.join(x[:7] for x in commits)}"
    state += " with changes" if found["modified"] else ""
    lines += [
        "",
        f"`make test-faults`, seed {found['seed']}, {found['date'][:10]}, {state}; "
        f"{told}; {found['device']}; {found['seconds'] / 60:.0f} minutes, in which its "
        f"runs had {found['processor_seconds'] / 60:.0f} of a processor.",
        "",
        "By system (faults, and how many tries did not hold):",
        "",
    ]
    kinds = list(found["counted"])
    lines += [
        f"| system | {' | '.join(kinds)} |",
        "|---|" + "---:|" * len(kinds),
    ]
    for system in SYSTEMS:
        cells = []
        for kind in kinds:
            numbers = found["counted"][kind].get(system)
            if numbers is None:
                cells.append("–")
                continue
            bad = sum(numbers.get(name, 0) for name in OUTCOMES[2:])
            cells.append(f"{numbers['faults']}, {bad}")
        if set(cells) != {"–"}:
            lines.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _row(name: str, systems: str, counts: Mapping[str, int]) -> str:
    numbers = [str(counts.get(x, 0)) for x in ("tries", "faults", *OUTCOMES[1:])]
    return f"| {' | '.join([name, systems, *numbers])} |"


def write(found: Mapping[str, Any], page: pathlib.Path, results: pathlib.Path) -> None:
    """Puts the figures between the marks of the page, and into a file of their own.

    Raises:
      ValueError: the page has no such marks.
    """
    text = page.read_text(encoding="utf-8")
    form = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    if not form.search(text):
        raise ValueError(f"{page} has no {BEGIN} and {END}")
    section = f"{BEGIN}\n\n{table(found)}\n\n{END}"
    page.write_text(form.sub(lambda _: section, text), encoding="utf-8")
    results.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
