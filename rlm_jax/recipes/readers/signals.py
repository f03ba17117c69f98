"""The signals of which retrievers learn, side by side, over the same passages.

A reader that a run has trained says of each passage how useful it is, in every way that
there is: pdist, emdr2, loop, adist (Atlas, EMDR2), and the attention of FiD-KD; beside
them stand a language model's likelihoods (REPLUG-LSR) and the retriever's own scores.
All are held to what each passage truly does to the likelihood of the answer.
"""

import dataclasses
import pathlib
from typing import Any, ClassVar

import jax
import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.data import question_answering
from rlm_jax.data.problems import Lengths
from rlm_jax.data.question_answering import AnsweringConfig
from rlm_jax.data.texts import DataConfig
from rlm_jax.errors import UserError
from rlm_jax.evaluate import passage_likelihoods, signal_ranks
from rlm_jax.methods import fid, reader_scores
from rlm_jax.readers import answering, reader
from rlm_jax.readers.answering import AnswersConfig, Asked
from rlm_jax.recipes import base_lm, runs
from rlm_jax.recipes.readers import answers_report
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.report import report, tables
from rlm_jax.retrievers import reading
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.retrievers.reading import ReadingConfig
from rlm_jax.storage import atomic

MOST = 8  # passages: the likelihoods of all 2^K subsets are asked for
SIGNALS = ("pdist", "emdr2", "loop", "adist", "fid_attention")
TRUTHS = ("added", "removed", "average")
REPLUG, RETRIEVER = "replug_lsr", "retriever"


@dataclasses.dataclass
class Config:
    """Whose signals, over which passages."""

    MAY_BE_ZERO: ClassVar = ("num",)

    reader: str = ""  # workdir of a run that trained a reader
    retriever: str = ""  # whose passages; empty: those that the reader was trained on
    num: int = 0  # passages a question; 0: as many as in training
    questions: int = 200  # of the run's split, always the same ones; 0: all
    batch_size: int = 8  # questions at a time
    # whose likelihoods REPLUG-LSR learns from, as of `base_lm.load`; empty: not asked
    language_model: str = ""
    # what the language model reads: {passage}, {question} and then the answer
    prompt: str = passage_likelihoods.PROMPT
    prompt_length: int = 256  # tokens of a passage, a question and an answer


@recipe("reader_signals")
def run(config: Config, here: Run) -> report.Report | None:
    """Score every passage by every signal, correlate, report."""
    passage_likelihoods.check_prompt(config.prompt)
    phases = runs.Phases()
    with phases("data"):
        source = pathlib.Path(config.reader)
        stored = _stored(config)
        asked, model = _asked(config, source, stored, here)
    lm = None
    if config.language_model:
        lm = base_lm.load(config.language_model, DataConfig())
    k = asked.reading.ids.shape[1]
    terminal.say(
        f"{len(asked.questions):,} questions, {k} passages each, and all {1 << k} "
        "subsets of them"
    )
    if here.dry_run:
        return None
    present = asked.reading.ids >= 0
    with phases("reader"):
        signals, truths = _of_reader(config, asked, model, present)
    signals[RETRIEVER] = np.where(present, asked.reading.scores, 0.0)
    if lm is not None:
        with phases("language_model"):
            answers = _answers(asked, model, stored["target_length"])
            signals[REPLUG] = _of_language_model(config, asked, answers, lm)
    table = signal_ranks.compared(signals, truths, present, _holds(asked))
    metrics = {name: figures["average"] for name, figures in table.items()}
    result = report.build(
        system="reader_signals",
        preset=here.preset,
        corpus=asked.collection.passages.name,
        metrics=metrics,
        controls={},
        seconds=phases.seconds,
        commit=report.commit_of(pathlib.Path(__file__).parent),
        protocol={
            "reader": config.reader,
            "language_model": config.language_model,
            "num_questions": len(asked.questions),
            "split": stored["split"],
            **asked.reading.facts,
            "signals": table,
            "among_each_other": signal_ranks.among_each_other(signals, present),
        },
    )
    report.write(here.workdir / "report.json", result)
    every = {name: x.tolist() for name, x in {**signals, **truths}.items()}
    atomic.write_json(here.workdir / "signals.json", every)
    rows = [tables.Row(name, figures, {}) for name, figures in table.items()]
    terminal.say(tables.terminal(rows, title="\nreader_signals: Kendall's tau"))
    terminal.say(f"report and signals: {here.workdir}")
    return result


def _stored(config: Config) -> dict[str, Any]:
    if not config.reader:
        raise UserError(
            "Whose signals? Name the workdir of a run of experiments.fid or "
            "experiments.atlas in --config.reader."
        )
    stored = runs.stored(pathlib.Path(config.reader))
    if "passage_length" not in stored or "data" not in stored:
        raise UserError(
            f"There is no reader in {config.reader}; name the workdir of a run of "
            "experiments.fid or experiments.atlas."
        )
    runs.require(pathlib.Path(config.reader), stored, answers_report.READING)
    return stored


def _asked(
    config: Config, source: pathlib.Path, stored: dict[str, Any], here: Run
) -> tuple[Asked, reader.ReaderModel]:
    model, split = reader.load(source), stored["split"]
    collection = question_answering.load(
        runs.group(source, stored, "data", AnsweringConfig), split
    )
    reads = reader.reads(source)
    num = config.num or reads["num"]
    if not 2 <= num <= MOST:
        raise UserError(
            f"{num} passages a question have 2^{num} subsets; choose num from 2 to "
            f"{MOST}."
        )
    own = stored.get("reading", {}).get("own") or (
        "left_out" if stored.get("left_out") == "own" else "read"
    )
    found = reading.read(
        ReadingConfig(config.retriever or reads["retriever"], num, own),
        collection,
        (source if here.dry_run else here.workdir) / "retrieval",
        runs.group(source, stored, "search", SearchConfig),
        runs.group(source, stored, "text", TextConfig),
        split=split,
    )
    lengths = Lengths(stored["passage_length"], stored["target_length"])
    sample = answering.sample(config.questions, found)
    asked = answering.asked(collection, found, model, lengths, sample)
    short = [i for i, targets in enumerate(asked.rows.targets) if targets]
    if len(short) < len(asked.questions):
        places = np.arange(len(found.questions)) if sample is None else sample
        asked = answering.asked(collection, found, model, lengths, places[short])
    return asked, model


def _of_reader(
    config: Config, asked: Asked, model: reader.ReaderModel, present: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(signals, true changes), float32 [N, K] each."""
    functions = fid.reader_of(model.config)

    @jax.jit
    def score(params, batch):
        signals = reader_scores.side_by_side(functions, params, batch)
        every = signals | reader_scores.changes(functions, params, batch)
        return jax.numpy.stack([every[name] for name in (*SIGNALS, *TRUTHS)], axis=1)

    def of_batch(params, batch):
        places = np.maximum(np.asarray(batch["question"]), 0)
        return score(params, {**batch, "present": present[places]})

    params = processes.replicated(model.params)
    found = answering.of_questions(
        of_batch, params, asked, config.batch_size, "asking the reader"
    )
    every = {name: found[:, i] for i, name in enumerate((*SIGNALS, *TRUTHS))}
    return {n: every[n] for n in SIGNALS}, {n: every[n] for n in TRUTHS}


def _answers(asked: Asked, model: reader.ReaderModel, length: int) -> list[str]:
    """Of each question the answer that the reader is asked for: the first that fits."""

    def fits(answer: str) -> bool:
        (tokens,) = model.tokenizer.answers([answer], max_length=length)
        return 1 < len(tokens) <= length

    return [next(filter(fits, answers)) for answers in asked.answers]


def _of_language_model(
    config: Config, asked: Asked, answers: list[str], lm: base_lm.BaseLM
) -> np.ndarray:
    passages, ids = asked.collection.passages, asked.reading.ids
    with terminal.counter("asking the language model", int((ids >= 0).sum())) as done:
        found = passage_likelihoods.likelihoods(
            lm.log_probs,
            lm.tokenizer.encode,
            [question.text for question in asked.questions],
            [
                [passages[i].joined if i >= 0 else None for i in row]
                for row in ids.tolist()
            ],
            answers,
            prompt=config.prompt,
            length=config.prompt_length,
            batch_size=config.batch_size,
            advance=done,
        )
    return np.where(np.isfinite(found), found, 0.0)


def _holds(asked: Asked) -> np.ndarray:
    """bool [N, K]: which passages hold an answer."""
    holds, passages = answering.rules(AnswersConfig())["holds"], asked.collection
    return np.array(
        [
            [i >= 0 and holds(passages.passages[i].joined, answers) for i in row]
            for row, answers in zip(
                asked.reading.ids.tolist(), asked.answers, strict=True
            )
        ]
    )
