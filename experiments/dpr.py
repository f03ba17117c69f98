"""DPR: an encoder trained on questions and passages, with mined hard negatives.

python -m experiments.dpr --preset tiny --workdir runs/dpr

Round 1 takes its hard negatives from BM25 (or, as `pairs.miner` says, from the encoder
that it starts from), every later round from the model of the round before, whose
parameters it goes on from.
"""

from experiments import launch
from rlm_jax.data.collections import CollectionConfig
from rlm_jax.methods.dpr import DPRConfig
from rlm_jax.models import encoder
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.recipes.retrievers.dpr import Config, PairsConfig, run
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig


def tiny() -> Config:
    """The embedded corpus: docstrings ask for their functions, split by module.

    Command: python -m experiments.dpr --preset tiny --workdir runs/dpr
    Corpus: stdlib, WordPiece of 8,192. Hardware: 2 CPU cores. Time: under 3 minutes.
    Figure: docs/results.md.
    """
    return Config(
        method=DPRConfig(encoder.small(), scale=20.0, negatives="distinct"),
        batch_size=32,
        optim=OptimConfig(learning_rate=5e-4, warmup_steps=50),
        train=TrainConfig(steps=300, log_every=20, checkpoint_every=150),
        text=TextConfig(question_length=48, passage_length=128),
    )


def squad() -> Config:
    """A sentence encoder goes on with SQuAD's training questions; its paragraphs test.

    Command: python -m experiments.dpr --preset squad --workdir runs/dpr_squad
      --config.init_from=FOLDER (all-MiniLM-L6-v2) --config.pairs.questions=jsonl:FILE
      --config.collection.passages=jsonl:FILE --config.collection.questions=jsonl:FILE
    Corpus: SQuAD 1.1, questions paired with sentences. Hardware: 2 CPU cores.
    Time: 25 minutes. Figure: docs/results.md.
    """
    return Config(
        pairs=PairsConfig(
            "",
            "jsonl:data/squad/train_question_sentence_pairs.jsonl.gz",
            passage_length=64,
        ),
        method=DPRConfig(scale=20.0, negatives="distinct"),
        init_from="data/all-MiniLM-L6-v2",
        batch_size=64,
        optim=OptimConfig(
            learning_rate=2e-5, schedule="linear", warmup_steps=20, b2=0.999
        ),
        train=TrainConfig(steps=120, log_every=5, checkpoint_every=30),
        collection=CollectionConfig(
            "jsonl:data/squad/dev_passages.jsonl",
            "jsonl:data/squad/dev_questions.jsonl.gz",
        ),
        text=TextConfig(question_length=32, passage_length=256),
    )


def nq() -> Config:
    """Karpukhin et al. 2020: Natural Questions over 21 million passages.

    Command: python -m experiments.dpr --preset nq --workdir runs/dpr_nq
      --config.init_from=FOLDER (bert-base-uncased)
      --config.pairs.questions=dpr:nq-train.json
      --config.collection.passages=dpr:psgs_w100.tsv.gz
      --config.collection.questions=dpr:nq-test.csv
    Corpus: DPR's. Hardware: 8 accelerators. Time: a day. Figure: the released model's
    top-20 answer recall 79.97; not run here.
    """
    return Config(
        pairs=PairsConfig("", "dpr:data/dpr/nq-train.json"),
        method=DPRConfig(
            EncoderConfig(pooling="cls", dtype="bfloat16"), towers="separate"
        ),
        init_from="data/bert-base-uncased",
        batch_size=128,
        optim=OptimConfig(
            learning_rate=2e-5, schedule="linear", warmup_steps=1237, clip_norm=2.0
        ),
        train=TrainConfig(steps=18_400, log_every=50, checkpoint_every=1000),
        collection=CollectionConfig(
            "dpr:data/dpr/psgs_w100.tsv.gz", "dpr:data/dpr/nq-test.csv"
        ),
        text=TextConfig(titles="pair", question_length=256),
    )


PRESETS = {"tiny": tiny, "squad": squad, "nq": nq}


if __name__ == "__main__":
    launch.main(PRESETS, run)
