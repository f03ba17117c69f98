"""NPM: blanks filled with phrases of a memory that can change after training.

python -m experiments.npm --preset tiny --workdir runs/npm
"""

from experiments import launch
from rlm_jax.data.phrase_masking import MaskingConfig
from rlm_jax.methods.npm import NPMConfig
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.readers.added_facts import AddedConfig
from rlm_jax.readers.classifying import ClosedSetsConfig
from rlm_jax.recipes.phrases.filling import QuestionsConfig
from rlm_jax.recipes.phrases.npm import Config, run
from rlm_jax.retrievers.memory_parts import MemoryConfig
from rlm_jax.retrievers.phrase_answers import FillConfig
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig


def small() -> EncoderConfig:
    """Two layers, from scratch."""
    return EncoderConfig(
        num_layers=2, width=128, num_heads=2, feed_forward_width=512, max_length=128,
        dropout=0.0,
    )  # fmt: skip


def tiny() -> Config:
    """The embedded corpus; blanks in modules that no model has read.

    Command: python -m experiments.npm --preset tiny --workdir runs/npm
    Corpus: stdlib, WordPiece of 4,096. Hardware: 2 CPU cores. Time: under 3 minutes.
    """
    return Config(
        memory_passages="corpus:stdlib#validation",
        foreign_passages="corpus:stdlib",
        vocab_size=4096,
        method=NPMConfig(small()),
        masking=MaskingConfig(length=64, sequences_per_run=16),
        batch_size=32,
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=30),
        train=TrainConfig(
            steps=200, log_every=20, eval_every=100, checkpoint_every=100
        ),
        memory=MemoryConfig(length=64, index="exact"),
        fill=FillConfig(k=256, length=64),
    )


def wikipedia() -> Config:
    """WikiText-2, paragraphs of SQuAD and odqa_wiki_mini, T-REx's sentences.

    Command: python -m experiments.npm --preset wikipedia --workdir runs/npm
      --config.init_from=FOLDER (all-MiniLM-L6-v2, or nothing: from scratch)
    Corpus: data/wikitext-2, data/squad, data/odqa_wiki_mini and data/lama, whose
    sentences are the memory and whose facts are the questions.
    Hardware: 2 CPU cores. Time: at most 40 minutes.
    """
    encoder = EncoderConfig(
        num_layers=3, width=256, num_heads=4, feed_forward_width=1024, max_length=128,
        dropout=0.0,
    )  # fmt: skip
    trex, mini = "trex:data/lama", "jsonl:data/odqa_wiki_mini/passages.jsonl.gz"
    squad = "jsonl:data/squad/dev_passages.jsonl"
    return Config(
        passages=f"corpus:text:data/wikitext-2+{squad}+{mini}+{trex}",
        validation="corpus:text:data/wikitext-2#validation",
        memory_passages=trex,
        foreign_passages=mini,
        vocab_size=16384,
        method=NPMConfig(encoder),
        masking=MaskingConfig(length=128, sequences_per_run=16),
        batch_size=32,
        optim=OptimConfig(
            learning_rate=5e-4, warmup_steps=100, min_learning_rate=5e-5,
            weight_decay=0.01,
        ),
        train=TrainConfig(
            steps=1500, log_every=25, eval_every=250, checkpoint_every=250
        ),
        questions=QuestionsConfig(trex, count=1000),
        added=AddedConfig("google_re:data/lama"),
        closed_sets=ClosedSetsConfig(
            tuple(f"{name}:data/npm_closed_set" for name in ("agn", "sst2", "subj"))
        ),
    )  # fmt: skip


def paper() -> Config:
    """Min et al. 2023: RoBERTa-large on Wikipedia and CC-News.

    Command: python -m experiments.npm --preset paper --workdir runs/npm
    Corpus: Wikipedia and CC-News, 13 billion tokens; the memory is Wikipedia's 810
    million. Hardware: 32 accelerators. Time: days. Not run here.
    """
    encoder = EncoderConfig(dropout=0.1, dtype="bfloat16")
    return Config(
        passages="corpus:jsonl:data/wikipedia+corpus:jsonl:data/cc_news",
        validation="",
        memory_passages="corpus:jsonl:data/wikipedia",
        init_from="data/roberta-large",
        method=NPMConfig(encoder),
        masking=MaskingConfig(length=256),
        twin=False,
        batch_size=512,
        optim=OptimConfig(
            learning_rate=3e-5, schedule="linear", warmup_steps=4000,
            weight_decay=0.01, clip_norm=2.0,
        ),
        train=TrainConfig(
            steps=100_000, log_every=100, eval_every=5000, checkpoint_every=5000
        ),
        memory=MemoryConfig(length=256, dtype="int8"),
        fill=FillConfig(k=4096, length=256),
        questions=QuestionsConfig("trex:data/lama", count=0),
    )  # fmt: skip


PRESETS = {"tiny": tiny, "wikipedia": wikipedia, "paper": paper}


if __name__ == "__main__":
    launch.main(PRESETS, run)
