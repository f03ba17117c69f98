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

from experiments import (
    dry_run,
    given_model,
    language_model,
    launch,
    presets,
    retro_data,
    retro_evaluation,
    training,
)
from experiments.given_model import Decoding, Given
from experiments.language_model import DataConfig, EvaluateConfig, Text
from experiments.retrievers import SearchConfig
from experiments.retro_data import Database, DatabaseConfig
from rlm_jax import processes, terminal
from rlm_jax.errors import UserError
from rlm_jax.method import Method, Params
from rlm_jax.methods import retro
from rlm_jax.models.decoder import check_length
from rlm_jax.models.generation import Sampling
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


SAME = ("data", "method", "database", "optim", "init_from", "warm_start")


def tiny() -> Config:
    """The embedded corpus; its encoder has random weights, so nothing is downloaded.

    Command: python -m experiments.retro --preset tiny --workdir runs/retro
    Corpus: stdlib, BPE of 4,096. Hardware: 2 CPU cores. Time: under 5 minutes.
    Figure: docs/results.md.
    """
    return Config(
        **presets.tiny_chunks(),
        method=presets.tiny_retro(),
        database=DatabaseConfig(search=SearchConfig(k=10, index="exact")),
        ks=(),  # which would take as long as the rest
    )


def novels() -> Config:
    """Novels, a decoder of 4 layers of 256 and a sentence encoder.

    Command: python -m experiments.retro --preset novels --workdir runs/novels_retro
      --config.data.corpus=text:FOLDER (folders train, valid and test)
      --config.database.encoder=FOLDER (all-MiniLM-L6-v2)
    Corpus: 56 English novels. Meant for 2 CPU cores; not run to its end here.
    """
    return Config(
        **presets.novels_chunks(),
        method=presets.novels_retro(),
        database=DatabaseConfig(encoder="data/all-MiniLM-L6-v2"),
    )


def wikitext2() -> Config:
    """WikiText-2, whose database the novels join.

    Command: python -m experiments.retro --preset wikitext2 --workdir runs/wt2_retro
      --config.data.corpus=text:FOLDER (WikiText-2) --config.database.more=text:FOLDER
      (novels) --config.database.encoder=FOLDER (all-MiniLM-L6-v2)
    Corpus: as named. Meant for 2 CPU cores; not run to its end here (docs/results.md
    has WikiText-2 with a smaller decoder, a warm start and no novels).
    """
    config = novels()
    config.data.corpus = "text:data/wikitext-2"
    config.database.more = "text:data/books"
    return config


def paper_172m() -> Config:
    """Borgeaud et al. 2022, table 1: 132M parameters, 172M with retrieval.

    Ours are 121M and 157M, since its relative positions have parameters (one map from
    width to heads at each attention) and rotary ones have none.

    Command: python -m experiments.retro --preset paper_172m --workdir runs/retro_172m
      --config.data.corpus=jsonl:FOLDER --config.database.encoder=FOLDER (BERT)
    Corpus: the paper's MassiveText is not public. Hardware: accelerators; not run here.
    """
    return Config(
        **presets.paper_chunks(),
        method=presets.paper_retro(width=896, num_heads=16, head_width=64),
        database=DatabaseConfig(encoder="data/bert-base-uncased"),
    )


def paper_425m() -> Config:
    """As paper_172m with 368M parameters, 425M with retrieval; ours, 340M and 381M.

    Command: python -m experiments.retro --preset paper_425m --workdir runs/retro_425m
      --config.data.corpus=jsonl:FOLDER --config.database.encoder=FOLDER (BERT)
    Corpus, hardware: as paper_172m; not run here.
    """
    return dataclasses.replace(
        paper_172m(),
        method=presets.paper_retro(width=1536, num_heads=12, head_width=128),
    )


PRESETS = {
    "tiny": tiny,
    "wikitext2": wikitext2,
    "novels": novels,
    "paper_172m": paper_172m,
    "paper_425m": paper_425m,
}


def execute(config: Config, run: launch.Run):
    """Find neighbours, train, score the test split with its controls, report."""
    _check(config)
    phases = launch.Phases()
    given = None
    with phases("data"):
        if config.init_from:
            given = given_model.to_start_from(
                config.init_from, config.data, config.method.decoder
            )
            text = given_model.text_of(given, config.data)
        else:
            text = language_model.load_text(config.data)
    # What is continued is no part of what a workdir belongs to.
    as_evaluated = dataclasses.replace(
        config, prompt="", new_tokens=0, temperature=0.0, retrieve=True
    )
    launch.claim(
        run,
        as_evaluated,
        text.fingerprint,
        same=SAME,
        unused=("baseline", "ks", "evaluate") if config.prompt else (),
    )
    if given is not None:
        config = given_model.with_tokenizer(config, given)
    else:
        config = language_model.with_vocabulary(config, text)
    method = retro.retro(config.method)
    if config.warm_start:
        retro.check_warm_start(config.method)
    baseline = None
    if config.baseline and not config.prompt:
        baseline = _baseline(config, text)
    _check_text(config, text)
    if run.dry_run:
        return _describe(method, config, text)
    database = retro_data.prepare(config, run, text, phases)
    with phases("train"):
        params = _train(method, config, text, database, given, run)
    launch.leave_to_first()
    if config.prompt:
        return retro_evaluation.continue_prompt(config, text, database, params)
    return retro_evaluation.evaluate(
        config, run, phases, text, database, method, params, baseline
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
    stored = launch.configuration(config.baseline, text.fingerprint)
    if stored["system"] not in ("lm", "knn_lm"):
        raise UserError(
            f"The run in {config.baseline} is of {stored['system']}; name one of "
            "experiments.lm as the baseline."
        )
    dtype = config.method.decoder.dtype
    plain = given_model.load(config.baseline, config.data, dtype=dtype).decoding
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
    run: launch.Run,
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
    return training.train(
        method,
        training.from_batches(of_split["train"], size, config.train),
        config.optim,
        config.train,
        run.workdir,
        initial_params=initial,
        validation=training.validation(method, of_split["validation"], size, count),
        trainable=retro.TRAINED[config.method.trained],
    )


if __name__ == "__main__":
    launch.main("retro", PRESETS, execute)
