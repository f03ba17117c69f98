"""Questions with answers, and the passages in which a reader looks for them."""

import dataclasses
from typing import Literal

import numpy as np

from rlm_jax import terminal
from rlm_jax.configuration import check_fields
from rlm_jax.data import names
from rlm_jax.data import passages as passages_lib
from rlm_jax.data import questions as questions_lib
from rlm_jax.data.collections import Collection
from rlm_jax.data.passages import Passages
from rlm_jax.data.question_files import SPLITS, split_of
from rlm_jax.data.questions import Questions
from rlm_jax.errors import UserError
from rlm_jax.storage import cache


@dataclasses.dataclass
class AnsweringConfig:
    """Which questions a reader answers, and from which passages."""

    passages: str = "stdlib"  # as passages.load; empty: those that came with questions
    questions: str = "stdlib_names"  # as questions.load; empty: as passages
    # files: as the files do; titles: a file of one split by its passages' titles
    divide: Literal["files", "titles"] = "files"


def load(config: AnsweringConfig, split: str) -> Collection:
    """The questions of a split with the passages; each is read once and cached.

    With ``divide="titles"`` the questions of a file that has one split are divided
    80/10/10 into train, validation and test by a hash of the title of the passage that
    answers: no article of one split is asked about in another. Questions without such a
    title are in none, and their number is said.

    Raises:
      UserError: what `passages.load` and `questions.load` raise, no name, no question
        with an answer, or, of titles, another split or no title.
    """
    check_fields(config)
    name = config.questions or config.passages
    if not name:
        raise UserError("There are no questions without a name: set questions.")
    asked = questions_lib.load(name, split)
    pool = asked.passages
    if config.passages:
        pool = passages_lib.load(config.passages)
    elif not isinstance(pool, Passages):  # a reader can do without: closed book
        pool = passages_lib.none()
    if config.divide == "titles":
        asked = by_titles(asked, pool, name, split)
    if not any(question.answers for question in asked.questions):
        raise UserError(
            f"Not one question of {name} ({split}) has an answer: name others for a "
            "reader."
        )
    return Collection(pool, asked)


def check_learnable(collection: Collection, batch_size: int) -> None:
    """Before the search: whether a reader can learn from the questions.

    Raises:
      UserError: one has no answer, or they make no batch.
    """
    asked = collection.questions.questions
    for question in asked:
        if not question.answers:
            raise UserError(
                f"The question '{question.id}' has no answer to learn: leave it out of "
                "training."
            )
    if len(asked) < batch_size:
        raise UserError(
            f"There are {len(asked)} questions to learn from, which make no batch of "
            f"{batch_size}: choose another batch size."
        )


def by_titles(asked: Questions, pool: Passages, name: str, split: str) -> Questions:
    """The questions of a split by the title of the best passage that answers.

    Raises:
      UserError: an unknown split, a name that has splits already, or no title.
    """
    if split not in SPLITS:
        raise UserError(
            f"There is no split '{split}' by titles: choose one of {', '.join(SPLITS)}."
        )
    with_splits = "stdlib", "stdlib_names", "beir", "trex", "google_re"
    if names.parse(name)[0] in with_splits or "{split}" in name:
        raise UserError(
            f"The questions {name} have splits already: set divide to files."
        )
    best = [
        max(grades, key=lambda id_: grades[id_]) if grades else ""
        for grades in (asked.relevance.get(q.id, {}) for q in asked.questions)
    ]
    rows = pool.rows_of(best)
    titles = {row: pool[row].title for row in np.unique(rows[rows >= 0]).tolist()}
    of_question = [titles.get(row, "") for row in rows.tolist()]
    missing = of_question.count("")
    if missing == len(of_question):
        raise UserError(
            f"Not one question of {name} has a passage with a title that answers it in "
            f"{pool.name}: set divide to files, or name the questions' own passages."
        )
    if missing:
        terminal.say(f"{missing:,} questions of {name} have no passage with a title")
    kept = [
        question
        for question, title in zip(asked.questions, of_question, strict=True)
        if title and split_of(title) == split
    ]
    if not kept:
        raise UserError(
            f"No title of {pool.name} falls into the split {split}: set divide to "
            "files, or give more articles."
        )
    return dataclasses.replace(
        asked,
        questions=tuple(kept),
        relevance={q.id: asked.relevance[q.id] for q in kept},
        given={q.id: asked.given[q.id] for q in kept if q.id in asked.given},
        fingerprint=cache.fingerprint(
            asked.fingerprint, "titles", split, pool.fingerprint
        ),
    )
