"""What a trained reader answers, and what its answers are judged beside."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.data import passage_tokens, reader_batches
from rlm_jax.data.collections import Collection
from rlm_jax.data.passages import Passage
from rlm_jax.data.problems import Lengths
from rlm_jax.data.question_files import Question
from rlm_jax.errors import UserError
from rlm_jax.evaluate import answers, controls, exact_match
from rlm_jax.evaluate.judging import texts
from rlm_jax.method import Batch, Params
from rlm_jax.methods import fid
from rlm_jax.readers.reader import ReaderModel
from rlm_jax.retrieval import refresh
from rlm_jax.retrievers import reading, reading_controls
from rlm_jax.retrievers.reading import Reading

REAL = "real"


@dataclasses.dataclass
class AnswersConfig:
    """How questions are answered, and by what rules answers are judged."""

    protocol: exact_match.Protocol = "squad"  # of exact match; orqa: NFD first
    patterns: bool = False  # answers are regular expressions (CuratedTREC)
    num_beams: int = 1  # 1: greedy
    batch_size: int = 16  # questions at a time
    max_questions: int = 0  # of the test split, always the same ones; 0: all
    numbers: tuple[int, ...] = ()  # of passages, with which it answers again
    # k of answer recall, beside the number of passages that are read
    depths: tuple[int, ...] = (1, 5, 20, 100)


class Asked(NamedTuple):
    """The questions of a split with what they read, in tokens."""

    collection: Collection
    questions: list[Question]
    reading: Reading
    rows: reader_batches.ReaderRows

    @property
    def answers(self) -> list[tuple[str, ...]]:
        return [question.answers for question in self.questions]

    def read(self, place: int) -> list[Passage]:
        """The passages that a question reads, best first."""
        passages = self.collection.passages
        return [passages[i] for i in self.reading.ids[place].tolist() if i >= 0]


def asked(
    collection: Collection,
    found: Reading,
    model: ReaderModel,
    lengths: Lengths,
    sample: np.ndarray | None = None,
) -> Asked:
    """Questions and passages in the reader's tokens.

    Args:
      found: what the questions read.
      sample: places among them that are taken; None: all.
    """
    found = found if sample is None else found.at(sample)
    every = collection.questions.questions
    questions = [every[number] for number in found.questions]
    tokens = passage_tokens.build(
        collection.passages, model.tokenizer, max_length=lengths.passage
    )
    rows = reader_batches.rows(
        model.tokenizer,
        questions,
        found.ids,
        tokens,
        passage_length=lengths.passage,
        target_length=lengths.target,
    )
    return Asked(collection, questions, found, rows)


def sample(count: int, found: Reading) -> np.ndarray | None:
    """The places of ``count`` questions, always the same; None: all, as 0 says."""
    if not 0 < count < len(found.questions):
        return None
    random = np.random.default_rng(0)
    return np.sort(random.choice(len(found.questions), count, replace=False))


def answer_recall(
    config: AnswersConfig, collection: Collection, found: Reading
) -> dict[str, float]:
    """How many of all questions read an answer, by the number of passages.

    No reader is asked, so a sample of the questions is not needed.
    """
    every = collection.questions.questions
    return answers.answer_recall(
        texts(found.ids, collection.passages),
        [every[number].answers for number in found.questions.tolist()],
        _depths(config, found.ids.shape[1]),
        holds=rules(config)["holds"],
    )


def _depths(config: AnswersConfig, reads: int) -> list[int]:
    """The k of answer recall, where so many passages are read."""
    return sorted({k for k in config.depths if k < reads} | {reads})


def spread(**by_name: Asked) -> dict[str, dict[str, float]]:
    """Of each way of reading how many passages are read, and of the commonest."""
    return {name: refresh.spread(x.reading.ids) for name, x in by_name.items()}


def reading_again(given: Asked, other: Reading) -> Asked:
    """The same questions with other passages."""
    return given._replace(reading=other, rows=given.rows.beside(other.ids))


class Answerer:
    """Answers by one reader; what it runs is compiled once for a shape."""

    def __init__(self, model: ReaderModel, config: AnswersConfig, length: int):
        self.model, self.batch_size = model, config.batch_size
        functions = fid.reader_of(model.config)
        self._answer = fid.answerer(
            functions, length=length, num_beams=config.num_beams
        )

    @functools.cached_property
    def _params(self) -> Params:
        return processes.replicated(self.model.params)

    def __call__(self, given: Asked, progress: str = "answering") -> list[str]:
        """The answer to each question, as text."""
        rows = of_questions(
            self._answer, self._params, given, self.batch_size, progress
        )
        written = self.model.tokenizer.as_written
        return [written(row, given.read(place)) for place, row in enumerate(rows)]


def of_questions(
    run: Callable[[Params, Batch], Any],
    params: Params,
    given: Asked,
    batch_size: int,
    progress: str,
) -> np.ndarray:
    """What ``run(params, batch)`` gives of each question, [N, ...]."""
    size = processes.whole_rows(batch_size)
    batches = reader_batches.in_order(given.rows, batch_size=size)
    found = []
    with terminal.counter(progress, len(given.rows)) as advance:
        for step in range(batches.num_batches):
            batch = batches.batch_at(0, step)
            kept = batch["question"] >= 0
            made = run(params, processes.spread(dict(batch)))
            found.append(np.asarray(made)[kept])
            advance(int(kept.sum()))
    return np.concatenate(found)


class Rules(TypedDict):
    """By what answers are judged, as `exact_match.judge` takes it."""

    protocol: exact_match.Protocol
    holds: Callable[[str, Iterable[str]], bool]
    matches: Callable[[str, Iterable[str]], bool] | None


def rules(config: AnswersConfig) -> Rules:
    """What the configuration says of them."""
    return {
        "protocol": config.protocol,
        "holds": answers.matches_pattern if config.patterns else answers.has_answer,
        "matches": exact_match.pattern_match if config.patterns else None,
    }


def judged(
    config: AnswersConfig, given: Asked, said: Sequence[str]
) -> exact_match.Figures:
    """The figures of some answers, by what had been read."""
    reads = given.reading.ids.shape[1]
    passages = texts(given.reading.ids, given.collection.passages) if reads else None
    return exact_match.judge(
        said, given.answers, passages, depths=_depths(config, reads), **rules(config)
    )


def controls_of(config: AnswersConfig, given: Asked) -> dict[str, Asked]:
    """The same questions with another's passages, and with an answer's passage first.

    Nothing for a reader without passages.
    """
    if not given.reading.ids.shape[1]:
        return {}
    passages, found = given.collection.passages, given.reading
    test = rules(config)["holds"]

    def has(place: int, row: int) -> bool:
        return test(passages[row].joined, given.questions[place].answers)

    may = found.facts["own_evidence"] == "read"
    relevant = reading.evidence(given.collection, found.questions) if may else None
    asked = {
        "oracle": reading_again(given, reading_controls.oracle(found, has, relevant))
    }
    if len(found.ids) < 2:  # one question can read nobody else's passages
        terminal.say(controls.NO_OTHER)
        return asked
    return {
        "shuffled": reading_again(given, reading_controls.shuffled(found)),
        **asked,
    }


def by_number(
    config: AnswersConfig, given: Asked, answer: Answerer
) -> dict[str, dict[str, float]]:
    """The figures with fewer passages, by their number."""
    most, said = given.reading.ids.shape[1], {}
    for number in config.numbers:
        if not 0 < number <= most:
            raise UserError(
                f"answers.numbers has {number}, and {most} passages are read; choose "
                "numbers from 1 to that."
            )
        ids, scores = (x[:, :number] for x in (given.reading.ids, given.reading.scores))
        fewer = reading_again(given, given.reading._replace(ids=ids, scores=scores))
        said[number] = answer(fewer, f"answering from {number}")
    figures = exact_match.by_number(
        said,
        given.answers,
        texts(given.reading.ids, given.collection.passages),
        depths=sorted({*config.depths, *config.numbers}),
        **rules(config),
    )
    return {str(number): of_number.means for number, of_number in figures.items()}
