"""Closed sets: which label's words a memory, or the twin, puts into the blank."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlm_jax import terminal
from rlm_jax.data import closed_sets
from rlm_jax.data.closed_sets import ClosedSet
from rlm_jax.data.cloze_tokens import ClozeTokenizer
from rlm_jax.retrievers.phrase_answers import FillConfig, Labels, verbalisers, writable


@dataclasses.dataclass
class ClosedSetsConfig:
    """Which tasks, and how labels are scored; the numbers are the paper's."""

    names: tuple[str, ...] = ()  # as closed_sets.load, such as sst2:FOLDER
    count: int = 500  # texts of each; 0: all
    k: int = 4096  # tokens that each mask finds
    temperature: float = 5.0  # of the scores
    longest: int = 3  # tokens of a word that stands for a label


Scorer = Callable[[Sequence[str], Labels], np.ndarray]
"""(texts with a blank, labels with their words) -> scores [N, Y]."""


def fill(config: ClosedSetsConfig, otherwise: FillConfig) -> FillConfig:
    """How blanks are filled there."""
    return dataclasses.replace(
        otherwise, k=config.k, temperature=config.temperature, longest=config.longest
    )


def load(config: ClosedSetsConfig, tokenizer: ClozeTokenizer) -> list[ClosedSet]:
    """The tasks, without words that the tokenizer cannot write, whose number is told.

    Raises:
      UserError: as `closed_sets.load`, or a label has no words left.
    """
    tasks = []
    for name in config.names:
        task = closed_sets.load(name, count=config.count)
        words = writable(task.words, tokenizer)
        lost = sum(map(len, task.words.values())) - sum(map(len, words.values()))
        if lost:
            terminal.say(f"{lost:,} words of {name} cannot be written and are left out")
        verbalisers(words, tokenizer)  # every label has some
        tasks.append(task._replace(words=words))
    return tasks


def accuracies(tasks: Sequence[ClosedSet], score: Scorer) -> dict[str, float]:
    """ "accuracy_<task>" -> the share of texts whose label has the largest score.

    A text for which no label's words were found has no label, and is wrong.
    """
    found = {}
    for task in tasks:
        scores, labels = score(task.texts, task.words), list(task.words)
        said = [
            labels[best] if row[best] > 0 else None
            for row, best in zip(scores, scores.argmax(1), strict=True)
        ]
        right = [a == b for a, b in zip(said, task.labels, strict=True)]
        found[f"accuracy_{task.name}"] = float(np.mean(right))
    return found


def majorities(tasks: Sequence[ClosedSet]) -> Mapping[str, float]:
    """The accuracy of the commonest label of each task."""
    return {
        task.name: max(Counter(task.labels).values()) / len(task.labels)
        for task in tasks
    }
