"""What a trained reader answers, judged beside its controls, and the report of it."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.data import passage_tokens, reader_batches
from rlm_jax.data.collections import Collection
from rlm_jax.data.passages import Passage
from rlm_jax.data.problems import Lengths
from rlm_jax.data.question_answering import AnsweringConfig
from rlm_jax.data.question_files import Question
from rlm_jax.errors import UserError
from rlm_jax.evaluate import answers, exact_match
from rlm_jax.evaluate.judging import texts
from rlm_jax.method import Params
from rlm_jax.methods import fid
from rlm_jax.readers.reader import ReaderModel
from rlm_jax.recipes.runs import Run
from rlm_jax.report import plots, report, tables
from rlm_jax.retrieval import refresh
from rlm_jax.retrievers import reading, reading_controls
from rlm_jax.retrievers.reading import Reading
from rlm_jax.storage import atomic
from rlm_jax.train import metrics

REAL = "real"


@dataclasses.dataclass
class AnswersConfig:
    """How questions are answered, and by what rules answers are judged."""

    protocol: exact_match.Protocol = "squad"  # of exact match; orqa: NFD first
    patterns: bool = False  # answers are regular expressions (CuratedTREC)
    num_beams: int = 1  # 1: greedy
    batch_size: int = 16  # questions at a time
    max_questions: int = 0  # of the test split, drawn by the seed; 0: all
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


def sample(config: AnswersConfig, found: Reading) -> np.ndarray | None:
    """The places of the questions that are answered; None: all."""
    count = config.max_questions
    if not 0 < count < len(found.questions):
        return None
    random = np.random.default_rng(0)
    return np.sort(random.choice(len(found.questions), count, replace=False))


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
        size = processes.whole_rows(self.batch_size)
        batches = reader_batches.in_order(given.rows, batch_size=size)
        said: list[str] = []
        with terminal.counter(progress, len(given.rows)) as advance:
            for step in range(batches.num_batches):
                batch = batches.batch_at(0, step)
                tokens = self._answer(self._params, processes.spread(dict(batch)))
                places = batch["question"][batch["question"] >= 0]
                for place, row in zip(places, np.asarray(tokens), strict=False):
                    said.append(self.model.tokenizer.as_written(row, given.read(place)))
                advance(len(places))
        return said


def holds(config: AnswersConfig) -> Callable[[str, Iterable[str]], bool]:
    """Whether a passage holds an answer."""
    return answers.matches_pattern if config.patterns else answers.has_answer


def judged(
    config: AnswersConfig, given: Asked, said: Sequence[str]
) -> exact_match.Figures:
    """The figures of some answers, by what had been read."""
    reads = given.reading.ids.shape[1]
    depths = sorted({k for k in config.depths if k < reads} | {reads})
    return exact_match.judge(
        said,
        given.answers,
        texts(given.reading.ids, given.collection.passages) if reads else None,
        protocol=config.protocol,
        depths=depths,
        holds=holds(config),
    )


def controls_of(config: AnswersConfig, given: Asked) -> dict[str, Asked]:
    """The same questions with another's passages, and with an answer's passage first.

    Nothing for a reader without passages.
    """
    if not given.reading.ids.shape[1]:
        return {}
    passages, found = given.collection.passages, given.reading
    test = holds(config)

    def has(place: int, row: int) -> bool:
        return test(passages[row].joined, given.questions[place].answers)

    may = found.facts["own_evidence"] == "read"
    relevant = reading.evidence(given.collection, found.questions) if may else None
    return {
        "shuffled": reading_again(given, reading_controls.shuffled(found)),
        "oracle": reading_again(given, reading_controls.oracle(found, has, relevant)),
    }


def by_number(
    config: AnswersConfig, given: Asked, answer: Answerer
) -> dict[str, dict[str, float]]:
    """The figures with fewer passages, by their number."""
    most = given.reading.ids.shape[1]
    figures = {}
    for number in config.numbers:
        if not 0 < number <= most:
            raise UserError(
                f"answers.numbers has {number}, and {most} passages are read; choose "
                "numbers from 1 to that."
            )
        ids, scores = (x[:, :number] for x in (given.reading.ids, given.reading.scores))
        fewer = reading_again(given, given.reading._replace(ids=ids, scores=scores))
        said = answer(fewer, f"answering from {number}")
        figures[str(number)] = judged(config, fewer, said).means
    return figures


def finish(
    run: Run,
    data: AnsweringConfig,
    split: str,
    given: Asked,
    by_control: Mapping[str, exact_match.Figures],
    said: Mapping[str, Sequence[str]],
    seconds: Mapping[str, float],
    *,
    protocol: Mapping[str, Any],
    curves: Mapping[str, pathlib.Path],
) -> report.Report:
    """Write and show what a reader achieves.

    Args:
      given: the test questions, as they read under "real".
      by_control: figures under "real" and each control.
      said: the answers under each of them, for answers.jsonl.
      curves: name -> workdir of what was trained.
    """
    figures = {name: x.means for name, x in by_control.items()}
    result = report.build(
        system=run.system,
        preset=run.preset,
        corpus=data.passages or data.questions,
        metrics=figures.pop(REAL),
        controls=figures,
        seconds=seconds,
        commit=report.commit_of(pathlib.Path(__file__).parent),
        protocol={
            "questions": data.questions or data.passages,
            "split": split,
            "num_questions": len(given.questions),
            "num_passages": len(given.collection.passages),
            "counts": {name: x.counts for name, x in by_control.items()},
            **given.reading.facts,
            **given.rows.facts,
            **protocol,
        },
    )
    report.write(run.workdir / "report.json", result)
    lines = [
        {
            "id": question.id,
            "question": question.text,
            "answers": list(question.answers),
            **{name: texts[place] for name, texts in said.items()},
        }
        for place, question in enumerate(given.questions)
    ]
    atomic.write_json_lines(run.workdir / "answers.jsonl", lines)
    row = tables.row_of_ranking(result)
    folder = run.workdir / "plots"
    folder.mkdir(exist_ok=True)
    plots.control_bars(
        folder / "controls.png",
        [row],
        metric="exact_match",
        title="The reader, and under each control",
    )
    plots.training_curves(
        folder / "training.png",
        {name: metrics.read(path) for name, path in curves.items()},
        label="loss (nats per token of an answer)",
    )
    terminal.say(
        tables.terminal(
            [row],
            title=f"\n{run.system}: {len(given.questions):,} questions of "
            f"{data.questions or data.passages}, {given.reading.ids.shape[1]} passages "
            "each",
        )
    )
    terminal.say(f"report, plots and answers: {run.workdir}")
    return result
