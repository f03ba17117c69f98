"""The configuration of RPT's recipe, and what does not fit together in it."""

import dataclasses
from typing import ClassVar

from rlm_jax.data.texts import DataConfig
from rlm_jax.errors import UserError
from rlm_jax.methods import rpt
from rlm_jax.models.generation import Sampling
from rlm_jax.recipes.language_model import EvaluateConfig
from rlm_jax.retrievers.chunk_targets import TargetsConfig
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig


@dataclasses.dataclass
class DocumentsConfig:
    """Which documents of the corpus there are, in tokens."""

    MAY_BE_ZERO: ClassVar = ("longest",)

    shortest: int = 0  # shorter ones are left out; 0: none is, and a short one refused
    longest: int = 0  # of an evaluated document; 0: all of it


@dataclasses.dataclass
class Config:
    """A run of RPT."""

    MAY_BE_ZERO: ClassVar = ("temperature",)

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    documents: DocumentsConfig = dataclasses.field(default_factory=DocumentsConfig)
    method: rpt.RPTConfig = dataclasses.field(default_factory=rpt.RPTConfig)
    targets: TargetsConfig = dataclasses.field(default_factory=TargetsConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    # Window and stride are the decoder's window of attention.
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    init_from: str = ""  # workdir or Hugging Face folder of the decoder it begins with
    warm_start: bool = False  # what reads neighbours begins as copies of its layers
    baseline: str = ""  # workdir of a language model, scored in the same windows
    prompt: str = ""  # a text to continue; then nothing is evaluated
    prompt_file: str = ""  # a file that has it
    new_tokens: int = 128  # of its continuation
    temperature: float = 0.7  # 0: the most likely token

    @property
    def chunks_in_reach(self) -> int:
        """Chunks before a window that it can retrieve: as many as a row has."""
        return self.data.length // self.method.chunk_length


def check(config: Config) -> None:
    """Raises UserError for what would be found out only after the scoring."""
    window, length = config.method.decoder.attention_window, config.data.length
    for name in ("window", "stride"):
        value = getattr(config.evaluate, name)
        if value != window:
            raise UserError(
                f"evaluate.{name} is {value} and a document is read in windows of "
                f"{window}; set it to method.decoder.attention_window."
            )
    if window < 1 or length % window or length < 2 * window:
        raise UserError(
            f"data.length is {length}, which are no 2 windows of {window} tokens or "
            "more; choose a multiple of method.decoder.attention_window."
        )
    if config.data.order != "shuffled":
        raise UserError(
            f"data.order is {config.data.order!r}; rows are of whole documents in the "
            "order shuffled, so choose that."
        )
    if config.targets.num < config.method.k:
        raise UserError(
            f"targets.num is {config.targets.num} and a chunk reads {config.method.k} "
            "neighbours; score that many or more."
        )
    taught = config.method.neighbours == "retrieved"
    if taught and config.targets.kind == "semantic" and not config.targets.reference:
        raise UserError(
            "semantic targets are a language model's; name one with "
            "--config.targets.reference, or choose --config.targets.kind=lexical."
        )
    if config.warm_start and not config.init_from:
        raise UserError(
            "warm_start copies a trained decoder's layers; name one with "
            "--config.init_from."
        )
    if config.prompt and config.prompt_file:
        raise UserError("there are a prompt and a prompt_file; give one of the two.")
    Sampling(temperature=config.temperature)
