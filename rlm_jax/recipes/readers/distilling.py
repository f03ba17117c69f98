"""A reader's cross-attention distilled into a retriever (FiD-KD).

The reader scores the passages that its training questions read, and an encoder learns
to order them alike. What it then finds may be read by the next reader.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rlm_jax import pretrained, processes, terminal
from rlm_jax.errors import UserError
from rlm_jax.evaluate.answers import has_answer
from rlm_jax.method import Batch, Batches, Rows
from rlm_jax.methods import fid, fid_kd
from rlm_jax.methods.fid_kd import FiDKDConfig
from rlm_jax.readers.answering import Asked, of_questions
from rlm_jax.readers.reader import ReaderModel
from rlm_jax.recipes import runs
from rlm_jax.retrieval import encode_stream
from rlm_jax.retrievers import encoder_towers, trained_towers
from rlm_jax.retrievers.encoder_towers import TextConfig, Tower
from rlm_jax.retrievers.reading import ReadingConfig
from rlm_jax.storage import atomic, sealed
from rlm_jax.train import fit
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig

TRAIN, VALIDATION = "train", "validation"
SAME = "init_from", "vocab_size", "max_questions", "method", "batch_size", "optim"


@dataclasses.dataclass
class DistilConfig:
    """How the retriever learns from the reader, and how often all is done again."""

    rounds: int = 0  # of distilling, retrieving again and training a new reader
    init_from: str = ""  # folder of the encoder that learns; empty: from scratch
    vocab_size: int = 8192  # of the WordPiece, from scratch
    max_questions: int = 0  # of training that the reader scores; 0: all
    method: FiDKDConfig = dataclasses.field(default_factory=FiDKDConfig)
    batch_size: int = 16  # questions of a step, over all devices
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    validation_batches: int = 8  # at each `train.eval_every`


def check(config: DistilConfig, reading: ReadingConfig) -> None:
    """Raises UserError for what would fail after the first reader is trained."""
    for name in ("rounds", "max_questions"):
        if getattr(config, name) < 0:
            raise UserError(
                f"distil.{name} is {getattr(config, name)}; choose 0 or more."
            )
    if config.rounds and reading.num < 2:
        raise UserError(
            "One passage a question has no order to learn from; choose reading.num of "
            "2 or more, or distil.rounds=0."
        )
    if config.rounds and config.init_from:
        encoder_towers.load(config.init_from)


def distil(
    config: DistilConfig,
    model: ReaderModel,
    asked: Mapping[str, Asked],
    folder: pathlib.Path,
    *,
    batch_size: int,
    text: TextConfig,
) -> tuple[pathlib.Path, dict[str, Any]]:
    """Trains the retriever, or goes on; (its folder, how it agrees with the reader).

    Args:
      model: the trained reader.
      asked: the questions of "train" and "validation" with what they read.
      folder: of the retriever; it can be named wherever an encoder can.
      batch_size: questions that the reader scores at a time.
      text: how the retriever reads questions and passages.
    """
    tower = trained_towers.initial_tower(
        config.method.encoder,
        config.init_from,
        asked[TRAIN].collection.passages,
        vocab_size=config.vocab_size,
        seed=config.train.seed,
        folder=folder,
    )
    pretrained.check_layout(tower.config)
    fields = dataclasses.asdict(config)
    runs.claim_part(
        folder,
        {
            **{name: fields[name] for name in SAME},
            "text": dataclasses.asdict(text),
            "seed": config.train.seed,
            "accumulate": config.train.accumulate,
            "reader": encode_stream.fingerprint(model.params),
            "passages": {name: x.reading.source for name, x in asked.items()},
            **encoder_towers.identity(tower.tokenizer, tower.params),
        },
    )
    encoder_towers.keep_tokenizer(folder, tower.tokenizer)
    batches = {
        name: _batches(
            config,
            x,
            _scored(model, x, folder / f"{name}.npy", batch_size),
            tower,
            text,
        )
        for name, x in asked.items()
    }
    method = fid_kd.fid_kd(dataclasses.replace(config.method, encoder=tower.config))
    judge = fit.validation_of(
        method, batches[VALIDATION], config.batch_size, config.validation_batches
    )
    params = fit.train_on_batches(
        method,
        batches[TRAIN],
        batches[VALIDATION],
        config,
        folder,
        initial_params=tower.params,
        validation_batches=config.validation_batches,
    )
    before, after = judge(tower.params, 0), judge(params, config.train.steps)
    trained = tower._replace(params=params)
    if processes.is_first():
        encoder_towers.save(folder / "encoder", trained)
    processes.wait("the distilled encoder")
    terminal.say(
        "rank correlation with the reader "
        f"{before['rank_correlation']:.3f} -> {after['rank_correlation']:.3f}"
    )
    return folder, {"before": dict(before), "after": dict(after)}


def _scored(
    model: ReaderModel, asked: Asked, path: pathlib.Path, batch_size: int
) -> np.ndarray:
    """What the reader says of each passage that was read, float32 [N, K]; once."""

    def score() -> None:
        functions = fid.reader_of(model.config)
        run = jax.jit(functools.partial(fid.relevance, functions))
        params = processes.replicated(model.params)
        scores = of_questions(run, params, asked, batch_size, "the reader scores")
        with atomic.replacing(path) as partial, partial.open("wb") as file:
            np.save(file, scores.astype(np.float32), allow_pickle=False)
        sealed.write(told, {"crc32": atomic.crc32(path)})

    told = path.with_name(f"{path.name}.json")  # of an older version there is none
    processes.by_first(
        lambda: None if path.exists() else score(), "score what the questions read"
    )
    mend = "delete it and run again, which makes it again"
    try:
        kept = sealed.read(told, {"crc32": int}, remedy=mend) if told.exists() else {}
        if kept and atomic.crc32(path) != kept["crc32"]:
            raise sealed.damaged(path, "its checksum is wrong", mend)
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise sealed.damaged(path, str(error), mend) from error


def _batches(
    config: DistilConfig,
    asked: Asked,
    scores: np.ndarray,
    tower: Tower,
    text: TextConfig,
) -> Batches:
    """Questions in a new order every epoch, with the reader's scores."""
    passages, ids = asked.collection.passages, asked.reading.ids
    to_rows = trained_towers.TextRows(passages, tower.tokenizer, tower.config, text)
    usable = np.flatnonzero((ids >= 0).sum(axis=1) > 1)
    size = config.batch_size
    count = len(usable) // size
    if count < 1:
        raise UserError(
            f"{len(usable)} questions read two passages or more, which make no batch "
            f"of {size}; choose a smaller distil.batch_size."
        )

    @functools.lru_cache(maxsize=1 << 18)
    def holds(place: int, passage: int) -> bool:
        answers = asked.questions[place].answers
        return passage >= 0 and has_answer(passages[passage].joined, answers)

    def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
        epoch, index = divmod(step, count)
        order = np.random.default_rng((seed, epoch)).permutation(usable)
        places = order[index * size : (index + 1) * size]
        places = places if rows is None else places[rows]
        read = ids[places]
        held = [
            [holds(place, row) for row in rows]
            for place, rows in zip(places.tolist(), read.tolist(), strict=True)
        ]
        texts = [asked.questions[place].text for place in places]
        return {
            **to_rows(texts, read, name="passage"),
            "teacher_scores": scores[places],
            "holds": np.array(held),
            "weight": np.ones(len(places), np.float32),
        }

    return Batches(batch_at, len(usable), count)
