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

from rlm_jax import processes, terminal
from rlm_jax.data import contrastive
from rlm_jax.method import Batch, Params
from rlm_jax.methods import replug_lsr
from rlm_jax.methods.replug_lsr import REPLUGLSRConfig
from rlm_jax.recipes import runs
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.recipes.with_passages import documents, ensemble, lm_supervision
from rlm_jax.recipes.with_passages.documents import Setting
from rlm_jax.report import report
from rlm_jax.retrieval import datastore, refresh
from rlm_jax.retrievers import dense, encoder_towers, passage_search
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.retrievers.passage_search import PassageSearch
from rlm_jax.train import checkpoint, fit, parallel
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
class Config(ensemble.Config):
    """A run of REPLUG-LSR."""

    init_from: str = ""  # folder of the encoder that learns; empty: from scratch
    retriever: RetrieverConfig = dataclasses.field(default_factory=RetrieverConfig)


class Index(NamedTuple):
    """A collection as it was encoded at some step, and the encoder of that step."""

    tower: Tower
    shelf: PassageSearch
    vectors: pathlib.Path


@recipe("replug_lsr")
def run(config: Config, here: Run):
    """Train the retriever round by round, then evaluate REPLUG before and after."""
    ensemble.check(config.ensemble)
    phases = runs.Phases()
    setting = documents.prepare(
        config,
        here,
        phases,
        same=("init_from", "documents", "text"),
        tune_tokens=ensemble.tune_tokens(config),
    )
    if setting is None:
        return None
    config, _, text, passages, _ = setting
    with phases("retriever"):
        initial = _initial(config, passages)
        trained, ages = _train(config, here, setting, initial)
    runs.leave_to_first()
    encoder_towers.save(here.workdir / "encoder", trained)
    with phases("index"):
        shelves = [
            passage_search.load(config, passages, text.tokenizer, here.workdir, tower)
            for tower in (trained, initial)
        ]
    return ensemble.evaluate(
        here,
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
        return encoder_towers.load(config.init_from, wanted)
    reader = encoder_towers.train_tokenizer(passages, config.retriever.vocab_size)
    encoder = dataclasses.replace(
        wanted, vocab_size=reader.vocab_size, pad_id=reader.pad_id
    )
    method = replug_lsr.replug_lsr(
        dataclasses.replace(config.retriever.method, encoder=encoder)
    )
    key = jax.random.key(config.retriever.train.seed)
    return Tower(encoder, jax.device_get(method.init(key)), reader)


def _train(
    config: Config, run: runs.Run, setting: Setting, initial: Tower
) -> tuple[Tower, list[dict[str, float]]]:
    """(the trained encoder, what each refresh found of the index before it)."""
    chosen, folder = config.retriever, run.workdir / "retriever"
    method = replug_lsr.replug_lsr(
        dataclasses.replace(chosen.method, encoder=initial.config)
    )
    runs.claim_part(folder, lm_supervision.identity(setting, chosen))
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
        params = fit.train(
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
    text = encoder_towers.cut(config.text, index.tower.config)
    reader = index.tower.tokenizer
    to_rows = encoder_towers.passage_rows(reader, text)
    own = lm_supervision.own_documents(setting)
    mine = parallel.local_rows(chosen.batch_size, accumulate=chosen.train.accumulate)
    judge = functools.partial(
        lm_supervision.examples, config, setting.model, setting.text, shelf, own
    )

    def batch_at(step: int) -> Batch:
        seed, size = chosen.train.seed, chosen.batch_size
        places = lm_supervision.draw(config, setting.text, seed, step, size)[mine]
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
    places = lm_supervision.draw(config, setting.text, 1 << 20, 0, SAMPLE)
    questions = lm_supervision.questions(config, setting.text, places)
    k = config.retriever.method.k
    found = [_search(config, now, index.vectors)(questions, k) for index in (old, new)]
    return refresh.staleness(*found)


def _search(config: Config, tower: Tower, vectors: pathlib.Path):
    store = datastore.open(vectors)
    return dense.searcher(tower, store, config.text, config.search, keep="last")


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
        passage_search.encoded(config, setting.passages, now, vectors, alone=False)
        if processes.is_first():
            encoder_towers.save(there / "encoder", now)

    def open_index(there: pathlib.Path) -> Index:
        then = encoder_towers.load(there / "encoder", tower.config)
        tokenizer = setting.text.tokenizer
        return Index(
            then,
            PassageSearch(
                setting.passages,
                _search(config, then, there / "vectors"),
                passage_search.document_tokens(config, setting.passages, tokenizer),
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
