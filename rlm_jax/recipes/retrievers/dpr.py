"""DPR: an encoder trained on questions and passages, with mined hard negatives.

Round 1 takes its hard negatives from BM25 or, with ``pairs.miner`` "model", from the
encoder that it starts from. Every later round takes them from the model of the round
before, and goes on from its parameters.
"""

import dataclasses
import pathlib
from typing import ClassVar, Literal

import jax
import numpy as np

from rlm_jax import pretrained, terminal
from rlm_jax.data import collections, contrastive, questions
from rlm_jax.data import passages as passages_lib
from rlm_jax.data.questions import Answerable
from rlm_jax.data.text_encoding import TextTokenizer
from rlm_jax.errors import UserError
from rlm_jax.evaluate.answers import has_answer
from rlm_jax.method import Batches, Method, Params
from rlm_jax.methods import dpr
from rlm_jax.methods.dpr import DPRConfig
from rlm_jax.recipes import runs
from rlm_jax.recipes.retrievers import ranking_report
from rlm_jax.recipes.retrievers.ranking_report import Experiment
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.retrieval import encode_stream
from rlm_jax.retrievers import encoder_towers, hard_negatives
from rlm_jax.retrievers.encoder_towers import Tower, Towers
from rlm_jax.side_files import hub
from rlm_jax.train import dry_run, fit


@dataclasses.dataclass
class PairsConfig:
    """Questions with passages that answer them, and their hard negatives."""

    MAY_BE_ZERO: ClassVar = ("passage_length",)

    passages: str = "stdlib"  # as in `collection`; empty: those the questions bring
    questions: str = "stdlib"  # whose passages are known; as in `collection`
    hard_negatives: int = 1  # of each question, in a batch
    mined: int = 16  # of each question, to draw from
    passage_length: int = 0  # tokens, while training; 0: as text.passage_length
    rounds: int = 1  # 0: in-batch negatives alone; from the second on the model mines
    miner: Literal["bm25", "model"] = (
        "bm25"  # of round 1: bm25, or model, the encoder as it starts
    )
    validation: str = ""  # other questions, for the loss while training; empty: none


@dataclasses.dataclass
class Config(Experiment):
    """Training on pairs, and the collection on which the retriever is judged."""

    pairs: PairsConfig = dataclasses.field(default_factory=PairsConfig)
    method: DPRConfig = dataclasses.field(default_factory=DPRConfig)
    vocab_size: int = 8192  # of the WordPiece trained on the passages, from scratch


SAME = (
    *("pairs", "method", "init_from", "vocab_size", "batch_size", "optim", "text"),
    *runs.DRAWS,
)


@recipe("dpr")
def run(config: Config, here: Run):
    """Mine and train round by round, encode the collection, search, judge, report."""
    hub.require(init_from=config.init_from)
    phases = runs.Phases()
    with phases("data"):
        collection = collections.load(config.collection)
        ranking_report.check(config.judge, config.search.k, collection)
        config, tokenizer, initial = _encoder(config, here.workdir)
        asked = _questions(config, config.pairs.questions, "train")
        held_out = None
        if config.pairs.validation:
            held_out = _questions(config, config.pairs.validation, "validation")
    identity = encoder_towers.identity(tokenizer, initial)
    runs.claim(here, config, asked.fingerprint, same=SAME, identity=identity)
    if not here.dry_run:
        encoder_towers.keep_tokenizer(here.workdir, tokenizer)
    method = dpr.dpr(config.method)
    if initial is None:
        initial = method.init(jax.random.key(config.train.seed))
    if here.dry_run:
        collections.describe(collection)
        negatives = np.full((len(asked.texts), config.pairs.mined), -1, np.int32)
        training = _batches(config, asked, tokenizer, negatives)
        return dry_run.describe(method, training, config)
    validation = held_out and _batches(config, held_out, tokenizer, None)
    params, curves = _rounds(
        config, here, method, asked, validation, tokenizer, initial, phases
    )
    runs.leave_to_first()
    towers = {
        ranking_report.REAL: _towers(config.method, params, tokenizer),
        "init": _towers(config.method, initial, tokenizer),
    }
    return ranking_report.evaluate(
        config, here, collection, towers, phases, curves=curves
    )


def _encoder(
    config: Config, workdir: pathlib.Path
) -> tuple[Config, TextTokenizer, Params | None]:
    """(configuration with its encoder's sizes, tokenizer, parameters or None)."""
    encoder, initial = config.method.encoder, None
    if config.init_from:
        tower = encoder_towers.load(config.init_from, encoder)
        encoder, tokenizer, initial = tower.config, tower.tokenizer, tower.params
        if config.method.towers == "separate":
            initial = {"question": initial, "passage": initial}
    else:
        pool = passages_lib.load(config.pairs.passages or config.collection.passages)
        tokenizer = encoder_towers.train_tokenizer(pool, config.vocab_size, workdir)
        encoder = encoder_towers.fitted_to(encoder, tokenizer)
    pretrained.check_layout(encoder)  # before it is trained, not after
    method = dataclasses.replace(config.method, encoder=encoder)
    return dataclasses.replace(config, method=method), tokenizer, initial


def _questions(config: Config, name: str, split: str) -> Answerable:
    """The questions of a split that have a passage; the others are told.

    Raises:
      UserError: there are too few for a batch.
    """
    passages = config.pairs.passages
    asked = questions.answerable(
        questions.load(name, split),
        passages_lib.load(passages) if passages else None,
    )
    if asked.num_left_out:
        count = len(asked.texts) + asked.num_left_out
        terminal.say(f"{asked.num_left_out:,} of {count:,} questions have no passage")
    if len(asked.texts) < config.batch_size:
        raise UserError(
            f"There are {len(asked.texts)} questions of {name}, {split}, with a "
            f"passage, too few for one batch of {config.batch_size}: lower batch_size."
        )
    return asked


def _rounds(
    config: Config,
    run: Run,
    method: Method,
    asked: Answerable,
    validation: Batches | None,
    tokenizer: TextTokenizer,
    initial: Params,
    phases: runs.Phases,
) -> tuple[Params, dict[str, pathlib.Path]]:
    """The parameters after the last round, and the workdir of each."""
    params, curves = initial, {}
    for number in range(min(1, config.pairs.rounds), config.pairs.rounds + 1):
        folder = run.workdir / f"round_{number}"
        with phases("mine"):
            towers = _towers(config.method, params, tokenizer)
            negatives = _mined(config, folder, number, asked, towers, params)
        with phases("train"):
            params = fit.train_on_batches(
                method,
                _batches(config, asked, tokenizer, negatives),
                validation,
                config,
                folder,
                initial_params=params,
            )
        curves[f"round {number}"] = folder
    return params, curves


def _batches(
    config: Config,
    asked: Answerable,
    tokenizer: TextTokenizer,
    negatives: np.ndarray | None,
) -> Batches:
    text = encoder_towers.cut(config.text, config.method.encoder)
    length = min(config.pairs.passage_length or 1 << 30, text.passage_length)
    text = dataclasses.replace(text, passage_length=length)
    to_rows = encoder_towers.passage_rows(tokenizer, text)
    pool = asked.pairs.pool
    return contrastive.pairs(
        encoder_towers.question_rows(
            tokenizer, asked.texts, text.question_length, text
        ),
        lambda numbers: to_rows([pool[int(i)] for i in numbers]),
        asked.pairs.positives,
        negatives,
        batch_size=config.batch_size,
        hard_negatives=0 if negatives is None else config.pairs.hard_negatives,
        question_length=text.question_length,
        passage_length=length,
        pad_id=tokenizer.pad_id,
    )


def _mined(
    config: Config,
    folder: pathlib.Path,
    number: int,
    asked: Answerable,
    towers: Towers,
    params: Params,
) -> np.ndarray | None:
    """Hard negatives of a round, int32 [Q, H]; round 0 has none."""
    if number == 0:
        return None
    num = config.pairs.mined
    miners = {
        "bm25": lambda: hard_negatives.by_words(asked, num, has_answer),
        "model": lambda: hard_negatives.by_model(
            *(asked, num, has_answer, towers),
            config.text,
            config.search,
            folder / "mined_from",
        ),
    }
    miner = config.pairs.miner if number == 1 else "model"
    identity = {
        "questions": asked.fingerprint,
        "mined": num,
        "model": miner if miner == "bm25" else encode_stream.fingerprint(params),
    }
    return hard_negatives.found_once(folder / "negatives", identity, miners[miner])


def _towers(method: DPRConfig, params: Params, tokenizer: TextTokenizer) -> Towers:
    if method.towers == "shared":
        both = Tower(method.encoder, params, tokenizer)
        return Towers(both, both)
    question, passage = (params[name] for name in ("question", "passage"))
    return Towers(
        Tower(method.encoder, question, tokenizer),
        Tower(method.encoder, passage, tokenizer),
    )
