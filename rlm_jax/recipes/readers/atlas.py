"""Atlas: a reader and its retriever are trained together, over an index that ages.

They learn from questions, or from the passages alone (``task``: masked spans, prefix
language modelling), and then answer the questions. Beside them stand the retriever as
it was before, BM25, and the reader's twin without passages, trained alike.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import numpy as np

from rlm_jax.data import collections, problems, question_answering
from rlm_jax.data.collections import Collection
from rlm_jax.data.problems import BatchOf, Lengths, Source
from rlm_jax.errors import UserError
from rlm_jax.method import Batch, Batches, Method, Params, Rows
from rlm_jax.methods import atlas, fid
from rlm_jax.readers import answering, reader
from rlm_jax.readers.answering import Asked
from rlm_jax.readers.reader import ReaderModel
from rlm_jax.recipes import runs, stale_training
from rlm_jax.recipes.readers import answers_report, atlas_config, joint
from rlm_jax.recipes.readers.atlas_config import Config
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.retrieval import encode_stream
from rlm_jax.retrievers import (
    encoder_towers,
    passage_sources,
    reading,
    trained_towers,
)
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.retrievers.reading import ReadingConfig
from rlm_jax.side_files import hub
from rlm_jax.train import dry_run, fit
from rlm_jax.train.optim import OptimConfig

TRAIN, VALIDATION = "train", "validation"
INIT, RETRIEVER = "init", "retriever"


class Setting(NamedTuple):
    """What every part of a run has in common."""

    config: Config  # with the sizes that tokenizers and folders give
    run: Run
    splits: dict[str, Collection]
    model: ReaderModel
    tower: Tower
    source: Source

    @property
    def method(self) -> Method:
        return atlas.atlas(self.config.method)

    @property
    def initial(self) -> Params:
        retriever = trained_towers.of_towers(
            self.tower.params, self.config.method.towers
        )
        return {"reader": self.model.params, "retriever": retriever}

    @property
    def optim_parts(self) -> dict[str, OptimConfig]:
        """The retriever's own optimiser; it stands still where nothing trains it."""
        own = self.config.retriever_optim
        if self.config.method.trained == "none":
            own = dataclasses.replace(own, optimizer="frozen")
        return {"retriever": own}


@recipe("atlas")
def run(config: Config, here: Run):
    """Train round by round, then encode once more, answer, judge, report."""
    atlas_config.check(config)
    hub.require(init_from=config.init_from, retriever_from=config.retriever_from)
    passage_sources.require(*config.also_reads)
    phases = runs.Phases()
    with phases("data"):
        setting = _prepare(config, here)
    if here.dry_run:
        return _describe(setting)
    folder = here.workdir / "joint"
    with phases("train"):
        params, refreshes = _train(setting, folder)
    curves, twin = {"joint": folder}, None
    if config.closed_book:
        with phases("closed_book"):
            twin = _closed_book(setting, here.workdir / "closed_book")
        curves["closed_book"] = here.workdir / "closed_book"
    runs.leave_to_first()
    passages = setting.splits[TRAIN].passages
    towers, places = setting.config.method.towers, {}
    for name, of in ((INIT, setting.initial), (RETRIEVER, params)):
        with phases("encode"):
            places[name] = trained_towers.publish(
                here.workdir / name,
                passages,
                config.text,
                config.search,
                trained_towers.towers_of(setting.tower, of["retriever"], towers),
            )
    model = setting.model._replace(params=params["reader"])
    return _evaluate(setting, phases, model, twin, places, curves, refreshes)


def _prepare(config: Config, here: Run) -> Setting:
    splits = {
        split: question_answering.load(config.data, split)
        for split in dict.fromkeys((TRAIN, VALIDATION, config.split))
    }
    passages = splits[TRAIN].passages
    if not len(passages):
        raise UserError(
            "There are no passages to retrieve: name some in data.passages."
        )
    model = reader.start(
        config.method.reader,
        config.init_from,
        passages,
        vocab_size=config.vocab_size,
        seed=config.train.seed,
        workdir=here.workdir,
    )
    reader.check_lengths(model.config, config.passage_length)
    tower = trained_towers.initial_tower(
        config.method.encoder,
        config.retriever_from,
        passages,
        vocab_size=config.vocab_size,
        seed=config.train.seed,
        folder=here.workdir / "joint",
    )
    method = dataclasses.replace(
        config.method, reader=model.config, encoder=tower.config
    )
    config = dataclasses.replace(config, method=method)
    lengths = Lengths(config.passage_length, config.target_length)
    common: dict[str, Any] = {
        "batch_size": config.batch_size,
        "num_judged": config.validation_batches * config.batch_size,
    }
    if config.task == "questions":
        source = problems.of_questions(
            splits[TRAIN],
            splits[VALIDATION],
            model.tokenizer,
            lengths,
            evidence=reading.evidence if config.left_out == "own" else None,
            **common,
        )
    else:
        source = problems.of_texts(
            config.task,
            passages,
            model.tokenizer,
            lengths,
            left_out=config.left_out,
            text_length=config.text_length,
            **common,
        )
    trained_towers.depth(_asked(config), source.most_own, passages)
    prints = {**model.identity, "retriever_tokenizer": tower.tokenizer.fingerprint}
    if config.retriever_from:
        prints["retriever"] = encode_stream.fingerprint(tower.params)
    runs.claim(
        here, config, splits[TRAIN].fingerprint, same=atlas_config.SAME, identity=prints
    )
    if not here.dry_run:
        encoder_towers.keep_tokenizer(here.workdir, model.tokenizer)
        encoder_towers.keep_tokenizer(here.workdir / "joint", tower.tokenizer)
    return Setting(config, here, splits, model, tower, source)


def _asked(config: Config) -> int:
    """Passages that the retriever encodes anew for each problem."""
    return config.candidates or config.method.reader.k


def _describe(setting: Setting) -> None:
    """What a dry run shows: the collection, its index, and the memory of a step."""
    config, source = setting.config, setting.source
    passages = setting.splits[TRAIN].passages
    collections.describe(setting.splits[TRAIN])
    stale_training.describe_index(len(passages), config.method.encoder, config.search)
    batch_of = _batches(setting)

    def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
        drawn = source.at(seed, step, rows)
        first = np.arange(_asked(config), dtype=np.int32)
        return batch_of(drawn, np.tile(first, (len(drawn.texts), 1)))

    made = Batches(batch_at, source.num_problems, source.num_batches)
    dry_run.describe(setting.method, made, config)


def _batches(setting: Setting) -> BatchOf:
    rows = trained_towers.TextRows(
        setting.splits[TRAIN].passages,
        setting.tower.tokenizer,
        setting.tower.config,
        setting.config.text,
    )
    return setting.source.beside(rows)


def _train(
    setting: Setting, folder: pathlib.Path
) -> tuple[Params, list[dict[str, float]]]:
    """(parameters, what each refresh found of the index before it)."""
    config = setting.config
    return stale_training.train(
        setting.method,
        _task(setting),
        config,
        folder,
        passages=setting.splits[TRAIN].passages,
        tower=setting.tower,
        text=config.text,
        search=config.search,
        initial_params=setting.initial,
        trainable=atlas.trainable(config.method),
        parts=setting.optim_parts,
    )


def _task(setting: Setting) -> stale_training.Task:
    config, source = setting.config, setting.source
    passages, asked = setting.splits[TRAIN].passages, _asked(config)
    batch_of, seed, held_out = _batches(setting), config.train.seed, source.judged

    def batch(step: int, rows: np.ndarray, candidates: np.ndarray) -> Batch:
        drawn = source.at(seed, step, rows)
        return batch_of(drawn, trained_towers.without_own(candidates, drawn.own, asked))

    answers = None
    if config.task == "questions":
        every = setting.splits[VALIDATION].questions.questions
        answers = [q.answers for q in every if q.answers][: len(held_out.texts)]
    judge = joint.judge(
        setting.method,
        held_out.texts,
        held_out.own,
        lambda places, ids: batch_of(held_out.at(places), ids),
        passages,
        answers,
        k=config.method.reader.k,
        asked=asked,
        batch_size=config.batch_size,
    )
    return stale_training.Task(
        questions=lambda step: source.at(seed, step).texts,
        batch=batch,
        k=trained_towers.depth(asked, source.most_own, passages),
        sample=lambda: held_out.texts,
        sample_k=config.method.reader.k,
        judge=judge,
    )


def _closed_book(setting: Setting, folder: pathlib.Path) -> ReaderModel:
    """The reader's twin: as many steps of the same problems, without passages."""
    config = setting.config
    params = fit.train_on_batches(
        fid.fid(config.method.reader),
        setting.source.closed_book(),
        None,
        config,
        folder,
        initial_params=setting.model.params,
    )
    return setting.model._replace(params=params)


def _evaluate(
    setting: Setting,
    phases: runs.Phases,
    model: ReaderModel,
    twin: ReaderModel | None,
    places: dict[str, pathlib.Path],
    curves: dict[str, pathlib.Path],
    refreshes: list[dict[str, float]],
):
    """Answers of the questions, beside every control."""
    config, here, split = setting.config, setting.run, setting.config.split
    judge, collection = config.answers, setting.splits[split]
    own = "left_out" if config.left_out == "own" else "read"
    lengths = Lengths(config.passage_length, config.target_length)
    if config.task != "questions":
        own = "read"

    recalls: dict[str, dict[str, float]] = {}

    def read(retriever: str, name: str) -> Asked:
        found = reading.read(
            ReadingConfig(retriever, config.method.reader.k, own),
            collection,
            here.workdir / "retrieval",
            config.search,
            config.text,
            split=split,
        )
        if retriever != passage_sources.NONE:
            recalls[name] = answering.answer_recall(judge, collection, found)
        return answering.asked(
            collection,
            found,
            model,
            lengths,
            answering.sample(judge.max_questions, found),
        )

    answer = answering.Answerer(model, judge, config.target_length)
    with phases("search"):
        given = read(str(places[RETRIEVER]), answering.REAL)
        asked = {answering.REAL: given, INIT: read(str(places[INIT]), INIT)}
        asked |= {name: read(name, name) for name in config.also_reads}
    asked |= answering.controls_of(judge, given)
    with phases("answer"):
        said = {name: answer(x, f"answering: {name}") for name, x in asked.items()}
        numbers = answering.by_number(judge, given, answer)
        if twin is not None:
            asked["closed_book"] = read(passage_sources.NONE, "closed_book")
            closed = answering.Answerer(twin, judge, config.target_length)
            said["closed_book"] = closed(asked["closed_book"], "answering: closed book")
    reader.save(
        here.workdir,
        model,
        {
            "retriever": str(places[RETRIEVER]),
            "num": config.method.reader.k,
            "source": given.reading.source,
        },
    )
    stale_training.warn_of_collapse(
        given.reading.ids, len(collection.passages), config.train.steps
    )
    return answers_report.finish(
        here,
        config.data,
        split,
        given,
        {name: answering.judged(judge, asked[name], said[name]) for name in said},
        said,
        phases.seconds,
        protocol={
            "protocol": judge.protocol,
            "num_beams": judge.num_beams,
            "task": config.task,
            "retriever_loss": config.method.loss,
            "trained": config.method.trained,
            "left_out": config.left_out,
            "by_number_of_passages": numbers,
            "answer_recall_of_all": recalls,
            "refreshes": refreshes,
            "spread": answering.spread(real=given, init=asked[INIT]),
        },
        curves=curves,
    )
