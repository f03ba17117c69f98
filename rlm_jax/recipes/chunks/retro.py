"""RETRO: a language model trained against a frozen retriever.

    python -m experiments.retro --preset tiny --workdir runs/retro

The training text, cut into chunks, is encoded and searched once; every chunk then has
its neighbours for good. ``--config.init_from=MODEL --config.method.trained=retrieval``
teaches a trained decoder to read them (RETRO-fitting), and
``--config.warm_start=True`` lets what reads begin as copies of its layers.
``--config.baseline=WORKDIR`` scores a plain language model on the same chunks.
``--config.prompt=TEXT`` continues a text in place of the evaluation.
"""

import dataclasses

import jax
import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.errors import UserError
from rlm_jax.method import Method, Params
from rlm_jax.methods import retro
from rlm_jax.models.decoder import check_length
from rlm_jax.models.generation import Sampling
from rlm_jax.recipes import base_lm, language_model, runs
from rlm_jax.recipes.base_lm import Decoding, Given
from rlm_jax.recipes.chunks import retro_data, retro_evaluation
from rlm_jax.recipes.chunks.retro_data import Database, DatabaseConfig
from rlm_jax.recipes.language_model import DataConfig, EvaluateConfig, Text
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.train import dry_run, fit
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig


@dataclasses.dataclass
class Config:
    """A run of RETRO."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    method: retro.RetroConfig = dataclasses.field(default_factory=retro.RetroConfig)
    database: DatabaseConfig = dataclasses.field(default_factory=DatabaseConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    init_from: str = ""  # workdir or Hugging Face folder of the decoder it begins with
    warm_start: bool = False  # what reads neighbours begins as copies of its layers
    baseline: str = ""  # workdir of a language model, scored on the same chunks
    # Neighbours at evaluation, told beside method.k; those up to database.search.k.
    ks: tuple[int, ...] = (1, 5, 10)
    prompt: str = ""  # a text to continue; then nothing is evaluated
    new_tokens: int = 128  # of its continuation
    temperature: float = 0.7  # 0: the most likely token
    retrieve: bool = True  # neighbours for it; off: RETRO's decoder alone


SAME = (
    *("data", "method", "database", "optim", "init_from", "warm_start"),
    *runs.DRAWS,
)


@recipe("retro")
def run(config: Config, here: Run):
    """Find neighbours, train, score the test split with its controls, report."""
    _check(config)
    phases = runs.Phases()
    given = None
    with phases("data"):
        if config.init_from:
            given = base_lm.to_start_from(
                config.init_from, config.data, config.method.decoder
            )
        start = base_lm.start(config, here, given, config.init_from)
        text = start.text
    # What is continued is no part of what a workdir belongs to.
    as_evaluated = dataclasses.replace(
        start.config, prompt="", new_tokens=0, temperature=0.0, retrieve=True
    )
    claimed = start._replace(config=as_evaluated).claim(
        here, same=SAME, unused=("baseline", "ks", "evaluate") if config.prompt else ()
    )
    config = dataclasses.replace(config, data=claimed.data, method=claimed.method)
    method = retro.retro(config.method)
    if config.warm_start:
        retro.check_warm_start(config.method)
    baseline = None
    if config.baseline and not config.prompt:
        baseline = _baseline(config, text)
    _check_text(config, text)
    if here.dry_run:
        return _describe(method, config, text)
    database = retro_data.prepare(config, here, text, phases)
    with phases("train"):
        params = _train(method, config, text, database, given, here)
    runs.leave_to_first()
    if config.prompt:
        return retro_evaluation.continue_prompt(config, text, database, params)
    return retro_evaluation.evaluate(
        config, here, phases, text, database, method, params, baseline
    )


def _check(config: Config) -> None:
    """What else would be found out only after the training."""
    retro_data.check(config)
    if config.method.trained == "retrieval" and not config.init_from:
        raise UserError(
            "method.trained is 'retrieval', which leaves the decoder as it is; name a "
            "trained one with --config.init_from."
        )
    if config.warm_start and not config.init_from:
        raise UserError(
            "warm_start copies a trained decoder's layers; name one with "
            "--config.init_from."
        )
    kept = config.database.search.k
    if config.ks and not 1 <= min(config.ks) <= max(config.ks) <= kept:
        raise UserError(
            f"ks are {config.ks}, and a test chunk keeps {kept} neighbours; choose "
            "from 1 to that, or raise database.search.k."
        )
    Sampling(temperature=config.temperature)
    if config.new_tokens < 1:
        raise UserError(f"new_tokens is {config.new_tokens}; choose 1 or more.")


def _baseline(config: Config, text: Text) -> Decoding:
    stored = runs.configuration(config.baseline, text.fingerprint)
    if stored["system"] not in ("lm", "knn_lm"):
        raise UserError(
            f"The run in {config.baseline} is of {stored['system']}; name one of "
            "experiments.lm as the baseline."
        )
    dtype = config.method.decoder.dtype
    plain = base_lm.load(config.baseline, config.data, dtype=dtype).decoding
    assert plain is not None
    return plain


def _check_text(config: Config, text: Text) -> None:
    """What of the text would be found out only after the search for neighbours."""
    data, decoder = config.data, config.method.decoder
    window = config.evaluate.window
    check_length(decoder, data.length, "data.length")
    check_length(decoder, window, "evaluate.window")
    language_model.note_untrained(data.length, window, "windows at evaluation")
    for name in ("train", "validation"):
        language_model.batches(data, text.store.split(name))


def _describe(method: Method, config: Config, text: Text) -> None:
    if not processes.is_first():
        return
    m = config.method.chunk_length
    for name, split in text.store.splits.items():
        num = len(split.tokens)
        terminal.say(f"{name}: {num:,} tokens, {-(-num // m):,} chunks of {m}")
    chunks = retro_data.stream(config, text.store.split("train"))
    none = np.broadcast_to(np.int32(-1), (len(chunks), config.method.k))
    some = retro_data.batches(config, text, "train", chunks, none)
    dry_run.describe(method, some, config)


def _train(
    method: Method,
    config: Config,
    text: Text,
    database: Database,
    given: Given | None,
    run: runs.Run,
) -> Params:
    """Train to ``train.steps``, resuming from the workdir; on the host."""
    of_split = {
        name: retro_data.batches(
            config, text, name, database.chunks, database.neighbours[name].ids
        )
        for name in ("train", "validation")
    }
    initial = None
    if given is not None and given.decoding is not None:
        init = jax.jit(method.init)(jax.random.key(config.train.seed))
        initial = retro.around(given.decoding.params, jax.device_get(init))
        if config.warm_start:
            initial = retro.warm_started(config.method, initial)
    size, count = config.data.batch_size, config.evaluate.validation_batches
    return fit.train(
        method,
        fit.from_batches(of_split["train"], size, config.train),
        config.optim,
        config.train,
        run.workdir,
        initial_params=initial,
        validation=fit.validation_of(method, of_split["validation"], size, count),
        trainable=retro.TRAINED[config.method.trained],
    )
