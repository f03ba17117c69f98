"""What a run of Atlas is told, and what of it cannot be."""

import dataclasses

from rlm_jax.data import problems
from rlm_jax.data.question_answering import AnsweringConfig
from rlm_jax.errors import UserError
from rlm_jax.methods.atlas import AtlasConfig
from rlm_jax.readers.answering import AnswersConfig
from rlm_jax.recipes import runs
from rlm_jax.retrievers.background import WorkerConfig
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.train import rounds
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig
from rlm_jax.train.rounds import RefreshConfig


@dataclasses.dataclass
class Config:
    """A reader, its retriever, what they learn from, and how they are judged."""

    data: AnsweringConfig = dataclasses.field(default_factory=AnsweringConfig)
    task: problems.Kind = "questions"
    # Passages that a problem may not read: none, its own, all of its own's title.
    left_out: problems.LeftOut = "nothing"
    text_length: int = 64  # tokens of a passage that tasks on texts take
    init_from: str = ""  # folder of a T5, of an encoder or of a run's reader
    retriever_from: str = ""  # folder of an encoder; empty: from scratch
    vocab_size: int = 8192  # of the WordPiece, from scratch
    method: AtlasConfig = dataclasses.field(default_factory=AtlasConfig)
    candidates: int = 0  # that are ranked again at every step; 0: those that are read
    passage_length: int = 128  # tokens of a question beside a passage
    target_length: int = 16  # tokens of an answer, its end counted
    batch_size: int = 16  # problems of a step, over all devices
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)  # the reader's
    retriever_optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    refresh: RefreshConfig = dataclasses.field(default_factory=RefreshConfig)
    worker: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)
    validation_batches: int = 8  # at each `train.eval_every`
    closed_book: bool = True  # train the twin without passages too
    also_reads: tuple[str, ...] = ("bm25",)  # with which the reader answers as well
    answers: AnswersConfig = dataclasses.field(default_factory=AnswersConfig)
    split: str = "test"  # of the questions that are answered at the end
    text: TextConfig = dataclasses.field(default_factory=TextConfig)  # the retriever's
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)


SAME = (
    *("data", "task", "left_out", "text_length", "init_from", "retriever_from"),
    *("vocab_size", "method", "candidates", "passage_length", "target_length"),
    *("batch_size", "optim", "retriever_optim", "refresh", "text", *runs.DRAWS),
)


def check(config: Config) -> None:
    """Raises UserError for what would fail after work was done."""
    c, k = config, config.method.reader.k
    if c.candidates and c.candidates < k:
        raise UserError(
            f"candidates is {c.candidates}, and {k} of them are read; choose at least "
            "so many, or 0."
        )
    if c.task == "questions" and c.left_out == "title":
        raise UserError(
            "Of questions the passages that answer can be left out, not all of a title;"
            " set left_out to own or nothing."
        )
    if c.method.loss != "none" and k < 2:
        raise UserError(
            "One passage a question has no order to learn from; choose "
            "method.reader.k of 2 or more, or method.loss and method.trained none."
        )
    if not rounds.lay_out(c.refresh, c.train.steps) and c.train.steps:
        raise UserError(
            "The schedule refresh.keys_every builds no index; begin it with step 0."
        )
