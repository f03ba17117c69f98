"""Do rules find what there is to know? Salient spans against the objects of T-REx.

    python -m benchmarks.salient_spans --trex data/lama

Each sentence of LAMA's T-REx says where the object of a fact stands. Told are the share
of these places that are a salient span, word for word, that lie inside of one, and that
one touches; the first again for objects with a capital or a figure, since such rules
cannot find jazz or midfielder; how many spans and how much of a sentence rules take;
and what names alone, and a rule of all capitalised runs, would find.
"""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record
from rlm_jax.data import files, salient_spans
from rlm_jax.data.question_files import BLANK
from rlm_jax.data.salient_spans import Rule, Span

_CAPITALS = re.compile(r"[A-Z][\w’'-]*(?: [A-Z][\w’'-]*)*")


def capitals(text: str) -> list[Span]:
    """Every run of capitalised words: what the casing of a collection improves upon."""
    return [match.span() for match in _CAPITALS.finditer(text)]


def places(paths: Sequence[Path]) -> Iterator[tuple[str, Span]]:
    """(sentence, where its object stands), each sentence with each object once."""
    seen = set()
    for path in paths:
        for _, fact in files.json_records(path):
            for evidence in fact.get("evidences") or [fact]:
                masked, surface = evidence["masked_sentence"], evidence["obj_surface"]
                if masked.count(BLANK) != 1:
                    continue
                start = masked.index(BLANK)
                found = masked.replace(BLANK, surface), (start, start + len(surface))
                if found not in seen:
                    seen.add(found)
                    yield found


def measure(told: Sequence[tuple[str, Span]], rules: Sequence[Rule]) -> dict[str, Any]:
    exact = inside = touched = spans = characters = marked = exact_marked = 0
    for text, (start, stop) in told:
        found = salient_spans.salient(text, rules)
        exact += (start, stop) in found
        inside += any(a <= start and stop <= b for a, b in found)
        touched += any(a < stop and start < b for a, b in found)
        if not text[start].islower():
            marked += 1
            exact_marked += (start, stop) in found
        spans += len(found)
        characters += sum(b - a for a, b in found)
    count = len(told)
    return {
        "exact": exact / count,
        "inside": inside / count,
        "touched": touched / count,
        "exact_of_marked": exact_marked / max(marked, 1),
        "share_marked": marked / count,
        "spans_a_sentence": spans / count,
        "share_of_characters": characters / sum(len(text) for text, _ in told),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.salient_spans")
    parser.add_argument("--trex", type=Path, required=True, help="LAMA's folder")
    parser.add_argument("--out", type=Path, help="folder of the figures")
    arguments = parser.parse_args()
    paths = sorted(arguments.trex.glob("**/*trex*28*.jsonl*"))
    paths = paths or sorted((arguments.trex / "TREx").glob("*.jsonl*"))
    told = list(places(paths))
    if not told:
        parser.error(f"there are no facts of T-REx in {arguments.trex}")
    counted = salient_spans.casing(dict.fromkeys(text for text, _ in told))
    tried = {
        "rules": (
            salient_spans.dates,
            salient_spans.names(counted),
            salient_spans.numbers,
        ),
        "names": (salient_spans.names(counted),),
        "capitals": (capitals,),
    }
    figures = {name: measure(told, rules) for name, rules in tried.items()}
    result = record.surroundings() | {"places": len(told)} | figures
    path = (arguments.out or record.RESULTS) / "salient_spans.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1), flush=True)


if __name__ == "__main__":
    main()
