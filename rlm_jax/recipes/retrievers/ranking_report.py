"""How a retriever's recipe ends: figures, run files, report.json, a table."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np

from rlm_jax import terminal
from rlm_jax.data.collections import Collection, CollectionConfig
from rlm_jax.errors import UserError
from rlm_jax.evaluate import controls, judging, ranking
from rlm_jax.method import Neighbours
from rlm_jax.recipes import reporting, runs
from rlm_jax.recipes.runs import Run
from rlm_jax.report import report, tables
from rlm_jax.retrieval import encode_stream
from rlm_jax.retrievers import dense, lexical, own_passages, published_index
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig, Towers
from rlm_jax.retrievers.own_passages import OwnPassages
from rlm_jax.storage import run_files
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig

REAL, SHUFFLED = controls.REAL, controls.SHUFFLED


@dataclasses.dataclass
class JudgeConfig:
    """Which figures are told, and what is written beside them."""

    # ndcg, recall, mrr, map, precision or success, with @k
    measures: tuple[str, ...] = (
        "ndcg@10",
        "recall@1",
        "recall@5",
        "recall@20",
        "recall@100",
        "mrr@10",
    )
    patterns: bool = False  # answers are regular expressions (CuratedTREC)
    per_question: bool = False  # per_question.jsonl: every question's figures
    run_file: bool = True  # runs/*.trec.gz: what was found, in TREC's format
    # a passage with the question's own id, which is the question itself (as in BEIR)
    own: Literal["left_out", "kept"] = "left_out"

    def check(self) -> None:
        """Raises UserError for a measure that there is not."""
        ranking.check(self.measures, 1 << 30)


@dataclasses.dataclass
class Experiment:
    """A run that trains a retriever; a system adds the fields of its training data."""

    init_from: str = ""  # folder of an encoder to start from; empty: from scratch
    batch_size: int = 64  # examples of a step, over all devices
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    collection: CollectionConfig = dataclasses.field(default_factory=CollectionConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)


def check(config: JudgeConfig, k: int, collection: Collection) -> OwnPassages:
    """Before the work: whether what is found can be judged; and the own passages.

    Raises:
      UserError: no passage is searched for, an unknown measure, none that can be told
        of k passages, or no question that can be judged.
    """
    if k < 1:
        raise UserError(f"A search for k = {k} passages is empty; use k of at least 1.")
    asked = collection.questions
    judged = [q for q in asked.questions if asked.relevance.get(q.id)]
    if judged:
        ranking.check(config.measures, k)
        if not any(
            grade > 0 for q in judged for grade in asked.relevance[q.id].values()
        ):
            raise UserError(
                "No question has a passage that is judged to answer it; give the "
                "judgements of these questions."
            )
    own = own_passages.find(asked.questions, asked.relevance, collection.passages)
    if config.own == "kept":
        return OwnPassages(np.full(len(asked.questions), -1, np.int32))
    if own.count:
        terminal.say(
            f"note: {own.count:,} questions are passages of the collection, by their "
            "ids; they are left out of what their questions find, as in BEIR "
            "(--config.judge.own=kept keeps them)"
        )
    return own


def evaluate(
    config: Experiment,
    run: Run,
    collection: Collection,
    towers: Mapping[str, Towers],
    phases: runs.Phases,
    *,
    curves: Mapping[str, pathlib.Path],
    protocol: Mapping[str, Any] | None = None,
) -> report.Report:
    """Encode the collection, search it, and judge, beside BM25 and other towers.

    Args:
      towers: "real", which stay in the workdir to be searched and loaded with, and
        controls ("init", the same before training).
      curves: name -> workdir of what was trained.
      protocol: what the figures depend on besides.
    """
    passages, neighbours = collection.passages, {}
    facts = dict(protocol or {})
    own = check(config.judge, config.search.k, collection)
    deep = dataclasses.replace(config.search, k=own.deeper(config.search.k))
    for name, (question, passage) in towers.items():
        # After more training the vectors are others, beside which the old ones stay.
        made_by = encode_stream.fingerprint(passage.params)
        folder = f"vectors/{name}-{made_by}"
        with phases("encode"):
            store, padding = dense.encode_collection(
                passage,
                passages,
                passages.fingerprint,
                config.text,
                config.search,
                run.workdir / folder,
            )
            facts |= padding
        if name == REAL:
            published_index.keep_trained(
                run.workdir, passages, config.text, config.search, towers[name], folder
            )
        with phases("search"):
            neighbours[name] = dense.search(
                question, store, collection.texts, config.text, deep
            )
    return judged(
        run,
        config,
        collection,
        neighbours.pop(REAL),
        phases,
        own,
        curves=curves,
        protocol=facts,
        others=neighbours,
    )


class Searches(Protocol):
    """The fields of a configuration by which a dense retriever is judged."""

    @property
    def collection(self) -> CollectionConfig: ...
    @property
    def text(self) -> TextConfig: ...
    @property
    def search(self) -> SearchConfig: ...
    @property
    def judge(self) -> JudgeConfig: ...


def judged(
    run: Run,
    config: Searches,
    collection: Collection,
    neighbours: Neighbours,
    phases: runs.Phases,
    own: OwnPassages,
    *,
    curves: Mapping[str, pathlib.Path],
    protocol: Mapping[str, Any],
    others: Mapping[str, Neighbours] | None = None,
) -> report.Report:
    """`finish` for a dense retriever, with BM25 as a control beside ``others``."""
    with phases("bm25"):
        by_words = lexical.search(
            collection.passages,
            collection.texts,
            own.deeper(config.search.k),
            run.workdir / "bm25",
        )
    return finish(
        run,
        collection,
        config.collection,
        {REAL: neighbours, **(others or {}), "bm25": by_words},
        config.judge,
        phases.seconds,
        own,
        protocol={
            **protocol,
            **dataclasses.asdict(config.text),
            **dataclasses.asdict(config.search),
        },
        curves=curves,
    )


def finish(
    run: Run,
    collection: Collection,
    named: CollectionConfig,
    by_control: Mapping[str, Neighbours],
    config: JudgeConfig,
    seconds: Mapping[str, float],
    own: OwnPassages,
    *,
    protocol: Mapping[str, Any] | None = None,
    curves: Mapping[str, pathlib.Path] | None = None,
) -> report.Report:
    """Judge, write and show what a run found.

    Args:
      named: the names of passages and questions, for the report.
      by_control: neighbours under "real" and each control, searched to the depth of
        ``own.deeper``.
      seconds: by phase.
      own: the questions' own passages, which are left out.
      protocol: what the figures depend on besides.
      curves: name -> workdir of what was trained.
    """
    passages, questions = collection.passages, collection.questions.questions
    asked = judging.Asked(
        [question.id for question in questions],
        collection.texts,
        collection.questions.relevance,
        [question.answers for question in questions],
    )
    by_control = {name: own.left_out(found) for name, found in by_control.items()}
    given = dict(by_control)
    if len(questions) > 1:
        given[SHUFFLED] = controls.shuffled_neighbours(by_control[REAL])
    else:
        terminal.say(controls.NO_OTHER)
    judgements = {
        name: judging.judge(
            neighbours, passages, asked, config.measures, patterns=config.patterns
        )
        for name, neighbours in given.items()
    }
    figures = {name: judgement.means for name, judgement in judgements.items()}
    result = report.build(
        system=run.system,
        preset=run.preset,
        corpus=named.passages,
        metrics=figures.pop(REAL),
        controls=figures,
        seconds=seconds,
        commit=report.commit_of(pathlib.Path(__file__).parent),
        protocol={
            "questions": named.questions or named.passages,
            "split": named.split,
            "num_questions": len(questions),
            "num_with_answers": sum(map(bool, asked.answers)),
            "num_passages": len(passages),
            "depth": int(by_control[REAL].ids.shape[1]),
            "own_passages_left_out": own.count,
            **(protocol or {}),
        },
    )
    if config.run_file:
        for name, neighbours in by_control.items():
            path = run.workdir / "runs" / f"{name}.trec.gz"
            ranked = judging.as_run(neighbours, passages, asked.ids)
            run_files.write(ranked, path, tag=f"{run.system}-{name}")
    report.write(run.workdir / "report.json", result)
    if config.per_question:
        judging.write_per_question(
            run.workdir / "per_question.jsonl",
            asked,
            {name: judgement.per_question for name, judgement in judgements.items()},
        )
    row = tables.row_of_ranking(result)
    reporting.show(
        run,
        row,
        metric=next(iter(row.metrics)),
        bars="The retriever, and under each control",
        curves=curves or {},
        loss="loss (nats per question)",
        title=f"{len(questions):,} questions to {len(passages):,} passages of "
        f"{named.passages}",
        left="runs",
    )
    return result
