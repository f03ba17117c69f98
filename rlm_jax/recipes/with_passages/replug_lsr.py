"""REPLUG-LSR: the retriever learns which documents help a frozen language model.

The encoder that it starts from is a folder in Hugging Face's layout (``init_from``);
without one a small encoder starts from nothing. The collection is encoded again while
it is trained, as ``retriever.refresh`` says. Evaluation is REPLUG's, beside the encoder
as it was before (``init``).
"""

import dataclasses
import functools
import pathlib

import jax
import numpy as np

from rlm_jax.data.passages import Passages
from rlm_jax.method import Batch
from rlm_jax.methods import replug_lsr
from rlm_jax.methods.replug_lsr import REPLUGLSRConfig
from rlm_jax.recipes import runs, stale_training
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.recipes.with_passages import documents, ensemble, lm_supervision
from rlm_jax.recipes.with_passages.documents import Setting
from rlm_jax.retrievers import encoder_towers, passage_search, trained_towers
from rlm_jax.retrievers.background import WorkerConfig
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.side_files import hub
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig
from rlm_jax.train.rounds import RefreshConfig

SAMPLE = 256
"""Places of the training text by which a stale index is held to a fresh one."""


@dataclasses.dataclass
class RetrieverConfig:
    """How the retriever is trained; its documents are ``method.k`` a place."""

    method: REPLUGLSRConfig = dataclasses.field(default_factory=REPLUGLSRConfig)
    batch_size: int = 16  # places of the text in a step, over all devices
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    refresh: RefreshConfig = dataclasses.field(default_factory=RefreshConfig)
    worker: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)
    vocab_size: int = 8192  # of the WordPiece, from scratch


@dataclasses.dataclass
class Config(ensemble.Config):
    """A run of REPLUG-LSR."""

    init_from: str = ""  # folder of the encoder that learns; empty: from scratch
    retriever: RetrieverConfig = dataclasses.field(default_factory=RetrieverConfig)


@recipe("replug_lsr")
def run(config: Config, here: Run):
    """Train the retriever round by round, then evaluate REPLUG before and after."""
    ensemble.check(config.ensemble)
    hub.require(init_from=config.init_from)
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
        initial = _initial(config, passages, here.workdir / "retriever")
        trained, ages = _train(config, here, setting, initial)
    runs.leave_to_first()
    encoder_towers.save(here.workdir / "encoder", trained)
    with phases("index"):
        searchers = [
            passage_search.load(config, passages, text.tokenizer, here.workdir, tower)
            for tower in (trained, initial)
        ]
    return ensemble.evaluate(
        here,
        phases,
        setting,
        searchers[0],
        {"init": searchers[1]},
        facts={"refreshes": ages},
    )


def _initial(config: Config, passages: Passages, folder: pathlib.Path) -> Tower:
    """The encoder that learns, as it starts."""
    wanted = config.retriever.method.encoder
    if config.init_from:
        return encoder_towers.load(config.init_from, wanted)
    tokenizer = encoder_towers.train_tokenizer(
        passages, config.retriever.vocab_size, folder
    )
    encoder = encoder_towers.fitted_to(wanted, tokenizer)
    method = replug_lsr.replug_lsr(
        dataclasses.replace(config.retriever.method, encoder=encoder)
    )
    key = jax.random.key(config.retriever.train.seed)
    return Tower(encoder, jax.device_get(method.init(key)), tokenizer)


def _train(
    config: Config, run: runs.Run, setting: Setting, initial: Tower
) -> tuple[Tower, list[dict[str, float]]]:
    """(the trained encoder, what each refresh found of the index before it)."""
    trained, folder = config.retriever, run.workdir / "retriever"
    identity = lm_supervision.identity(setting, trained, initial)
    del identity["worker"]  # where the passages are encoded, not what comes of it
    runs.claim_part(folder, identity)
    encoder_towers.keep_tokenizer(folder, initial.tokenizer)
    params, refreshes = stale_training.train(
        replug_lsr.replug_lsr(
            dataclasses.replace(trained.method, encoder=initial.config)
        ),
        _task(config, setting, initial),
        trained,
        folder,
        passages=setting.passages,
        tower=initial,
        text=config.text,
        search=config.search,
        initial_params=initial.params,
    )
    return initial._replace(params=params), refreshes


def _task(config: Config, setting: Setting, tower: Tower) -> stale_training.Task:
    """Places of the training text ask, and the language model judges documents."""
    trained, passages = config.retriever, setting.passages
    k = trained.method.k
    to_rows = trained_towers.TextRows(
        passages, tower.tokenizer, tower.config, config.text
    )
    examples = functools.partial(
        lm_supervision.examples,
        config,
        setting.model,
        setting.text,
        passage_search.document_tokens(config, passages, setting.text.tokenizer),
        lm_supervision.own_documents(setting),
    )
    draw = functools.partial(lm_supervision.draw, config, setting.text)
    ask = functools.partial(lm_supervision.questions, config, setting.text)

    def places(step: int) -> np.ndarray:
        return draw(trained.train.seed, step, trained.batch_size)

    def batch(step: int, rows: np.ndarray, candidates: np.ndarray) -> Batch:
        made = examples(places(step)[rows], candidates, k)
        # Of what asks, the words before the stride matter most.
        read = to_rows(made.questions, made.found.ids, name="passage", keep="last")
        return {
            **read,
            # A mean over the stride's tokens, of whatever length: beta goes with it.
            "teacher_scores": made.log_likelihoods / config.evaluate.stride,
            "present": made.present,
            "weight": np.ones(len(rows), np.float32),
        }

    return stale_training.Task(
        questions=lambda step: ask(places(step)),
        batch=batch,
        k=passage_search.depth(k, len(passages)),
        keep="last",
        sample=lambda: ask(draw(1 << 20, 0, SAMPLE)),
        sample_k=k,
    )
