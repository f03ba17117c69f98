"""Contriever: a retriever trained on text alone, judged on questions it never saw.

python -m experiments.contriever --preset tiny --workdir runs/contriever
"""

import dataclasses
import functools

import jax

from experiments import dry_run, launch, presets, ranking_report, retrievers
from experiments.ranking_report import Experiment, Towers
from experiments.retrievers import CollectionConfig, TextConfig, Tower
from rlm_jax import pretrained
from rlm_jax.data import contrastive, corpora, text_encoding, token_store, tokenizers
from rlm_jax.errors import UserError
from rlm_jax.method import Method
from rlm_jax.methods import contriever
from rlm_jax.methods.contriever import ContrieverConfig, InBatchConfig
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig


@dataclasses.dataclass
class CropsConfig:
    """Which text, in which tokens, and how it is cropped."""

    corpus: str = "stdlib"  # stdlib, text:PATH, jsonl:PATH or a TFDS name
    tokenizer: str = "wordpiece"  # wordpiece, trained here, or hf:PATH/tokenizer.json
    vocab_size: int = 8192  # of wordpiece
    window: int = 256  # tokens, of which two crops are taken
    smallest: float = 0.05  # share of the window
    largest: float = 0.5
    deletion: float = 0.1  # of a token, before it is encoded


@dataclasses.dataclass
class Config(Experiment):
    """Training on crops, and the collection on which the retriever is judged."""

    crops: CropsConfig = dataclasses.field(default_factory=CropsConfig)
    method: ContrieverConfig = dataclasses.field(default_factory=ContrieverConfig)
    negatives: str = "queue"  # queue (MoCo) or batch


def tiny() -> Config:
    """The embedded corpus; docstrings of its test modules ask for their functions.

    Command: python -m experiments.contriever --preset tiny --workdir runs/contriever
    Corpus: stdlib, WordPiece of 8,192. Hardware: 2 CPU cores. Time: under 3 minutes.
    Figure: docs/results.md.
    """
    return Config(
        crops=CropsConfig(window=128),
        method=ContrieverConfig(presets.tiny_encoder(), queue_size=4096, momentum=0.99),
        batch_size=64,
        optim=OptimConfig(learning_rate=5e-4, warmup_steps=50),
        train=TrainConfig(
            steps=400, log_every=20, eval_every=200, checkpoint_every=200
        ),
        text=TextConfig(question_length=48, passage_length=128),
    )


def novels() -> Config:
    """From scratch on a folder of text, in-batch negatives; SciFact as a test.

    Command: python -m experiments.contriever --preset novels --workdir runs/contriever
      --config.crops.corpus=text:FOLDER --config.collection.passages=beir:FOLDER
    Corpus: novels and WikiText-2, WordPiece of 16,384. Hardware: 2 CPU cores.
    Time: 10 minutes. Figure: docs/results.md.
    """
    encoder = EncoderConfig(
        num_layers=3, width=256, num_heads=4, feed_forward_width=1024, max_length=256,
        normalise=True, dropout=0.0,
    )  # fmt: skip
    return Config(
        crops=CropsConfig("text:data/novels", vocab_size=16384, window=192),
        method=ContrieverConfig(encoder, queue_size=16384, momentum=0.995),
        negatives="batch",
        batch_size=128,
        optim=OptimConfig(
            learning_rate=1e-4, warmup_steps=50, min_learning_rate=1e-5,
            weight_decay=0.01,
        ),
        train=TrainConfig(steps=240, log_every=20, checkpoint_every=120),
        collection=CollectionConfig("beir:data/beir/scifact"),
    )  # fmt: skip


def paper() -> Config:
    """Izacard et al. 2022: BERT base on CCNet and Wikipedia, a queue of 131,072.

    Command: python -m experiments.contriever --preset paper --workdir runs/contriever
      --config.crops.corpus=jsonl:FOLDER --config.init_from=FOLDER (bert-base-uncased)
      --config.crops.tokenizer=hf:FOLDER/tokenizer.json
      --config.collection.passages=beir:FOLDER
    Corpus: CCNet and Wikipedia. Hardware: 32 accelerators. Time: days. Figure: the
    paper's nDCG@10 31.7 on NFCorpus, 64.9 on SciFact; not run here.
    """
    encoder = EncoderConfig(
        width=768, num_layers=12, feed_forward_width=3072, dtype="bfloat16"
    )
    return Config(
        crops=CropsConfig(
            "jsonl:data/ccnet_wikipedia", "hf:data/bert-base-uncased/tokenizer.json"
        ),
        method=ContrieverConfig(encoder),
        init_from="data/bert-base-uncased",
        batch_size=2048,
        optim=OptimConfig(
            learning_rate=5e-5, schedule="linear", warmup_steps=20_000,
            weight_decay=0.01,
        ),
        train=TrainConfig(
            steps=500_000, log_every=100, eval_every=5000, checkpoint_every=5000
        ),
        collection=CollectionConfig("beir:data/beir/scifact"),
    )  # fmt: skip


PRESETS = {"tiny": tiny, "novels": novels, "paper": paper}
SAME = ("crops", "method", "negatives", "init_from", "batch_size", "optim")


def execute(config: Config, run: launch.Run):
    """Train on crops, encode the collection, search it, judge, report."""
    phases = launch.Phases()
    with phases("data"):
        corpus = corpora.load(config.crops.corpus)
        tokenizer = tokenizers.build(
            config.crops.tokenizer, corpus, vocab_size=config.crops.vocab_size
        )
        store = token_store.build(corpus, tokenizer)
        collection = retrievers.load_collection(config.collection)
    launch.claim(run, config, store.fingerprint, same=SAME)
    reader = text_encoding.parse(tokenizer.content)
    config, initial = _encoder(config, reader)
    method = _method(config)
    batches = functools.partial(_crops, config.crops, reader)
    training = batches(store.split("train"), config.batch_size)
    if run.dry_run:
        retrievers.describe(collection)
        return dry_run.describe(method, training, config)
    with phases("train"):
        params = retrievers.train(
            method,
            training,
            batches(store.split("validation"), config.batch_size),
            config,
            run.workdir,
            initial_params=initial,
        )
    launch.leave_to_first()
    if initial is None:
        initial = method.init(jax.random.key(config.train.seed))
    towers = {}
    for name, some in ((ranking_report.REAL, params), ("init", initial)):
        tower = Tower(config.method.encoder, some, reader)
        towers[name] = Towers(tower, tower)
    return ranking_report.evaluate(
        config, run, collection, towers, phases, curves={"Contriever": run.workdir}
    )


def _encoder(config: Config, reader: text_encoding.TextTokenizer):
    """The configuration with its encoder's sizes, and the parameters to start from."""
    encoder, initial = config.method.encoder, None
    changes = {"vocab_size": reader.vocab_size, "pad_id": reader.pad_id}
    if config.init_from:
        tower = retrievers.load_tower(config.init_from, encoder)
        if tower.tokenizer.fingerprint != reader.fingerprint:
            raise UserError(
                f"The encoder {config.init_from} reads with another tokenizer; give "
                f"--config.crops.tokenizer=hf:{config.init_from}/tokenizer.json."
            )
        encoder, initial, changes = tower.config, tower.params, {}
    encoder = dataclasses.replace(encoder, **changes)
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
    if config.negatives not in makers:
        raise UserError(
            f"negatives is {config.negatives!r}; choose one of {', '.join(makers)}."
        )
    return makers[config.negatives]()


def _crops(config: CropsConfig, reader, split, batch_size):
    return contrastive.crops(
        split,
        cls_id=reader.cls_id,
        sep_id=reader.sep_id,
        pad_id=reader.pad_id,
        batch_size=batch_size,
        window=config.window,
        crop=(config.smallest, config.largest),
        deletion=config.deletion,
    )


if __name__ == "__main__":
    launch.main("contriever", PRESETS, execute)
