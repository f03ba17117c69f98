"""What the recipes of language models share: the text, the training, the scores."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from rlm_jax import processes, terminal
from rlm_jax.data import corpora, tokenizers
from rlm_jax.data.texts import (
    STDLIB,
    DataConfig,
    Text,
    batches,
    head,
    in_tokens_of,
    of_corpus,
)
from rlm_jax.errors import UserError
from rlm_jax.evaluate import perplexity
from rlm_jax.evaluate.perplexity import Scored
from rlm_jax.method import Batches, Method, Params
from rlm_jax.recipes import runs
from rlm_jax.recipes.runs import Run
from rlm_jax.train import checkpoint, dry_run, fit, loop
from rlm_jax.train.optim import OptimConfig


@dataclasses.dataclass
class EvaluateConfig:
    """The perplexity protocol: sliding windows over a split."""

    window: int = 256  # tokens a window holds; no more than training's segments have
    stride: int = 128  # tokens scored in it; the others are context
    batch_size: int = 8  # windows at a time
    max_tokens: int = 0  # of each split, from its start; 0: all
    validation_batches: int = 8  # scored at each `train.eval_every`

    def check(self) -> None:
        """Raises UserError for a stride that leaves tokens between windows out."""
        if self.stride > self.window:
            raise UserError(
                f"evaluate.stride={self.stride} is beyond evaluate.window="
                f"{self.window}, and tokens between two windows would not be scored; "
                "choose a stride of at most the window."
            )


@dataclasses.dataclass
class Experiment:
    """A run, but for its method: a system's configuration adds the field ``method``."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: loop.TrainConfig = dataclasses.field(default_factory=loop.TrainConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    continue_from: str = ""  # workdir whose last checkpoint this run goes on from


SAME = ("data", "method", "optim", "continue_from", *runs.DRAWS)
"""What all runs in one workdir have in common."""


def load_text(config: DataConfig, workdir: pathlib.Path | None = None) -> Text:
    """The corpus, its tokenizer and its tokens; each is built once and cached.

    A run that goes on in ``workdir`` has its own copy of the tokenizer there.
    """
    if workdir is not None and (workdir / runs.TOKENIZER).exists():
        return in_tokens_of(tokenizers.load(workdir / runs.TOKENIZER), config)
    corpus = corpora.load(config.corpus or STDLIB)
    tokenizer = tokenizers.build(config.tokenizer, corpus, vocab_size=config.vocab_size)
    return of_corpus(corpus, tokenizer)


def keep_tokenizer(run: Run, tokenizer: tokenizers.Tokenizer) -> None:
    """Leaves a copy of the tokenizer in the workdir, with which `load_text` goes on."""
    own = run.workdir / runs.TOKENIZER
    if processes.is_first() and not run.dry_run and not own.exists():
        tokenizer.save(own)


def inherited(data: DataConfig, source: str) -> DataConfig:
    """The configuration of the text, which may be that of the run ``source``.

    Where ``data`` names no corpus, corpus and tokenizer are those of that run, if it is
    one over a text, and else the embedded corpus with the tokenizer of ``data``.
    """
    if data.corpus:
        return data
    theirs = runs.stored(source).get("data") if source else None
    if not isinstance(theirs, dict) or "corpus" not in theirs:
        return dataclasses.replace(data, corpus=STDLIB)
    names = ("corpus", "tokenizer", "vocab_size")
    return dataclasses.replace(data, **{n: theirs[n] for n in names if n in theirs})


def check_split(text: Text, name: str, corpus: str) -> None:
    """Before the work: whether a split can be scored.

    Raises:
      UserError: there is none of that name, or it has no word or one token only.
    """
    split = text.store.split(name)
    if len(split.tokens) < 2 or not split.num_words:
        raise UserError(
            f"The {name} split of {corpus} has {len(split.tokens)} tokens and "
            f"{split.num_words} words, of which no perplexity can be told; give it "
            "some text."
        )


def note_grid_end(name: str, value: float, grid: Sequence[float]) -> None:
    """Tells where a tuned value lies at the end of its grid, and may lie beyond it."""
    if len(grid) > 1 and value in (min(grid), max(grid)):
        terminal.say(
            f"note: the best {name} is {value:g}, at the end of the grid "
            f"{', '.join(f'{x:g}' for x in sorted(grid))}; widen it, for the best may "
            "lie beyond"
        )


def memory_size(name: str, size: int, scored: Scored) -> int:
    """Tokens that a memory of the past holds: no more than there are, which is told."""
    most = len(scored.stream.targets)
    if size > most:
        terminal.say(
            f"note: {name}={size:,} is beyond the {most:,} tokens that are evaluated, "
            "all of which it holds"
        )
    return min(size, most)


def with_vocabulary(config: Any, text: Text) -> Any:
    """The run's configuration with the size of the vocabulary, which the text tells."""
    size = text.tokenizer.vocab_size
    decoder = dataclasses.replace(config.method.decoder, vocab_size=size)
    method = dataclasses.replace(config.method, decoder=decoder)
    return dataclasses.replace(config, method=method)


def note_untrained(trained: int, length: int, rows: str) -> None:
    """Tells of rows longer than those the model is ``trained`` on (0: not known)."""
    if 0 < trained < length:
        terminal.say(
            f"note: {rows} of {length} tokens have positions that the model's segments "
            f"of {trained} never trained"
        )


def train(
    method: Method,
    config: Experiment,
    text: Text,
    run: Run,
    *,
    steps: int,
    initial_params: Params | None = None,
) -> Params:
    """Train to ``steps``, resuming from the workdir; the parameters, on the host.

    Calling it again with another method and more steps goes on where the last one
    stopped, optimiser and all: that is how TRIME follows its cross-entropy warm-up.
    """
    if config.continue_from:
        _continue_from(config, text, run.workdir / "checkpoints", steps)
    data = config.data
    check_batches(config)
    note_untrained(data.length, config.evaluate.window, "windows at evaluation")
    return fit.train(
        method,
        fit.from_batches(_batches(data, text, "train"), data.batch_size, config.train),
        config.optim,
        config.train,
        run.workdir,
        stop=steps,
        initial_params=initial_params,
        validation=_validation(method, config, text),
    )


def check_batches(config: Experiment) -> None:
    """Raises UserError where micro-batches cut groups of segments apart."""
    data, accumulate = config.data, config.train.accumulate
    if data.order in ("consecutive", "same_document") and (
        data.batch_size % (accumulate * data.segments_per_group)
    ):
        raise UserError(
            f"A batch of {data.batch_size} segments in {accumulate} micro-batches cuts "
            f"groups of {data.segments_per_group} apart; make data.batch_size a "
            f"multiple of {accumulate * data.segments_per_group}."
        )


def _continue_from(
    config: Experiment, text: Text, folder: pathlib.Path, steps: int
) -> None:
    """Another run's last checkpoint becomes this run's first, unless it has its own.

    The first process copies; what is wrong is found by all, so that none waits alone.
    """
    source = config.continue_from
    begun = folder.exists()
    processes.wait("before continue_from")
    if begun:
        return
    runs.configuration_of(source, text.fingerprint)
    done = checkpoint.latest_step(pathlib.Path(source) / "checkpoints")
    if done > steps:
        raise UserError(
            f"The run {source} has {done} steps, beyond the {steps} asked for; "
            "raise --config.train.steps."
        )
    if processes.is_first():
        checkpoint.copy_latest(source, folder)
    processes.wait("continue_from")


def _validation(method: Method, config: Experiment, text: Text) -> fit.Validation:
    count = config.evaluate.validation_batches
    some = _validation_batches(config.data, text)
    return fit.validation_of(method, some, config.data.batch_size, count)


def _validation_batches(data: DataConfig, text: Text) -> Batches:
    if data.order in ("similar", "related"):  # no walk for a few batches
        data = dataclasses.replace(data, order="shuffled")
    return _batches(data, text, "validation")


def _batches(data: DataConfig, text: Text, name: str) -> Batches:
    try:
        return batches(data, text.store.split(name))
    except UserError as error:
        raise UserError(f"Of {data.corpus}, {name}: {error}") from error


def describe(method: Method, config: Experiment, text: Text) -> None:
    """What a dry run shows: the model, a batch, the text, the memory of a step."""
    if not processes.is_first():
        return
    check_batches(config)
    _validation_batches(config.data, text)  # there have to be some
    train_batches = _batches(config.data, text, "train")
    for name, split in text.store.splits.items():
        terminal.say(f"{name}: {len(split.tokens):,} tokens, {split.num_bytes:,} bytes")
    dry_run.describe(method, train_batches, config)


def score_split(
    method: Method,
    params: Params,
    config: Experiment,
    text: Text,
    name: str,
    *,
    limit: int = 0,
) -> Scored:
    """Every token of a split, or of its first ``limit``, in the configured windows."""
    limits = [x for x in (limit, config.evaluate.max_tokens) if x]
    tokens, size = head(text, name, min(limits, default=0))
    assert method.score is not None
    stream = perplexity.score_stream(
        method.score,
        params,
        tokens,
        window=config.evaluate.window,
        stride=config.evaluate.stride,
        batch_size=config.evaluate.batch_size,
        wrap=terminal.bar(f"scoring {name}", "batch"),
    )
    return Scored(stream, tokens, *size)
