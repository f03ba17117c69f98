"""REPLUG-LSR: the retriever learns which documents help a frozen language model.

    python -m experiments.replug_lsr --preset tiny --workdir runs/replug_lsr
      --config.init_from=FOLDER

The encoder that it starts from is a folder in Hugging Face's layout; without one a
small encoder starts from nothing. Every ``refresh_every`` steps training stops and the
collection is encoded again. Evaluation is that of experiments.replug, beside the
encoder as it was before (``init``).
"""

import dataclasses
import functools
import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from experiments import (
    documents,
    feedback,
    launch,
    library,
    presets,
    replug,
    retrievers,
    training,
)
from experiments.documents import DocumentsConfig, Setting
from experiments.library import Library
from experiments.retrievers import TextConfig, Tower
from rlm_jax import processes, terminal
from rlm_jax.data import contrastive
from rlm_jax.method import Batch, Params
from rlm_jax.methods import replug_lsr
from rlm_jax.methods.replug_lsr import REPLUGLSRConfig
from rlm_jax.report import report
from rlm_jax.retrieval import datastore, refresh
from rlm_jax.train import checkpoint, parallel
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig

SAMPLE = 256
"""Places of the training text by which a stale index is held to a fresh one."""


@dataclasses.dataclass
class RetrieverConfig:
    """How the retriever is trained; its documents are ``method.k`` a place."""

    method: REPLUGLSRConfig = dataclasses.field(default_factory=REPLUGLSRConfig)
    batch_size: int = 16  # places of the text in a step, over all devices
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    refresh_every: int = 3000  # steps that an index serves
    vocab_size: int = 8192  # of the WordPiece, from scratch


@dataclasses.dataclass
class Config(replug.Config):
    """A run of REPLUG-LSR."""

    init_from: str = ""  # folder of the encoder that learns; empty: from scratch
    retriever: RetrieverConfig = dataclasses.field(default_factory=RetrieverConfig)


def tiny() -> Config:
    """The embedded corpus, an encoder from scratch.

    Command: python -m experiments.replug_lsr --preset tiny --workdir runs/replug_lsr
    Corpus: stdlib, BPE of 4,096; documents: its training split in passages of 100
    words. Hardware: 2 CPU cores. Time: under 5 minutes. Figure: docs/results.md.
    """
    return Config(
        **presets.tiny_documents(),
        ensemble=replug.EnsembleConfig(ks=(1, 2, 5), tune_tokens=4096),
        text=TextConfig(question_length=48, passage_length=96),
        retriever=RetrieverConfig(
            REPLUGLSRConfig(presets.tiny_encoder(), k=8),
            batch_size=8,
            optim=OptimConfig(learning_rate=3e-4, warmup_steps=10),
            train=TrainConfig(steps=80, log_every=10, checkpoint_every=40),
            refresh_every=40,
        ),
    )


def wikitext2() -> Config:
    """A sentence encoder learns what helps a language model of WikiText-2.

    Command: python -m experiments.replug_lsr --preset wikitext2 --workdir runs/wt2_lsr
      --config.data.corpus=text:FOLDER --config.model=runs/wt2_ralm
      --config.documents.passages=corpus:text:FOLDER+jsonl:FILE
      --config.init_from=FOLDER (all-MiniLM-L6-v2)
    Corpus: WikiText-2, BPE of 8,192. Meant for 2 CPU cores; not run to its end here.
    """
    return Config(
        **presets.wikitext2_documents(),
        init_from="data/all-MiniLM-L6-v2",
        text=TextConfig(question_length=48, passage_length=128),
        retriever=RetrieverConfig(
            REPLUGLSRConfig(k=10),
            batch_size=8,
            optim=OptimConfig(learning_rate=2e-5, warmup_steps=20, b2=0.999),
            train=TrainConfig(steps=200, log_every=10, checkpoint_every=50),
            refresh_every=100,
        ),
    )


def paper() -> Config:
    """Shi et al. 2023: Contriever learns from GPT-3 on the Pile.

    Command: python -m experiments.replug_lsr --preset paper --workdir runs/replug_lsr
      --config.model=FOLDER (GPT-2) --config.init_from=FOLDER (Contriever)
      --config.data.corpus=jsonl:FOLDER --config.documents.passages=jsonl:FOLDER
    Corpus: the Pile, 36 million passages of 128 tokens. Hardware: accelerators. Figure:
    the paper's bits per byte of GPT-2 small, 1.33 -> 1.21; not run here.
    """
    return Config(
        **presets.paper_documents("jsonl:data/pile", stride=768, window=896),
        documents=DocumentsConfig(
            passages="jsonl:data/pile_passages",
            num=10,
            query_length=128,
            length=128,
            placement="prepend",
            rank_tokens=0,
            reuse=1,
        ),
        model="data/gpt2",
        init_from="data/contriever",
        ensemble=replug.EnsembleConfig(temperatures=(0.1,), tune_tokens=0),
        text=TextConfig(question_length=160, passage_length=160),
        retriever=RetrieverConfig(
            batch_size=64,
            optim=OptimConfig(learning_rate=2e-5, schedule="linear", warmup_steps=30),
            train=TrainConfig(steps=3000, log_every=50, checkpoint_every=500),
        ),
    )


PRESETS = {"tiny": tiny, "wikitext2": wikitext2, "paper": paper}


class Index(NamedTuple):
    """A collection as it was encoded at some step, and the encoder of that step."""

    tower: Tower
    shelf: Library
    vectors: pathlib.Path


def execute(config: Config, run: launch.Run):
    """Train the retriever round by round, then evaluate REPLUG before and after."""
    replug.check(config.ensemble)
    phases = launch.Phases()
    setting = documents.prepare(
        config,
        run,
        phases,
        same=("init_from", "documents", "text"),
        tune_tokens=replug.tune_tokens(config),
    )
    if setting is None:
        return None
    config, _, text, passages, _ = setting
    with phases("retriever"):
        initial = _initial(config, passages)
        trained, ages = _train(config, run, setting, initial)
    launch.leave_to_first()
    retrievers.save_tower(run.workdir / "encoder", trained)
    with phases("index"):
        shelves = [
            library.load(config, passages, text.tokenizer, run.workdir, tower)
            for tower in (trained, initial)
        ]
    return replug.evaluate(
        run,
        phases,
        setting,
        shelves[0],
        {"init": shelves[1]},
        facts={"refreshes": ages},
    )


def _initial(config: Config, passages) -> Tower:
    """The encoder that learns, as it starts."""
    wanted = config.retriever.method.encoder
    if config.init_from:
        return retrievers.load_tower(config.init_from, wanted)
    reader = retrievers.train_tokenizer(passages, config.retriever.vocab_size)
    encoder = dataclasses.replace(
        wanted, vocab_size=reader.vocab_size, pad_id=reader.pad_id
    )
    method = replug_lsr.replug_lsr(
        dataclasses.replace(config.retriever.method, encoder=encoder)
    )
    key = jax.random.key(config.retriever.train.seed)
    return Tower(encoder, jax.device_get(method.init(key)), reader)


def _train(
    config: Config, run: launch.Run, setting: Setting, initial: Tower
) -> tuple[Tower, list[dict[str, float]]]:
    """(the trained encoder, what each refresh found of the index before it)."""
    chosen, folder = config.retriever, run.workdir / "retriever"
    method = replug_lsr.replug_lsr(
        dataclasses.replace(chosen.method, encoder=initial.config)
    )
    launch.claim_part(folder, feedback.identity(setting, chosen))
    done, params = _latest(folder, initial.params)
    told = folder / "refreshes.json"
    ages = json.loads(told.read_text())["refreshes"] if told.exists() else []
    every = chosen.refresh_every
    for turn in refresh.synchronous(done, chosen.train.steps, every):
        fresh = turn.start == turn.index_step
        made_of = params if fresh else None
        index = _index(config, folder, setting, initial, turn.index_step, made_of)
        before = turn.start - every
        untold = turn.start > max((x["step"] for x in ages), default=0)
        # Training can go on without the index before, if it is no more.
        if fresh and untold and refresh.exists(folder / "indexes", before):
            old = _index(config, folder, setting, initial, before, None)
            now = initial._replace(params=params)
            found = _staleness(config, setting, now, old, index)
            age = refresh.Round(before, turn.start, before).age()
            ages.append({"step": turn.start, **age, **found})
            if processes.is_first():
                report.write(told, {"refreshes": ages})
            terminal.say(
                f"step {turn.start}: the index before, {every} steps old, finds "
                f"{found['stale_recall']:.1%} of what the new one does"
            )
        refresh.remove_others(folder / "indexes", turn.index_step)
        params = training.train(
            method,
            _batches(config, setting, index),
            chosen.optim,
            chosen.train,
            folder,
            stop=turn.stop,
            initial_params=initial.params,
        )
    return initial._replace(params=params), ages


def _batches(config: Config, setting: Setting, index: Index):
    """Step -> this process's rows of its batch."""
    chosen, shelf = config.retriever, index.shelf
    text = retrievers.cut(config.text, index.tower.config)
    reader = index.tower.tokenizer
    to_rows = retrievers.passage_rows(reader, text)
    own = feedback.own_documents(setting)
    mine = parallel.local_rows(chosen.batch_size, accumulate=chosen.train.accumulate)
    judge = functools.partial(
        feedback.examples, config, setting.model, setting.text, shelf, own
    )

    def batch_at(step: int) -> Batch:
        seed, size = chosen.train.seed, chosen.batch_size
        places = feedback.draw(config, setting.text, seed, step, size)[mine]
        made = judge(places, chosen.method.k)
        some = [shelf.passages[max(row, 0)] for row in made.found.ids.reshape(-1)]
        length = text.passage_length
        of_passages = contrastive.padded(
            "passage", to_rows(some), length, reader.pad_id
        )
        shape = (*made.found.ids.shape, length)
        asked = reader.encode(
            made.questions, max_length=text.question_length, keep="last"
        )
        return {
            **contrastive.padded("query", asked, text.question_length, reader.pad_id),
            **{name: x.reshape(shape) for name, x in of_passages.items()},
            # A mean over the stride's tokens, of whatever length: beta goes with it.
            "lm_scores": made.log_likelihoods / config.evaluate.stride,
            "present": made.present,
            "weight": np.ones(len(places), np.float32),
        }

    return batch_at


def _staleness(
    config: Config, setting: Setting, now: Tower, old: Index, new: Index
) -> dict[str, float]:
    """What the index before lost: candidates of today's encoder in both indexes."""
    places = feedback.draw(config, setting.text, 1 << 20, 0, SAMPLE)
    questions = feedback.questions(config, setting.text, places)
    k = config.retriever.method.k
    found = [_search(config, now, index.vectors)(questions, k) for index in (old, new)]
    return refresh.staleness(*found)


def _search(config: Config, tower: Tower, vectors: pathlib.Path):
    store = datastore.open(vectors)
    return retrievers.searcher(tower, store, config.text, config.search, keep="last")


def _latest(folder: pathlib.Path, initial: Params) -> tuple[int, Params | None]:
    """Steps done, and the parameters after them; without a checkpoint the first."""
    if not (folder / "checkpoints").exists():
        return 0, initial
    return (
        checkpoint.latest_step(folder / "checkpoints"),
        checkpoint.load_params(folder),
    )


def _index(
    config: Config,
    folder: pathlib.Path,
    setting: Setting,
    tower: Tower,
    step: int,
    params: Params | None,
) -> Index:
    """The index of a step: opened, or made of its parameters, None where it is past."""

    def build(params: Params, there: pathlib.Path) -> None:
        now = tower._replace(params=params)
        vectors = there / "vectors"
        library.encoded(config, setting.passages, now, vectors, alone=False)
        if processes.is_first():
            retrievers.save_tower(there / "encoder", now)

    def open_index(there: pathlib.Path) -> Index:
        then = retrievers.load_tower(there / "encoder", tower.config)
        tokenizer = setting.text.tokenizer
        return Index(
            then,
            Library(
                setting.passages,
                _search(config, then, there / "vectors"),
                library.document_tokens(config, setting.passages, tokenizer),
            ),
            there / "vectors",
        )

    return refresh.open_or_build(
        folder / "indexes",
        step,
        {
            "passages": setting.passages.fingerprint,
            "tokenizer": tower.tokenizer.fingerprint,
            "text": dataclasses.asdict(config.text),
        },
        params=params,
        build=build,
        open=open_index,
    )


if __name__ == "__main__":
    launch.main("replug_lsr", PRESETS, execute)
