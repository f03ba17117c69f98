"""Facts that no training text holds: added to a memory, asked, removed, asked again.

A parametric model would have to be trained anew to know them, and again to forget them.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from rlm_jax import terminal
from rlm_jax.data import cloze_questions
from rlm_jax.data import passages as passages_lib
from rlm_jax.data import questions as questions_lib
from rlm_jax.data.cloze_tokens import ClozeTokenizer
from rlm_jax.data.passages import Passage
from rlm_jax.data.question_files import BLANK, Question
from rlm_jax.errors import UserError
from rlm_jax.evaluate import exact_match
from rlm_jax.retrievers.phrase_answers import NOTHING, PhraseFiller
from rlm_jax.retrievers.token_memory import TokenMemory


@dataclasses.dataclass
class AddedConfig:
    """Documents of new facts, each with its subject as title, and questions of them."""

    passages: str = ""  # as passages.load, such as google_re:FOLDER; empty: none
    questions: str = ""  # as questions.load; empty: as passages
    split: str = "test"
    count: int = 100  # questions, at most


class Added(NamedTuple):
    """New documents, and a question about each fact."""

    documents: list[Passage]
    questions: list[Question]


Answer = Callable[[Sequence[str]], Sequence[str]]
"""Questions with one blank -> what fills it."""


def load(
    config: AddedConfig, known: Sequence[np.ndarray], tokenizer: ClozeTokenizer
) -> Added:
    """The questions whose subject, the title of their document, is in no known text.

    Args:
      known: tokens int [M] of each text that no fact may be known from.

    Raises:
      UserError: there is no such question.
    """
    if not config.passages:
        return Added([], [])
    passages = passages_lib.load(config.passages)
    asked = questions_lib.load(config.questions or config.passages, config.split)
    rows = questions_lib.resolve(asked, passages).positives
    documents, kept = {}, []
    for question, own in zip(asked.questions, rows, strict=True):
        if len(kept) == config.count:
            break
        found = [passages[int(row)] for row in own]
        if (
            question.text.count(BLANK) == 1
            and found
            and cloze_questions.written(question, tokenizer)
            and not any(_known(passage, known, tokenizer) for passage in found)
        ):
            kept.append(question)
            documents |= {passage.id: passage for passage in found}
    if not kept:
        raise UserError(
            f"No question of {config.questions or config.passages} is about a document "
            "whose title stands in no text of training; name other facts to add."
        )
    terminal.say(f"{len(kept):,} facts are added, in {len(documents):,} documents")
    return Added(list(documents.values()), kept)


def _known(passage: Passage, known, tokenizer: ClozeTokenizer) -> bool:
    """Whether a text holds the subject; true too where that cannot be told."""
    try:
        subject = tokenizer.phrase(passage.title)
    except UserError:
        return True
    return any(cloze_questions.occurrences(text, subject) for text in known)


def measure(
    added: Added,
    memory: TokenMemory,
    filler_of: Callable[[TokenMemory], PhraseFiller],
    folder: pathlib.Path,
    *,
    protocol: exact_match.Protocol,
    others: dict[str, Answer],
) -> dict[str, dict[str, float]]:
    """Exact match before, while and after the documents are in the memory.

    Args:
      memory: whose folder stays as it is.
      filler_of: how blanks are filled from a memory.
      folder: for the documents that are added; what is there is put away.
      others: what answers the questions without a memory, by name.

    Returns:
      "open" and "restricted" -> "exact_match_before", "exact_match_added",
      "exact_match_removed", and "removed_retrieved": how many tokens (or, restricted,
      passages) of removed documents any search found; each of ``others`` ->
      "exact_match_added".
    """
    asked = [question.text for question in added.questions]
    answers = [question.answers for question in added.questions]

    def judged(said: Sequence[str]) -> float:
        figures = exact_match.judge(said, answers, protocol=protocol)
        return figures.means["exact_match"]

    own = memory.overlay(folder)
    figures: dict[str, dict[str, float]] = {"open": {}, "restricted": {}}

    def ask(when: str) -> PhraseFiller:
        filler = filler_of(own)
        for name, found in figures.items():
            filled = filler(asked, restricted=name == "restricted")
            said = [next(iter(blanks[0]), NOTHING).text for blanks in filled]
            found[f"exact_match_{when}"] = judged(said)
        return filler

    ask("before")
    own.add(added.documents)
    ask("added")
    own.remove([passage.id for passage in added.documents])
    filler = ask("removed")
    vectors = np.concatenate(
        [x.reshape(-1, x.shape[-1]) for x in filler.vectors(asked)]
    )
    found = own.search(vectors, filler.config.k).ids
    tokens = own.passage_of(found[found >= 0])
    texts = [text.replace(BLANK, " ") for text in asked]
    passages = own.by_words(texts, filler.config.passages)
    for name, numbers in (("open", tokens), ("restricted", passages[passages >= 0])):
        figures[name]["removed_retrieved"] = float((~own.alive[numbers]).sum())
    for name, answer in others.items():
        figures[name] = {"exact_match_added": judged(answer(asked))}
    return figures
