"""Ask a collection: type a question, see the passages with their scores.

The workdir is that of a run of BM25, DPR, Contriever or an encoding. An empty line
ends; questions may come through a pipe, one a line.
"""

import dataclasses
import sys

from rlm_jax import terminal
from rlm_jax.errors import UserError
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.retrievers import passage_list, published_index


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
        (scores,), (ids,) = search([question], config.k)
        sys.stdout.write(passage_list.listed(passages, scores, ids, config.lines))
        sys.stdout.flush()
