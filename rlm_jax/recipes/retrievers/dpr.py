"""DPR: an encoder trained on questions and passages, with mined hard negatives.

python -m experiments.dpr --preset tiny --workdir runs/dpr

Round 1 takes its hard negatives from BM25 (or, as `pairs.miner` says, from the encoder
that it starts from), every later round from the model of the round before, whose
parameters it goes on from.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from rlm_jax import pretrained, processes, terminal
from rlm_jax.data import collections, contrastive, questions, text_encoding
from rlm_jax.data import passages as passages_lib
from rlm_jax.errors import UserError
from rlm_jax.evaluate.answers import has_answer
from rlm_jax.method import Batches, Method, Params
from rlm_jax.methods import dpr
from rlm_jax.methods.dpr import DPRConfig
from rlm_jax.recipes import runs
from rlm_jax.recipes.retrievers import ranking_report
from rlm_jax.recipes.retrievers.ranking_report import Experiment, Towers
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.retrieval import bm25, encode_stream, exact, mining
from rlm_jax.retrievers import dense, encoder_towers
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.train import dry_run, fit


@dataclasses.dataclass
class PairsConfig:
    """Questions with passages that answer them, and their hard negatives."""

    passages: str = "stdlib"  # as in `collection`; empty: those the questions bring
    questions: str = "stdlib"
    hard_negatives: int = 1  # of each question, in a batch
    mined: int = 16  # of each question, to draw from
    passage_length: int = 0  # tokens, while training; 0: as text.passage_length
    rounds: int = 1  # 0: in-batch negatives alone; from the second on the model mines
    miner: str = "bm25"  # of round 1: bm25, or model, the encoder as it starts
    validation: str = ""  # other questions, for the loss while training; empty: none


@dataclasses.dataclass
class Config(Experiment):
    """Training on pairs, and the collection on which the retriever is judged."""

    pairs: PairsConfig = dataclasses.field(default_factory=PairsConfig)
    method: DPRConfig = dataclasses.field(default_factory=DPRConfig)
    vocab_size: int = 8192  # of the WordPiece trained on the passages, from scratch


SAME = ("pairs", "method", "init_from", "vocab_size", "batch_size", "optim", "text")


class Material(NamedTuple):
    """What training reads: questions, their passages, and how both become tokens."""

    texts: list[str]
    answers: list[tuple[str, ...]]
    pairs: questions.Pairs
    reader: text_encoding.TextTokenizer
    rows: list[np.ndarray]  # of the questions
    fingerprint: str


@recipe("dpr")
def run(config: Config, here: Run):
    """Mine and train round by round, encode the collection, search, judge, report."""
    phases = runs.Phases()
    with phases("data"):
        collection = collections.load(config.collection)
        config, reader, initial = _encoder(config)
        material = _material(config, config.pairs.questions, reader)
    runs.claim(here, config, material.fingerprint, same=SAME)
    method = dpr.dpr(config.method)
    if initial is None:
        initial = method.init(jax.random.key(config.train.seed))
    if here.dry_run:
        collections.describe(collection)
        negatives = np.full((len(material.texts), config.pairs.mined), -1, np.int32)
        training = _batches(config, material, negatives)
        return dry_run.describe(method, training, config)
    params, curves = _rounds(config, here, method, material, initial, phases)
    runs.leave_to_first()
    towers = {
        ranking_report.REAL: _towers(config, params, reader),
        "init": _towers(config, initial, reader),
    }
    return ranking_report.evaluate(
        config, here, collection, towers, phases, curves=curves
    )


def _encoder(config: Config):
    """(configuration with its encoder's sizes, tokenizer, parameters or None)."""
    encoder = config.method.encoder
    if config.init_from:
        tower = encoder_towers.load(config.init_from, encoder)
        encoder, reader, initial = tower.config, tower.tokenizer, tower.params
        if config.method.towers == "separate":
            initial = {"question": initial, "passage": initial}
    else:
        pool = passages_lib.load(config.pairs.passages or config.collection.passages)
        reader = encoder_towers.train_tokenizer(pool, config.vocab_size)
        encoder = dataclasses.replace(
            encoder, vocab_size=reader.vocab_size, pad_id=reader.pad_id
        )
        initial = None
    pretrained.check_layout(encoder)  # before it is trained, not after
    method = dataclasses.replace(config.method, encoder=encoder)
    return dataclasses.replace(config, method=method), reader, initial


def _material(config: Config, name: str, reader, split: str = "train") -> Material:
    text = encoder_towers.cut(config.text, config.method.encoder)
    asked = questions.load(name, split)
    pool = passages_lib.load(config.pairs.passages) if config.pairs.passages else None
    pairs = questions.resolve(asked, pool)
    # A question without a passage that answers it teaches nothing.
    kept = [i for i, rows in enumerate(pairs.positives) if len(rows)]
    left_out = len(asked) - len(kept)
    if left_out:
        terminal.say(f"{left_out:,} of {len(asked):,} questions have no passage")
    some = [asked.questions[i] for i in kept]
    texts = [question.text for question in some]
    return Material(
        texts,
        [question.answers for question in some],
        pairs._replace(
            positives=tuple(pairs.positives[i] for i in kept),
            negatives=tuple(pairs.negatives[i] for i in kept),
        ),
        reader,
        reader.encode(texts, max_length=text.question_length),
        f"{asked.fingerprint[:16]}-{pool.fingerprint[:16] if pool else 'own'}",
    )


def _rounds(config: Config, run, method: Method, material, initial: Params, phases):
    """The parameters after the last round, and the workdir of each."""
    params, curves = initial, {}
    for number in range(min(1, config.pairs.rounds), config.pairs.rounds + 1):
        there = run.workdir / f"round_{number}"
        with phases("mine"):
            negatives = _mined(config, there, number, material, params)
        with phases("train"):
            params = fit.train_on_batches(
                method,
                _batches(config, material, negatives),
                _validation(config, material),
                config,
                there,
                initial_params=params,
            )
        curves[f"round {number}"] = there
    return params, curves


def _batches(config: Config, material: Material, negatives) -> Batches:
    text = encoder_towers.cut(config.text, config.method.encoder)
    length = min(config.pairs.passage_length or 1 << 30, text.passage_length)
    text = dataclasses.replace(text, passage_length=length)
    to_rows = encoder_towers.passage_rows(material.reader, text)
    pool = material.pairs.pool
    return contrastive.pairs(
        material.rows,
        lambda numbers: to_rows([pool[int(i)] for i in numbers]),
        material.pairs.positives,
        negatives,
        batch_size=config.batch_size,
        hard_negatives=0 if negatives is None else config.pairs.hard_negatives,
        question_length=text.question_length,
        passage_length=length,
        pad_id=material.reader.pad_id,
    )


def _validation(config: Config, material: Material) -> Batches | None:
    if not config.pairs.validation:
        return None
    held_out = _material(config, config.pairs.validation, material.reader, "validation")
    return _batches(config, held_out, None)


def _mined(config: Config, there: pathlib.Path, number, material, params):
    """Hard negatives, int32 [Q, H]; round 0 has none.

    All processes encode, the first one's negatives are kept, and all read those.
    """
    if number == 0:
        return None
    miners = {"bm25": _by_words, "model": _by_model}
    miner = config.pairs.miner if number == 1 else "model"
    if miner not in miners:
        raise UserError(f"pairs.miner is {miner!r}; choose one of {', '.join(miners)}.")
    identity: dict[str, Any] = {
        "questions": material.fingerprint,
        "mined": config.pairs.mined,
        "model": miner if miner == "bm25" else encode_stream.fingerprint(params),
    }
    folder = there / "negatives"
    if not folder.exists():
        negatives = miners[miner](config, material, params, there)
        if processes.is_first():
            mining.save(folder, negatives, identity)
        processes.wait("negatives")
    return mining.load(folder, identity)


def _by_words(config: Config, material: Material, params, there) -> np.ndarray:
    """By BM25, unless the questions' own file names some, as DPR's do."""
    del params, there
    pool, positives = material.pairs.pool, material.pairs.positives
    if sum(map(len, material.pairs.negatives)):
        negatives = np.full((len(positives), config.pairs.mined), -1, np.int32)
        for row, found in zip(negatives, material.pairs.negatives, strict=True):
            some = found[: config.pairs.mined]
            row[: len(some)] = some
        return negatives
    index = bm25.build((p.joined for p in pool), bm25.BM25Config(), progress=True)
    return _search(config, index.search, material.texts, material)


def _by_model(config: Config, material: Material, params, there) -> np.ndarray:
    """By the model of the round before."""
    towers = _towers(config, params, material.reader)
    store, _ = dense.encode_collection(
        towers.passage,
        material.pairs.pool,
        material.fingerprint,
        config.text,
        config.search,
        there / "mined_from",
        alone=False,
    )
    asked = dense.encode_questions(
        towers.question, material.texts, config.text, config.search
    )
    index = exact.build(store, metric="ip")
    return _search(config, index.search, asked, material)


def _search(config: Config, search, queries, material: Material) -> np.ndarray:
    pool = material.pairs.pool

    def answers(question: int, passage: int) -> bool:
        wanted = material.answers[question]
        return bool(wanted) and has_answer(pool[passage].joined, wanted)

    return mining.mine(
        search,
        queries,
        material.pairs.positives,
        num=config.pairs.mined,
        excluded=answers,
    )


def _towers(config: Config, params: Params, reader) -> Towers:
    if config.method.towers == "shared":
        both = Tower(config.method.encoder, params, reader)
        return Towers(both, both)
    return Towers(
        *(
            Tower(config.method.encoder, params[name], reader)
            for name in ("question", "passage")
        )
    )
