"""Fusion-in-Decoder: a reader is trained over a frozen retriever's passages.

Its twin without passages (closed book) is trained as long, and with ``distil.rounds``
the retriever then learns where the reader looks: train the reader, distil, retrieve
again, train the reader again (Izacard and Grave 2021b).
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

from rlm_jax.data import collections, question_answering, reader_batches
from rlm_jax.data.collections import Collection
from rlm_jax.data.problems import Lengths
from rlm_jax.data.question_answering import AnsweringConfig
from rlm_jax.methods import fid
from rlm_jax.methods.fid import FiDConfig
from rlm_jax.readers import answering, reader
from rlm_jax.readers.answering import AnswersConfig, Asked
from rlm_jax.readers.reader import ReaderModel
from rlm_jax.recipes import runs
from rlm_jax.recipes.readers import answers_report, distilling
from rlm_jax.recipes.readers.distilling import DistilConfig
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.retrievers import encoder_towers, passage_sources, reading
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.retrievers.reading import Reading, ReadingConfig
from rlm_jax.side_files import hub
from rlm_jax.train import dry_run, fit
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig


@dataclasses.dataclass
class Config:
    """A reader, what it reads, and how it is judged."""

    data: AnsweringConfig = dataclasses.field(default_factory=AnsweringConfig)
    reading: ReadingConfig = dataclasses.field(default_factory=ReadingConfig)
    # Further retrievers whose passages the trained reader is given, as controls.
    also_reads: tuple[str, ...] = ("bm25",)
    init_from: str = ""  # folder of a T5, of an encoder or of a run's reader
    vocab_size: int = 8192  # of the WordPiece, from scratch
    method: FiDConfig = dataclasses.field(default_factory=FiDConfig)
    passage_length: int = 128  # tokens of a question beside a passage
    target_length: int = 16  # tokens of an answer, its end counted
    passage_end: bool = True  # T5's </s> after a passage; the first readers had none
    batch_size: int = 16  # questions of a step, over all devices
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    validation_batches: int = 8  # at each `train.eval_every`
    closed_book: bool = True  # train the twin without passages too
    distil: DistilConfig = dataclasses.field(default_factory=DistilConfig)
    answers: AnswersConfig = dataclasses.field(default_factory=AnswersConfig)
    split: str = "test"  # of the questions that are answered at the end
    text: TextConfig = dataclasses.field(default_factory=TextConfig)  # of a retriever
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)


SAME = (
    *("data", "reading", "init_from", "vocab_size", "method", "passage_length"),
    *("target_length", "passage_end", "batch_size", "optim", "text", *runs.DRAWS),
)

TRAIN, VALIDATION = "train", "validation"
CONTROLS = ("shuffled", "oracle", "closed_book")  # what they read has no name


class Setting(NamedTuple):
    """What every training of a run has in common."""

    config: Config
    run: Run
    splits: dict[str, Collection]
    initial: ReaderModel

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.config.passage_length, self.config.target_length)

    def read(
        self, config: ReadingConfig, split: str, training: bool = False
    ) -> Reading:
        """What the questions of a split read."""
        return reading.read(
            config,
            self.splits[split],
            self.run.workdir / "retrieval",
            self.config.search,
            self.config.text,
            split=split,
            training=training,
        )

    def to_learn(self, config: ReadingConfig) -> dict[str, Reading]:
        """What the questions of each split read while a reader is trained."""
        return {
            split: self.read(config, split, split == TRAIN) for split in self.splits
        }

    def asked(self, found: Reading, split: str, most: int = 0) -> Asked:
        """The questions of a split in tokens, ``most`` of them at most (0: all).

        Of those that are answered `answers.max_questions` says how many.
        """
        if split == self.config.split:
            most = self.config.answers.max_questions
        sample = answering.sample(most, found)
        collection = self.splits[split]
        return answering.asked(collection, found, self.initial, self.lengths, sample)


@recipe("fid")
def run(config: Config, here: Run):
    """Find passages, train reader and twin, distil, answer, judge, report."""
    distilling.check(config.distil, config.reading)
    hub.require(init_from=config.init_from)
    reads = config.reading.retriever
    also = config.also_reads if reads != passage_sources.NONE else ()
    passage_sources.require(reads, *also)
    phases = runs.Phases()
    with phases("data"):
        splits = {
            split: question_answering.load(config.data, split)
            for split in dict.fromkeys((TRAIN, VALIDATION, config.split))
        }
        question_answering.check_learnable(splits[TRAIN], config.batch_size)
        initial = reader.start(
            config.method,
            config.init_from,
            splits[TRAIN].passages,
            vocab_size=config.vocab_size,
            seed=config.train.seed,
            workdir=here.workdir,
            passage_end=config.passage_end,
        )
    reader.check_lengths(initial.config, config.passage_length)
    config = dataclasses.replace(config, method=initial.config)
    runs.claim(
        here, config, splits[TRAIN].fingerprint, same=SAME, identity=initial.identity
    )
    if not here.dry_run:
        encoder_towers.keep_tokenizer(here.workdir, initial.tokenizer)
    setting = Setting(config, here, splits, initial)
    if here.dry_run:
        return _describe(setting)
    chosen, curves, facts, earlier = config.reading, {}, [], []
    for number in range(config.distil.rounds + 1):
        name = f"reader_{number}"
        with phases("search"):
            found = setting.to_learn(chosen)
        with phases("train"):
            model = _trained(setting, found, here.workdir / name)
        curves[name] = here.workdir / name
        if number < config.distil.rounds:
            with phases("distil"):
                taught, figures = distilling.distil(
                    config.distil,
                    model,
                    {
                        TRAIN: setting.asked(
                            found[TRAIN], TRAIN, config.distil.max_questions
                        ),
                        VALIDATION: setting.asked(found[VALIDATION], VALIDATION),
                    },
                    here.workdir / f"retriever_{number + 1}",
                    batch_size=config.answers.batch_size,
                    text=config.text,
                )
            facts.append(figures)
            earlier.append((model, chosen))
            curves[f"retriever_{number + 1}"] = taught
            chosen = dataclasses.replace(chosen, retriever=str(taught))
    twin = None
    if config.closed_book:
        alone = dataclasses.replace(config.reading, retriever=passage_sources.NONE)
        with phases("search"):
            none = setting.to_learn(alone)
        with phases("closed_book"):
            twin = _trained(setting, none, here.workdir / "closed_book")
        curves["closed_book"] = here.workdir / "closed_book"
    runs.leave_to_first()
    reads = {"retriever": chosen.retriever, "num": config.reading.num}
    source = {"source": found[TRAIN].source}
    reader.save(here.workdir, model, reads | source)
    return _evaluate(setting, phases, model, chosen, twin, curves, facts, earlier)


def _describe(setting: Setting) -> None:
    """What a dry run shows: the collection, and the memory of a step."""
    config, _, splits, _ = setting
    collections.describe(splits[TRAIN])
    found = setting.to_learn(config.reading)[TRAIN]
    asked = setting.asked(found, TRAIN)
    training = reader_batches.training(asked.rows, batch_size=config.batch_size)
    dry_run.describe(fid.fid(config.method), training, config)


def _trained(
    setting: Setting, found: dict[str, Reading], folder: pathlib.Path
) -> ReaderModel:
    """The reader trained on what its questions read; a rerun goes on in ``folder``."""
    config, initial = setting.config, setting.initial
    source = {split: found[split].source for split in (TRAIN, VALIDATION)}
    runs.claim_part(folder, {"passages": source})
    asked = {s: setting.asked(found[s], s) for s in (TRAIN, VALIDATION)}
    params = fit.train_on_batches(
        fid.fid(initial.config),
        reader_batches.training(asked[TRAIN].rows, batch_size=config.batch_size),
        reader_batches.in_order(asked[VALIDATION].rows, batch_size=config.batch_size),
        config,
        folder,
        initial_params=initial.params,
        validation_batches=config.validation_batches,
    )
    return initial._replace(params=params)


def _evaluate(
    setting: Setting,
    phases: runs.Phases,
    model: ReaderModel,
    chosen: ReadingConfig,
    twin: ReaderModel | None,
    curves: dict[str, pathlib.Path],
    distilled: list[dict[str, Any]],
    earlier: list[tuple[ReaderModel, ReadingConfig]],
):
    """Answers of the test questions, beside every control.

    Args:
      earlier: the readers of the rounds before, with what each of them read.
    """
    config, split = setting.config, setting.config.split
    judge = config.answers
    answer = answering.Answerer(model, judge, config.target_length)
    given = setting.asked(setting.read(chosen, split), split)
    asked = {answering.REAL: given, **answering.controls_of(judge, given)}
    for retriever in dict.fromkeys((*config.also_reads, config.reading.retriever)):
        if retriever != chosen.retriever and given.reading.ids.shape[1]:
            other = dataclasses.replace(chosen, retriever=retriever)
            with phases("search"):
                asked[retriever] = setting.asked(setting.read(other, split), split)
    with phases("answer"):
        said = {name: answer(x, f"answering: {name}") for name, x in asked.items()}
        numbers = answering.by_number(judge, given, answer)
        if twin is not None:
            alone = dataclasses.replace(config.reading, retriever=passage_sources.NONE)
            none = setting.asked(setting.read(alone, split), split)
            asked["closed_book"] = none
            closed = answering.Answerer(twin, judge, config.target_length)
            said["closed_book"] = closed(none, "answering: closed book")
        for number, (before, theirs) in enumerate(earlier):
            name = f"round_{number}"
            asked[name] = setting.asked(setting.read(theirs, split), split)
            of_round = answering.Answerer(before, judge, config.target_length)
            said[name] = of_round(asked[name], f"answering: {name}")
    figures = {name: answering.judged(judge, asked[name], said[name]) for name in said}
    return answers_report.finish(
        setting.run,
        config.data,
        split,
        given,
        figures,
        said,
        phases.seconds,
        protocol={
            "protocol": judge.protocol,
            "num_beams": judge.num_beams,
            "reads": {
                name: asked[name].reading.source[:16]
                for name in asked
                if name not in CONTROLS
            },
            "by_number_of_passages": numbers,
            "distillation": distilled,
        },
        curves=curves,
    )
