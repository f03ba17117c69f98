"""What the launchers of language models share: text, batches, training, scores."""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from experiments.launch import Run
from rlm_jax.data import batching, corpora, token_store, tokenizers
from rlm_jax.errors import UserError
from rlm_jax.evaluate import perplexity
from rlm_jax.method import Method
from rlm_jax.train import checkpoint, loop, metrics, optim, parallel, progress, step
from rlm_jax.train.optim import OptimConfig


@dataclasses.dataclass
class DataConfig:
    """Which text, in which tokens, in which batches."""

    corpus: str = "stdlib"  # stdlib, text:PATH, jsonl:PATH or a TFDS name
    tokenizer: str = "bpe"  # bytes, bpe, word or hf:PATH
    vocab_size: int = 4096  # of bpe; word: 0 for all words
    order: str = "shuffled"  # shuffled, consecutive, same_document or similar
    batch_size: int = 16  # segments of a step, over all devices
    length: int = 256  # tokens of a segment
    segments_per_group: int = 16  # consecutive and same_document: segments that follow


@dataclasses.dataclass
class EvaluateConfig:
    """The perplexity protocol: sliding windows over a split."""

    window: int = 512  # tokens a window holds
    stride: int = 256  # tokens scored in it; the others are context
    batch_size: int = 8  # windows at a time
    max_tokens: int = 0  # of each split; 0: all
    validation_batches: int = 8  # scored at each `train.eval_every`


@dataclasses.dataclass
class Experiment:
    """A run, but for its method; launchers add a field ``method``."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: loop.TrainConfig = dataclasses.field(default_factory=loop.TrainConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    continue_from: str = ""  # workdir whose last checkpoint this run goes on from


SAME = ("data", "method", "optim", "continue_from")
"""What a workdir's runs must have in common."""


class Text(NamedTuple):
    """A corpus in tokens."""

    tokenizer: tokenizers.Tokenizer
    store: token_store.TokenStore


def load_text(config: DataConfig) -> Text:
    """The corpus, its tokenizer and its tokens; each is built once and cached."""
    corpus = corpora.load(config.corpus)
    tokenizer = tokenizers.build(
        config.tokenizer, corpus, vocab_size=config.vocab_size
    )
    return Text(tokenizer, token_store.build(corpus, tokenizer))


def batches(config: DataConfig, split: token_store.TokenSplit) -> batching.Batches:
    """The batches of a split in the configured order."""
    size = {"batch_size": config.batch_size, "length": config.length}
    group = {"segments_per_group": config.segments_per_group}
    orders = {
        "shuffled": lambda: batching.shuffled(split, **size),
        "consecutive": lambda: batching.consecutive(split, **size, **group),
        "same_document": lambda: batching.same_document(split, **size, **group),
        "similar": lambda: batching.similar(split, **size),
    }
    if config.order not in orders:
        raise UserError(
            f"data.order is {config.order!r}; choose one of {', '.join(orders)}."
        )
    return orders[config.order]()


def train(method: Method, config: Experiment, text: Text, run: Run, *, steps: int):
    """Train to ``steps``, resuming; the parameters, on the host.

    Calling it again with another method and more steps goes on where the last one
    stopped, optimiser and all: that is how TRIME follows its cross-entropy warm-up.
    """
    folder = run.workdir / "checkpoints"
    if config.continue_from and not folder.exists():
        checkpoint.copy_latest(pathlib.Path(config.continue_from) / "checkpoints", folder)
    train_batches = batches(config.data, text.store.split("train"))
    rows = parallel.local_rows(config.data.batch_size)
    state = loop.train(
        method,
        optim.optimizer(config.optim, config.train.steps),
        lambda s: train_batches.batch_at(config.train.seed, s, rows=rows),
        config=dataclasses.replace(config.train, steps=steps),
        workdir=run.workdir,
        schedule=optim.schedule(config.optim, config.train.steps),
        evaluate=_validation(method, config, text, rows),
    )
    return jax.device_get(state.params)


def _validation(method, config: Experiment, text: Text, rows: slice):
    """(params, step) -> the means of the method's own evaluation on some batches."""
    some = batches(config.data, text.store.split("validation"))
    run = parallel.parallelise(
        functools.partial(step.eval_step, method=method), donate=False
    )

    def evaluate(params, _):
        sums: metrics.HostSums = {}
        count = min(config.evaluate.validation_batches, some.num_batches)
        for i in range(count):
            batch = some.batch_at(0, i, rows=rows)
            sums = metrics.add(sums, metrics.to_host(run(params, batch)))
        return metrics.means(sums)

    return evaluate


def score_split(method: Method, params, config: Experiment, text: Text, name: str):
    """(scores of a split's tokens, its number of bytes and of words)."""
    split = text.store.split(name)
    limit = config.evaluate.max_tokens or len(split.tokens)
    tokens = split.tokens[:limit]
    share = len(tokens) / len(split.tokens)
    assert method.score is not None
    scores = perplexity.score_stream(
        method.score,
        params,
        tokens,
        window=config.evaluate.window,
        stride=config.evaluate.stride,
        batch_size=config.evaluate.batch_size,
        wrap=functools.partial(progress.bar, description=f"scoring {name}"),
    )
    size = {
        "num_bytes": round(split.num_bytes * share),
        "num_words": round(split.num_words * share),
    }
    return scores, size
