"""The configuration of RETRO's recipe, and what does not fit together in it."""

import dataclasses
from typing import ClassVar

from rlm_jax.data.texts import DataConfig
from rlm_jax.errors import UserError
from rlm_jax.methods import retro
from rlm_jax.models.generation import Sampling
from rlm_jax.recipes.language_model import EvaluateConfig
from rlm_jax.retrievers import dense
from rlm_jax.retrievers.chunk_search import DatabaseConfig
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig


@dataclasses.dataclass
class Config:
    """A run of RETRO."""

    MAY_BE_ZERO: ClassVar = ("temperature",)

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


def check(config: Config) -> None:
    """Raises UserError for what would be found out only after the training."""
    _check_chunks(config)
    _check_search(config)
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


def _check_chunks(config: Config) -> None:
    """Chunks, segments and windows have to fit together."""
    m = config.method.chunk_length
    sizes = {
        "data.length": config.data.length,
        "evaluate.window": config.evaluate.window,
        "evaluate.stride": config.evaluate.stride,
    }
    for name, size in sizes.items():
        if m < 1 or size % m:
            raise UserError(
                f"{name} is {size}, which does not consist of chunks of {m} tokens; "
                "choose a multiple of method.chunk_length."
            )
    if config.data.order != "shuffled":
        raise UserError(
            f"data.order is {config.data.order!r}; neighbours are found for chunks in "
            "the order shuffled, so choose that."
        )


def _check_search(config: Config) -> None:
    """The database has to give as many neighbours as are read and judged."""
    database = config.database
    if config.method.k > database.search.k:
        raise UserError(
            f"A test chunk keeps {database.search.k} neighbours and the model "
            f"reads {config.method.k}; raise database.search.k."
        )
    if not database.search.k <= database.max_depth >= database.depth >= 1:
        raise UserError(
            f"Searches of depth {database.depth} to {database.max_depth} do not give "
            f"{database.search.k} neighbours; raise database.max_depth."
        )
    dense.check_search(database.search, "database.search")
