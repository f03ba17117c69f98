"""The memory of a run, to be asked: phrases for each blank, and where they stand."""

import dataclasses
import pathlib
from typing import Any

from rlm_jax.data.question_files import BLANK
from rlm_jax.errors import UserError
from rlm_jax.report import blanks
from rlm_jax.report.blanks import Candidate
from rlm_jax.retrievers import encoder_towers, token_memory
from rlm_jax.retrievers.memory_parts import MemoryConfig
from rlm_jax.retrievers.phrase_answers import Answer, FillConfig, PhraseFiller
from rlm_jax.storage import sealed

FILE = "memory.json"
_KINDS = {
    **dict.fromkeys(("memory", "fill"), dict[str, Any]),
    **{"folder": str, "masks": int, "scale": float},
}
_REMEDY = "run experiments.npm there again"


def keep(workdir: pathlib.Path, filler: PhraseFiller) -> None:
    """Writes down which memory of a workdir is asked, and how, for `load`."""
    memory = filler.memory
    told = {
        "folder": str(memory.folder.relative_to(workdir)),
        "memory": dataclasses.asdict(memory.config),
        "fill": dataclasses.asdict(filler.config),
        "masks": filler.masks,
        "scale": filler.scale,
    }
    sealed.write(workdir / FILE, told)


def load(workdir: pathlib.Path) -> PhraseFiller:
    """What fills blanks from the memory of a run, with documents added or removed.

    Raises:
      UserError: no run of NPM has ended in the workdir, or its memory is damaged.
    """
    folder, config, fill, options = kept(workdir)
    tower = encoder_towers.load(workdir / "encoder")
    memory = token_memory.open_memory(workdir / folder, tower, config)
    return PhraseFiller(memory, fill, **options)


def kept(
    workdir: pathlib.Path,
) -> tuple[str, MemoryConfig, FillConfig, dict[str, Any]]:
    """What `keep` wrote: the memory's folder, how it is kept, how blanks are filled.

    Raises:
      UserError: no run of NPM has ended in the workdir, or the file is damaged.
    """
    try:
        told = sealed.read(workdir / FILE, _KINDS, remedy=_REMEDY, older=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"There is no memory to ask in {workdir}; name the workdir of a run of "
            "experiments.npm that has ended."
        ) from error
    at = workdir / FILE, _REMEDY
    config = sealed.made_of(MemoryConfig, told["memory"], *at)
    fill = sealed.made_of(FillConfig, told["fill"], *at)
    return told["folder"], config, fill, {n: told[n] for n in ("masks", "scale")}


@dataclasses.dataclass(frozen=True)
class Filled:
    """A question, and the best phrases for each of its blanks."""

    question: str
    blanks: list[list[Answer]]
    filler: PhraseFiller

    @property
    def statement(self) -> str:
        """The question with the best phrase in every blank."""
        pieces = self.question.split(BLANK)
        texts = [blank[0].text if blank else BLANK for blank in self.blanks]
        filled = zip(pieces, [*texts, ""], strict=True)
        return "".join(piece + text for piece, text in filled)

    def record(self) -> dict[str, Any]:
        """Plain JSON."""
        found = [
            [
                {
                    "phrase": answer.text,
                    "score": round(answer.score, 4),
                    "passage": self.filler.memory.passage(answer.passage).id,
                    "context": self._context(answer),
                }
                for answer in blank
            ]
            for blank in self.blanks
        ]
        return {"question": self.question, "answer": self.statement, "blanks": found}

    def text(self, lines: int) -> str:
        """For the terminal; ``lines`` phrases of each blank."""
        shown = [f"\n{self.statement}"]
        for number, blank in enumerate(self.record()["blanks"], 1):
            shown.append(f"blank {number}:" + " (nothing)" * (not blank))
            for told in blank[:lines]:
                shown.append(
                    f"  {told['score']:.3f}  {told['phrase']}   [{told['passage']}] "
                    f"{told['context']}"
                )
        return "\n".join(shown) + "\n"

    def draw(self, path: str) -> None:
        """A picture of the phrases and their places."""
        found = [
            [
                Candidate(x["phrase"], x["score"], x["context"], x["passage"])
                for x in blank
            ]
            for blank in self.record()["blanks"]
        ]
        blanks.draw(path, question=self.question, blanks=found)

    def _context(self, answer: Answer, around: int = 12) -> str:
        """The phrase in its passage, a few tokens on each side."""
        memory = self.filler.memory
        low, high = memory.bounds[answer.passage : answer.passage + 2].tolist()
        end = answer.entry + answer.size
        ids = memory.tokens
        before = memory.tokenizer.decode(
            ids[max(low, answer.entry - around) : answer.entry]
        )
        after = memory.tokenizer.decode(ids[end : min(high, end + around)])
        return f"{before} *{answer.text}* {after}".strip()


class Asking:
    """A run's memory, asked question by question."""

    def __init__(
        self, workdir: pathlib.Path, *, passages: int, count: int, restricted: bool
    ):
        """Opens the memory.

        Args:
          workdir: of a run of NPM.
          passages: that BM25 finds, where the search is restricted; 0: as the run has.
          count: phrases of each blank.
          restricted: whether only what BM25 finds is searched.
        """
        filler = load(workdir)
        if passages:
            fill = dataclasses.replace(filler.config, passages=passages)
            options = {"masks": filler.masks, "scale": filler.scale}
            filler = PhraseFiller(filler.memory, fill, **options)
        self.filler, self.count, self.restricted = filler, count, restricted

    def describe(self) -> str:
        """One line about what is asked."""
        memory = self.filler.memory
        return (
            f"{memory.num_tokens:,} tokens of {int(memory.alive.sum()):,} passages; "
            f"write {BLANK} where a phrase shall stand"
        )

    def answer(self, question: str) -> Filled:
        """The phrases for the blanks of one question."""
        (found,) = self.filler([question], restricted=self.restricted, count=self.count)
        return Filled(question, found, self.filler)
