"""Contriever: a retriever trained on text alone, judged on questions it never saw.

python -m experiments.contriever --preset tiny --workdir runs/contriever
"""

from experiments import launch
from rlm_jax.data.collections import CollectionConfig
from rlm_jax.methods.contriever import ContrieverConfig
from rlm_jax.models import encoder
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.recipes.retrievers.contriever import Config, CropsConfig, run
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig


def tiny() -> Config:
    """The embedded corpus; docstrings of its test modules ask for their functions.

    Command: python -m experiments.contriever --preset tiny --workdir runs/contriever
    Corpus: stdlib, WordPiece of 8,192. Hardware: 2 CPU cores. Time: under 3 minutes.
    Figure: docs/results.md.
    """
    return Config(
        crops=CropsConfig(window=128),
        method=ContrieverConfig(encoder.small(), queue_size=4096, momentum=0.99),
        batch_size=64,
        optim=OptimConfig(learning_rate=5e-4, warmup_steps=50),
        train=TrainConfig(
            steps=400, log_every=20, eval_every=200, checkpoint_every=200
        ),
        text=TextConfig(question_length=48, passage_length=128),
    )


def novels() -> Config:
    """From scratch on a folder of text, in-batch negatives; SciFact as a test.

    Command: python -m experiments.contriever --preset novels --workdir runs/contriever
      --config.crops.corpus=text:FOLDER --config.collection.passages=beir:FOLDER
    Corpus: novels and WikiText-2, WordPiece of 16,384. Hardware: 2 CPU cores.
    Time: 10 minutes. Figure: docs/results.md.
    """
    encoder = EncoderConfig(
        num_layers=3, width=256, num_heads=4, feed_forward_width=1024, max_length=256,
        normalise=True, dropout=0.0,
    )  # fmt: skip
    return Config(
        crops=CropsConfig("text:data/novels", vocab_size=16384, window=192),
        method=ContrieverConfig(encoder, queue_size=16384, momentum=0.995),
        negatives="batch",
        batch_size=128,
        optim=OptimConfig(
            learning_rate=1e-4, warmup_steps=50, min_learning_rate=1e-5,
            weight_decay=0.01,
        ),
        train=TrainConfig(steps=240, log_every=20, checkpoint_every=120),
        collection=CollectionConfig("beir:data/beir/scifact"),
    )  # fmt: skip


def paper() -> Config:
    """Izacard et al. 2022: BERT base on CCNet and Wikipedia, a queue of 131,072.

    Command: python -m experiments.contriever --preset paper --workdir runs/contriever
      --config.crops.corpus=jsonl:FOLDER --config.init_from=FOLDER (bert-base-uncased)
      --config.crops.tokenizer=hf:FOLDER/tokenizer.json
      --config.collection.passages=beir:FOLDER
    Corpus: CCNet and Wikipedia. Hardware: 32 accelerators. Time: days. Figure: the
    paper's nDCG@10 31.7 on NFCorpus, 64.9 on SciFact; not run here.
    """
    encoder = EncoderConfig(
        width=768, num_layers=12, feed_forward_width=3072, dtype="bfloat16"
    )
    return Config(
        crops=CropsConfig(
            "jsonl:data/ccnet_wikipedia", "hf:data/bert-base-uncased/tokenizer.json"
        ),
        method=ContrieverConfig(encoder),
        init_from="data/bert-base-uncased",
        batch_size=2048,
        optim=OptimConfig(
            learning_rate=5e-5, schedule="linear", warmup_steps=20_000,
            weight_decay=0.01,
        ),
        train=TrainConfig(
            steps=500_000, log_every=100, eval_every=5000, checkpoint_every=5000
        ),
        collection=CollectionConfig("beir:data/beir/scifact"),
    )  # fmt: skip


PRESETS = {"tiny": tiny, "novels": novels, "paper": paper}


if __name__ == "__main__":
    launch.main(PRESETS, run)
