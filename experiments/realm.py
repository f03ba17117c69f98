"""REALM: a retriever learns by what its documents help to fill in.

python -m experiments.realm --preset tiny --workdir runs/realm

Salient spans (dates, numbers, names) of the collection's own sentences are masked and
filled in beside what a stale index finds; `cloze.train.steps` warms the retriever up by
the inverse cloze task. It is judged on questions beside how it began and BM25.
"""

import dataclasses

from experiments import launch
from rlm_jax.data.collections import CollectionConfig
from rlm_jax.methods.realm import REALMConfig
from rlm_jax.models import encoder, encoder_decoder
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.recipes.readers.realm import ClozeConfig, Config, run
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig
from rlm_jax.train.rounds import RefreshConfig


def tiny() -> Config:
    """The embedded corpus: numbers and names of functions' sources.

    Command: python -m experiments.realm --preset tiny --workdir runs/realm
    Corpus: stdlib, WordPiece of 8,192; both encoders from scratch. Hardware: 2 CPU
    cores. Figure: docs/results.md.
    """
    return Config(
        method=REALMConfig(
            encoder=dataclasses.replace(
                encoder_decoder.small().encoder, max_length=160
            ),
            retriever=encoder.small(),
            temperature=0.05,
            k=4,
        ),
        sentence_length=48,
        batch_size=8,
        optim=OptimConfig(learning_rate=5e-4, warmup_steps=50),
        train=TrainConfig(
            steps=300, log_every=20, eval_every=100, checkpoint_every=100
        ),
        cloze=ClozeConfig(
            batch_size=32,
            optim=OptimConfig(learning_rate=5e-4, warmup_steps=20),
            train=TrainConfig(steps=100, log_every=20),
        ),
        refresh=RefreshConfig(keys_every=(100,)),
        text=TextConfig(question_length=48, passage_length=96),
    )


def trex() -> Config:
    """LAMA's T-REx: the objects' sentences without their questions.

    Command: python -m experiments.realm --preset trex --workdir runs/realm_trex
      --config.init_from=FOLDER --config.reader_from=FOLDER (all-MiniLM-L6-v2)
      --config.collection.passages=trex:FOLDER
    Corpus: 28 relations, 21,856 sentences. Hardware: 2 CPU cores. Figure:
    docs/results.md, on its facts about people.
    """
    config = tiny()
    config.method.encoder.dropout = 0.0
    config.collection = CollectionConfig("trex:data/lama")
    config.init_from = config.reader_from = "data/all-MiniLM-L6-v2"
    config.method.temperature = 0.05
    config.cloze = ClozeConfig()
    config.text = TextConfig(question_length=48, passage_length=64)
    config.optim = OptimConfig(learning_rate=2e-5, warmup_steps=50, b2=0.999)
    return config


def squad() -> Config:
    """SQuAD's paragraphs: names, dates and numbers of other paragraphs of the article.

    Command: python -m experiments.realm --preset squad --workdir runs/realm_squad
      --config.init_from=FOLDER --config.reader_from=FOLDER (all-MiniLM-L6-v2)
      --config.collection.passages=jsonl:FILE --config.collection.questions=jsonl:FILE
    Corpus: 2,067 paragraphs of 48 articles. Hardware: 2 CPU cores. Time: hours; not run
    here.
    """
    config = trex()
    config.collection = CollectionConfig(
        "jsonl:data/squad/dev_passages.jsonl", "jsonl:data/squad/dev_questions.jsonl.gz"
    )
    config.text = TextConfig(question_length=64, passage_length=256)
    config.sentence_length = 64
    config.method.encoder.max_length = 320
    config.train = TrainConfig(
        steps=2000, log_every=20, eval_every=500, checkpoint_every=500
    )
    config.refresh = RefreshConfig(keys_every=(500,))
    return config


def paper() -> Config:
    """Guu et al. 2020: BERT-base fills in Wikipedia, CC-News in the second setting.

    Command: python -m experiments.realm --preset paper --workdir runs/realm_paper
      --config.reader_from=FOLDER (bert-base-uncased) --config.init_from=FOLDER (the
      inverse cloze retriever) --config.collection.passages=dpr:FILE
      --config.collection.questions=jsonl:FILE
    Corpus: 13 million passages. Hardware: 64 TPUs and 16 more for the index; 200,000
    steps. Figure: Natural Questions 40.4 after fine-tuning, in the paper's table 1; not
    run here. Differences: vectors are BERT's own 768 numbers in place of a projection
    of 128, which Hugging Face's layout has no place for.
    """
    return Config(
        reader_from="data/bert-base-uncased",
        init_from="data/ict",
        method=REALMConfig(
            encoder=EncoderConfig(dtype="bfloat16", remat=True),
            retriever=EncoderConfig(pooling="cls", dtype="bfloat16", remat=True),
            marginal="token",
            chunk=64,
            k=8,
        ),
        left_out="title",
        sentence_length=96,
        batch_size=512,
        optim=OptimConfig(
            learning_rate=3e-5, schedule="linear", warmup_steps=10_000, b2=0.999
        ),
        train=TrainConfig(
            steps=200_000, log_every=100, eval_every=5000, checkpoint_every=5000
        ),
        refresh=RefreshConfig("overlapped", (500,), lag=400),
        collection=CollectionConfig("dpr:data/psgs_w100.tsv", "jsonl:data/nq.jsonl"),
        text=TextConfig(question_length=96, passage_length=288),
        search=SearchConfig(k=100),
    )


PRESETS = {"tiny": tiny, "trex": trex, "squad": squad, "paper": paper}


if __name__ == "__main__":
    launch.main(PRESETS, run)
