"""Ask a collection: type a question, see the passages with their scores.

python -m experiments.search --workdir runs/dpr

The workdir is that of a run of experiments.bm25, .dpr, .contriever or .encode. An empty
line ends; questions may come through a pipe, one a line.
"""

import dataclasses
import sys

from rlm_jax import terminal
from rlm_jax.errors import UserError
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.retrievers import passage_search, published_index


@dataclasses.dataclass
class Config:
    """How much is shown."""

    k: int = 5  # passages a question
    lines: int = 3  # of a passage


@recipe("search")
def run(config: Config, here: Run) -> None:
    """Answer until there are no more questions."""
    if min(config.k, config.lines) < 1:
        raise UserError("k and lines must be at least 1 to show anything.")
    passages, search = published_index.open_run(here.workdir)
    terminal.say(f"{len(passages):,} passages of {passages.name}; an empty line ends")
    if here.dry_run:
        return
    for question in terminal.asked():
        found = search([question], config.k)
        rows = [
            (score, passages[row])
            for score, row in zip(
                found.scores[0].tolist(), found.ids[0].tolist(), strict=True
            )
            if row >= 0
        ]
        sys.stdout.write(passage_search.shown(rows, config.lines))
        sys.stdout.flush()
