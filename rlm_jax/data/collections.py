"""A collection: passages, and questions about them by which a retriever is judged."""

import dataclasses
from typing import NamedTuple

from rlm_jax import terminal
from rlm_jax.data import passages as passages_lib
from rlm_jax.data import questions as questions_lib
from rlm_jax.data.passages import Passages
from rlm_jax.data.questions import Questions
from rlm_jax.errors import UserError


@dataclasses.dataclass
class CollectionConfig:
    """Which passages, and which questions are asked of them."""

    # stdlib, beir:FOLDER, dpr:FILE, jsonl:PATH, squad:FILE or trex:PATH
    passages: str = "stdlib"
    questions: str = ""  # likewise; empty: as passages
    split: str = "test"  # of the questions; empty, where they may be left out: none


class Collection(NamedTuple):
    """Passages, with questions about them."""

    passages: Passages
    questions: Questions

    @property
    def fingerprint(self) -> str:
        """Of passages and questions together."""
        return f"{self.passages.fingerprint[:16]}-{self.questions.fingerprint[:16]}"

    @property
    def texts(self) -> list[str]:
        """The questions as text."""
        return [question.text for question in self.questions.questions]


def load(config: CollectionConfig) -> Collection:
    """Passages and questions by name; each is read once and cached."""
    name = config.questions or config.passages
    asked = questions_lib.load(name, config.split)
    if not asked.relevance and not any(q.answers for q in asked.questions):
        raise UserError(
            f"The questions {name} have neither passages that answer them nor answers; "
            "name others to judge by."
        )
    return Collection(passages_lib.load(config.passages), asked)


def describe(collection: Collection) -> None:
    """What a dry run shows of a collection."""
    lengths = collection.passages.lengths()
    terminal.say(
        f"{len(collection.passages):,} passages of {lengths.mean():,.0f} bytes on "
        f"average, {lengths.max():,} at most"
    )
    terminal.say(f"{len(collection.questions):,} questions")
