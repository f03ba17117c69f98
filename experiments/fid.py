"""Fusion-in-Decoder: a reader that answers questions from passages it is given.

python -m experiments.fid --preset tiny --workdir runs/fid

Beside it stand its twin without passages, the same reader with other passages, and,
with `distil.rounds`, a retriever that learns from where it looks.
"""

from experiments import launch
from rlm_jax.data.question_answering import AnsweringConfig
from rlm_jax.methods.fid import FiDConfig
from rlm_jax.methods.fid_kd import FiDKDConfig
from rlm_jax.models import encoder_decoder
from rlm_jax.models.encoder_decoder import EncoderDecoderConfig
from rlm_jax.models.t5 import T5Config
from rlm_jax.readers.answering import AnswersConfig
from rlm_jax.recipes.readers.distilling import DistilConfig
from rlm_jax.recipes.readers.fid import Config, run
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.retrievers.reading import ReadingConfig
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig


def tiny() -> Config:
    """The embedded corpus: which function does this docstring describe?

    A training question reads its own function too, whether it was found or not.

    Command: python -m experiments.fid --preset tiny --workdir runs/fid
    Corpus: stdlib, WordPiece of 8,192. Hardware: 2 CPU cores. Time and figure:
    docs/results.md.
    """
    return Config(
        reading=ReadingConfig("bm25_code", num=3, own="added"),
        method=FiDConfig(
            encoder_decoder=encoder_decoder.small(),
            k=3,
            copy=True,
        ),
        passage_length=96,
        target_length=12,
        batch_size=16,
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=50),
        train=TrainConfig(
            steps=900, log_every=20, eval_every=300, checkpoint_every=300
        ),
        answers=AnswersConfig(max_questions=500),
        text=TextConfig(question_length=48, passage_length=96),
    )


def trex() -> Config:
    """LAMA's T-REx: cloze questions over their evidence sentences, by BM25.

    Command: python -m experiments.fid --preset trex --workdir runs/fid_trex
      --config.init_from=FOLDER (all-MiniLM-L6-v2) --config.data.passages=trex:FOLDER
      --config.data.questions=trex:FOLDER
    Corpus: 28 relations, 21,856 sentences; no subject of a test question is trained on.
    Hardware: 2 CPU cores. Time and figure: docs/results.md.
    """
    return Config(
        data=AnsweringConfig("trex:data/lama", "trex:data/lama"),
        reading=ReadingConfig(num=3),
        init_from="data/all-MiniLM-L6-v2",
        method=FiDConfig(
            encoder_decoder=EncoderDecoderConfig(num_decoder_layers=1), k=3, copy=True
        ),
        passage_length=64,
        target_length=6,
        batch_size=16,
        optim=OptimConfig(learning_rate=1e-4, warmup_steps=50, b2=0.999),
        train=TrainConfig(
            steps=400, log_every=20, eval_every=100, checkpoint_every=100
        ),
        answers=AnswersConfig(max_questions=1000),
        text=TextConfig(question_length=24, passage_length=64),
    )


def trex_distilled() -> Config:
    """`trex` with own evidence left out, and a retriever that learns from the reader.

    It begins with the passages of a sentence encoder.

    Command: as trex, with --preset trex_distilled
      --config.distil.init_from=FOLDER --config.reading.retriever=FOLDER
    Hardware: 2 CPU cores. Time and figure: docs/results.md.
    """
    config = trex()
    config.reading = ReadingConfig("data/all-MiniLM-L6-v2", num=5, own="left_out")
    config.method.k, config.batch_size = 5, 8
    config.distil = DistilConfig(
        rounds=1,
        init_from="data/all-MiniLM-L6-v2",
        max_questions=3200,  # as many as its steps read
        method=FiDKDConfig(temperature=0.05, k=5),
        optim=OptimConfig(learning_rate=3e-5, warmup_steps=20, b2=0.999),
        train=TrainConfig(steps=200, log_every=10, eval_every=50, checkpoint_every=50),
    )
    return config


def squad() -> Config:
    """SQuAD's paragraphs, divided by article, read beside four others by BM25.

    Command: python -m experiments.fid --preset squad --workdir runs/fid_squad
      --config.init_from=FOLDER (all-MiniLM-L6-v2)
      --config.data.passages=jsonl:FILE --config.data.questions=jsonl:FILE
    Corpus: SQuAD 1.1's development set, articles divided 80/10/10. Hardware: 2 CPU
    cores. Time: hours; docs/results.md has no figure.
    """
    return Config(
        data=AnsweringConfig(
            "jsonl:data/squad/dev_passages.jsonl",
            "jsonl:data/squad/dev_questions.jsonl.gz",
            divide="titles",
        ),
        reading=ReadingConfig(num=5),
        init_from="data/all-MiniLM-L6-v2",
        method=FiDConfig(
            encoder_decoder=EncoderDecoderConfig(num_decoder_layers=2), k=5, copy=True
        ),
        passage_length=256,
        target_length=16,
        optim=OptimConfig(learning_rate=1e-4, warmup_steps=100, b2=0.999),
        train=TrainConfig(
            steps=2000, log_every=20, eval_every=500, checkpoint_every=500
        ),
        text=TextConfig(question_length=32, passage_length=256),
    )


def nq() -> Config:
    """Izacard and Grave 2021: T5-base reads 100 passages of a retriever.

    Command: python -m experiments.fid --preset nq --workdir runs/fid_nq
      --config.init_from=FOLDER (t5-base) --config.data.questions=fid:FILE
    Corpus: the released files of Natural Questions, {split} in their names. Hardware:
    64 GPUs. Time: a day. Figure: exact match 48.2 in the paper, table 1; not run here.
    """
    return Config(
        data=AnsweringConfig("", "fid:data/nq/{split}.json"),
        reading=ReadingConfig("given", num=100),
        also_reads=(),
        init_from="data/t5-base",
        method=FiDConfig(
            "t5", T5Config(dtype="bfloat16", remat=True), k=100, chunk=100
        ),
        passage_length=250,
        target_length=50,
        batch_size=64,
        optim=OptimConfig(
            learning_rate=1e-4, schedule="constant", warmup_steps=0, clip_norm=1.0
        ),
        train=TrainConfig(
            steps=10_000, log_every=50, eval_every=500, checkpoint_every=500
        ),
        closed_book=False,
    )


def triviaqa() -> Config:
    """The same on TriviaQA.

    Command: as nq, with --preset triviaqa. Figure: exact match 65.0 in the paper, table
    1; not run here.
    """
    config = nq()
    config.data = AnsweringConfig("", "fid:data/triviaqa/{split}.json")
    return config


PRESETS = {
    "tiny": tiny,
    "trex": trex,
    "trex_distilled": trex_distilled,
    "squad": squad,
    "nq": nq,
    "triviaqa": triviaqa,
}


if __name__ == "__main__":
    launch.main(PRESETS, run)
