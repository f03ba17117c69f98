"""How a retriever's recipe ends: figures, run files, report.json, a table."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

from rlm_jax.data.collections import Collection, CollectionConfig
from rlm_jax.evaluate import controls, judging
from rlm_jax.method import Neighbours
from rlm_jax.recipes import reporting, runs
from rlm_jax.recipes.runs import Run
from rlm_jax.report import report, tables
from rlm_jax.retrieval import encode_stream
from rlm_jax.retrievers import dense, lexical, published_index
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig, Towers
from rlm_jax.storage import run_files
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig

REAL, SHUFFLED = controls.REAL, controls.SHUFFLED


@dataclasses.dataclass
class JudgeConfig:
    """Which figures are told, and what is written beside them."""

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
                question, store, collection.texts, config.text, config.search
            )
    return judged(
        run,
        config,
        collection,
        neighbours.pop(REAL),
        phases,
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
            config.search.k,
            run.workdir / "bm25",
        )
    return finish(
        run,
        collection,
        config.collection,
        {REAL: neighbours, **(others or {}), "bm25": by_words},
        config.judge,
        phases.seconds,
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
    *,
    protocol: Mapping[str, Any] | None = None,
    curves: Mapping[str, pathlib.Path] | None = None,
) -> report.Report:
    """Judge, write and show what a run found.

    Args:
      named: the names of passages and questions, for the report.
      by_control: neighbours under "real" and each control.
      seconds: by phase.
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
    others = controls.shuffled_neighbours(by_control[REAL])
    judgements = {
        name: judging.judge(
            neighbours, passages, asked, config.measures, patterns=config.patterns
        )
        for name, neighbours in {**by_control, SHUFFLED: others}.items()
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
