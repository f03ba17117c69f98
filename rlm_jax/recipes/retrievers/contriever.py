"""Contriever: a retriever trained on text alone, judged on questions it never saw."""

import dataclasses
import functools
from typing import Literal

import jax

from rlm_jax import pretrained
from rlm_jax.data import (
    collections,
    contrastive,
    text_encoding,
)
from rlm_jax.data.text_encoding import TextTokenizer
from rlm_jax.data.texts import DataConfig
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.errors import UserError
from rlm_jax.method import Batches, Method, Params
from rlm_jax.methods import contriever
from rlm_jax.methods.contriever import ContrieverConfig, InBatchConfig
from rlm_jax.recipes import language_model, runs
from rlm_jax.recipes.retrievers import ranking_report
from rlm_jax.recipes.retrievers.ranking_report import Experiment
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.retrievers import encoder_towers
from rlm_jax.retrievers.encoder_towers import Tower, Towers
from rlm_jax.side_files import hub
from rlm_jax.train import dry_run, fit


@dataclasses.dataclass
class CropsConfig:
    """Which text, in which tokens, and how it is cropped."""

    corpus: str = "stdlib"  # stdlib, text:PATH, jsonl:PATH or a TFDS name
    tokenizer: str = "wordpiece"  # wordpiece, trained here, or hf:PATH/tokenizer.json
    vocab_size: int = 8192  # of wordpiece
    window: int = 256  # tokens, of which two crops are taken
    smallest: float = 0.05  # share of the window
    largest: float = 0.5  # share of the window
    deletion: float = 0.1  # of a token, before it is encoded

    def check(self) -> None:
        """Raises UserError where no crop has a length."""
        if self.smallest > self.largest:
            raise UserError(
                f"crops.smallest={self.smallest} is more than crops.largest="
                f"{self.largest}; choose shares that rise."
            )


@dataclasses.dataclass
class Config(Experiment):
    """Training on crops, and the collection on which the retriever is judged."""

    crops: CropsConfig = dataclasses.field(default_factory=CropsConfig)
    method: ContrieverConfig = dataclasses.field(default_factory=ContrieverConfig)
    negatives: Literal["queue", "batch"] = "queue"  # queue (MoCo) or batch


SAME = (
    *("crops", "method", "negatives", "init_from", "batch_size", "optim"),
    *runs.DRAWS,
)


@recipe("contriever")
def run(config: Config, here: Run):
    """Train on crops, encode the collection, search it, judge, report."""
    hub.require(init_from=config.init_from)
    phases = runs.Phases()
    with phases("data"):
        crops = config.crops
        data = DataConfig(crops.corpus, crops.tokenizer, crops.vocab_size)
        text = language_model.load_text(data, here.workdir)
        tokenizer, store = text.tokenizer, text.store
        collection = collections.load(config.collection)
        ranking_report.check(config.judge, config.search.k, collection)
    encoder_tokenizer = text_encoding.parse(tokenizer.content)
    config, initial = _encoder(config, encoder_tokenizer)
    identity = encoder_towers.identity(encoder_tokenizer, initial)
    runs.claim(here, config, store.fingerprint, same=SAME, identity=identity)
    language_model.keep_tokenizer(here, tokenizer)
    method = _method(config)
    batches = functools.partial(_crops, config.crops, encoder_tokenizer)
    training = batches(store.split("train"), config.batch_size)
    if here.dry_run:
        collections.describe(collection)
        return dry_run.describe(method, training, config)
    with phases("train"):
        params = fit.train_on_batches(
            method,
            training,
            batches(store.split("validation"), config.batch_size),
            config,
            here.workdir,
            initial_params=initial,
        )
    runs.leave_to_first()
    if initial is None:
        initial = method.init(jax.random.key(config.train.seed))
    towers = {}
    for name, each in ((ranking_report.REAL, params), ("init", initial)):
        tower = Tower(config.method.encoder, each, encoder_tokenizer)
        towers[name] = Towers(tower, tower)
    return ranking_report.evaluate(
        config, here, collection, towers, phases, curves={"Contriever": here.workdir}
    )


def _encoder(config: Config, tokenizer: TextTokenizer) -> tuple[Config, Params | None]:
    """The configuration with its encoder's sizes, and the parameters to start from."""
    encoder, initial = config.method.encoder, None
    if config.init_from:
        tower = encoder_towers.load(config.init_from, encoder)
        if tower.tokenizer.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"The encoder {config.init_from} reads with another tokenizer; give "
                f"--config.crops.tokenizer=hf:{config.init_from}/tokenizer.json."
            )
        encoder, initial = tower.config, tower.params
    else:
        encoder = encoder_towers.fitted_to(encoder, tokenizer)
    pretrained.check_layout(encoder)  # before it is trained, not after
    method = dataclasses.replace(config.method, encoder=encoder)
    return dataclasses.replace(config, method=method), initial


def _method(config: Config) -> Method:
    c = config.method
    makers = {
        "queue": lambda: contriever.contriever(c),
        "batch": lambda: contriever.contriever_in_batch(
            InBatchConfig(c.encoder, c.temperature, c.label_smoothing, k=c.k)
        ),
    }
    return makers[config.negatives]()


def _crops(
    config: CropsConfig, tokenizer: TextTokenizer, split: TokenSplit, batch_size: int
) -> Batches:
    return contrastive.crops(
        split,
        cls_id=tokenizer.cls_id,
        sep_id=tokenizer.sep_id,
        pad_id=tokenizer.pad_id,
        batch_size=batch_size,
        window=config.window,
        crop=(config.smallest, config.largest),
        deletion=config.deletion,
    )
