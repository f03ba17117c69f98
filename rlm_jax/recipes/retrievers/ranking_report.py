"""How a launcher of a retriever ends: figures, run files, report.json, a table."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlm_jax import terminal
from rlm_jax.data.collections import Collection, CollectionConfig
from rlm_jax.evaluate import answers, ranking
from rlm_jax.method import Neighbours
from rlm_jax.recipes import runs
from rlm_jax.recipes.runs import Run
from rlm_jax.report import plots, report, tables
from rlm_jax.retrieval import encode_stream
from rlm_jax.retrievers import dense, encoder_towers, lexical, published_index
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig, Tower
from rlm_jax.storage import atomic
from rlm_jax.train import metrics
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig

REAL = "real"
SHUFFLED = "shuffled"
SHOWN = ("ndcg@10", "recall@5", "recall@20", "mrr@10", "answer_recall@20")


@dataclasses.dataclass
class JudgeConfig:
    """Which figures, and what is written beside them."""

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


def judge(
    collection: Collection, found: Neighbours, config: JudgeConfig
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """(figures, measure -> question id -> figure) of what was found.

    Questions with judged passages give ranking measures, questions with answers DPR's
    answer recall; a collection may have both. Measures whose cutoff is beyond the depth
    of the search are left out.
    """
    questions = collection.questions.questions
    depth = found.ids.shape[1]
    figures: dict[str, float] = {}
    each: dict[str, dict[str, float]] = {}
    if collection.questions.relevance:
        within = [m for m in config.measures if int(m.partition("@")[2] or 0) <= depth]
        run = as_run(collection, found)
        made = ranking.evaluate(run, collection.questions.relevance, within)
        figures, each = dict(made.means), made.per_question
    answered = [i for i, question in enumerate(questions) if question.answers]
    if answered:
        depths = [k for k in answers.DEPTHS if k <= depth]
        some = Neighbours(found.scores[answered], found.ids[answered])
        figures |= answers.answer_recall(
            _texts(collection, some, max(depths)),
            [questions[i].answers for i in answered],
            depths,
            holds=answers.matches_pattern if config.patterns else answers.has_answer,
        )
    return figures, each


def as_run(collection: Collection, found: Neighbours) -> dict[str, dict[str, float]]:
    """What was found, by the ids of questions and passages."""
    used = np.unique(found.ids[found.ids >= 0])
    names = {int(row): collection.passages[int(row)].id for row in used}
    ids = [question.id for question in collection.questions.questions]
    return ranking.to_run(found, ids, names)


def _texts(collection: Collection, found: Neighbours, depth: int) -> Sequence[Any]:
    used = np.unique(found.ids[:, :depth])
    texts = {int(row): collection.passages[int(row)].joined for row in used if row >= 0}
    return [
        [texts[row] for row in rows if row >= 0]
        for rows in found.ids[:, :depth].tolist()
    ]


def shuffled(found: Neighbours) -> Neighbours:
    """Every question is given what was found for another, half the list away."""
    turned = np.roll(np.arange(len(found.ids)), len(found.ids) // 2)
    return Neighbours(found.scores[turned], found.ids[turned])


@dataclasses.dataclass
class Experiment:
    """A run that trains a retriever: a launcher adds what it is trained on."""

    init_from: str = ""  # folder of an encoder to start from; empty: from scratch
    batch_size: int = 64  # examples of a step, over all devices
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    collection: CollectionConfig = dataclasses.field(default_factory=CollectionConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)


class Towers(NamedTuple):
    """The two encoders of a dense retriever, which may be one."""

    question: Tower
    passage: Tower


def evaluate(
    config: Any,
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
      config: has ``collection``, ``text``, ``search`` and ``judge``.
      towers: "real", which stay in the workdir to be searched and loaded with, and
        controls ("init", the same before training).
      curves: name -> workdir of what was trained.
    """
    found, facts = {}, dict(protocol or {})
    for name, (question, passage) in towers.items():
        # After more training the vectors are others, beside which the old ones stay.
        made_by = encode_stream.fingerprint(passage.params)
        folder = f"vectors/{name}-{made_by}"
        with phases("encode"):
            store, padding = dense.encode_collection(
                passage,
                collection.passages,
                collection.passages.fingerprint,
                config.text,
                config.search,
                run.workdir / folder,
            )
            facts |= padding
        if name == REAL:
            _keep(run, config, collection, towers[name], folder)
        with phases("search"):
            found[name] = dense.search(
                question, store, collection.texts, config.text, config.search
            )
    return judged(
        run,
        config,
        collection,
        found.pop(REAL),
        phases,
        curves=curves,
        protocol=facts,
        controls=found,
    )


def _keep(run: Run, config: Any, collection, towers: Towers, vectors: str) -> None:
    """Leaves a trained retriever in the workdir, to be searched and loaded with."""
    encoder_towers.save(run.workdir / "encoder", towers.passage)
    own = "encoder"
    if towers.question is not towers.passage:
        own = "question_encoder"
        encoder_towers.save(run.workdir / own, towers.question)
    published_index.publish_dense(
        run.workdir,
        collection.passages,
        config,
        encoder=own,
        questions=towers.question,
        vectors=vectors,
    )


def judged(
    run: Run,
    config: Any,
    collection: Collection,
    found: Neighbours,
    phases: runs.Phases,
    *,
    curves: Mapping[str, pathlib.Path],
    protocol: Mapping[str, Any],
    controls: Mapping[str, Neighbours] | None = None,
) -> report.Report:
    """`finish` for a dense retriever, with BM25 as a control beside the others."""
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
        {REAL: found, **(controls or {}), "bm25": by_words},
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
    found: Mapping[str, Neighbours],
    config: JudgeConfig,
    seconds: Mapping[str, float],
    *,
    protocol: Mapping[str, Any] | None = None,
    curves: Mapping[str, pathlib.Path] | None = None,
) -> report.Report:
    """Judge, write and show what a run found.

    Args:
      named: the names of passages and questions, for the report.
      found: neighbours under "real" and each control.
      seconds: by phase.
      protocol: what the figures depend on besides.
      curves: name -> workdir of what was trained.
    """
    figures, each = {}, {}
    for name, neighbours in {**found, SHUFFLED: shuffled(found[REAL])}.items():
        figures[name], each[name] = judge(collection, neighbours, config)
    made = report.build(
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
            "num_questions": len(collection.questions),
            "num_with_answers": sum(
                bool(question.answers) for question in collection.questions.questions
            ),
            "num_passages": len(collection.passages),
            "depth": int(found[REAL].ids.shape[1]),
            **(protocol or {}),
        },
    )
    if config.run_file:
        for name, neighbours in found.items():
            path = run.workdir / "runs" / f"{name}.trec.gz"
            ranking.write_run(
                as_run(collection, neighbours), path, tag=f"{run.system}-{name}"
            )
    report.write(run.workdir / "report.json", made)
    if config.per_question:
        _write_each(run.workdir / "per_question.jsonl", collection, each)
    row = _shown(made)
    folder = run.workdir / "plots"
    folder.mkdir(exist_ok=True)
    metric = next(iter(row.metrics))
    plots.control_bars(
        folder / "controls.png",
        [row],
        metric=metric,
        title="The retriever, and under each control",
    )
    if curves:
        records = {name: metrics.read(path) for name, path in curves.items()}
        plots.training_curves(
            folder / "training.png", records, label="loss (nats per question)"
        )
    terminal.say(
        tables.terminal(
            [row],
            title=f"\n{run.system}: {len(collection.questions):,} questions to "
            f"{len(collection.passages):,} passages of {named.passages}",
        )
    )
    terminal.say(f"report, plots and runs: {run.workdir}")
    return made


def _shown(made: report.Report) -> tables.Row:
    """A report's row of a table, with the figures that fit a terminal."""
    row = tables.row_of(made)
    few = {name: x for name, x in row.metrics.items() if name in SHOWN}
    return row._replace(metrics=few or row.metrics)


def _write_each(path: pathlib.Path, collection: Collection, each) -> None:
    with atomic.replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        for question in collection.questions.questions:
            figures = {
                name: {m: values.get(question.id) for m, values in by_measure.items()}
                for name, by_measure in each.items()
            }
            line = {"id": question.id, "question": question.text, **figures}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
