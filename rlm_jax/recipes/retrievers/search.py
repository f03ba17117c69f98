"""Ask a collection: type a question, see the passages with their scores.

python -m experiments.search --workdir runs/dpr

The workdir is that of a run of experiments.bm25, .dpr, .contriever or .encode. An empty
line ends; questions may come through a pipe, one a line.
"""

import dataclasses
import shutil
import sys
import textwrap

from rlm_jax import terminal
from rlm_jax.data.passages import Passage
from rlm_jax.errors import UserError
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.retrievers import published_index


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
        sys.stdout.write(shown(rows, config.lines))
        sys.stdout.flush()


def shown(found: list[tuple[float, Passage]], lines: int) -> str:
    """The passages as text, best first, in the terminal's width."""
    if not found:
        return "\nnothing was found; BM25 needs a word in common\n\n"
    width = min(100, shutil.get_terminal_size().columns)
    blocks = []
    for number, (score, passage) in enumerate(found, 1):
        head = f"{number:2d}. {score:.3f}  {passage.id}"
        if passage.title:
            head += f"  ·  {passage.title}"
        wrapped = textwrap.wrap(" ".join(passage.text.split()), width - 4)
        if len(wrapped) > lines:
            wrapped = [*wrapped[: lines - 1], f"{wrapped[lines - 1][: width - 6]} …"]
        blocks.append("\n".join([head, *(f"    {line}" for line in wrapped)]))
    return "\n" + "\n".join(blocks) + "\n\n"
