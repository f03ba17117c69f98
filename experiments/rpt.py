"""RPT: a language model that learns what to retrieve from its own document.

    python -m experiments.rpt --preset tiny --workdir runs/rpt

BM25 finds candidates among a document's earlier chunks and the retriever learns to rank
them: by BM25 itself (``--config.targets.kind=lexical``), or by how far each makes a
reference language model expect the next chunk (``semantic``, with
``--config.targets.reference=WORKDIR``). ``--config.method.neighbours=given`` reads
what BM25 finds and learns no retriever, as RETRO would.
``--config.init_from=WORKDIR`` begins with a trained decoder,
``--config.baseline=WORKDIR`` reads the documents with a plain one, and
``--config.prompt_file=FILE`` continues a long text in place of the evaluation.
"""

from experiments import launch, presets
from rlm_jax.methods.rpt import AuxiliaryConfig, RPTConfig, SamplingConfig
from rlm_jax.models import decoder
from rlm_jax.recipes.chunks.rpt import run
from rlm_jax.recipes.chunks.rpt_config import Config, DocumentsConfig
from rlm_jax.recipes.language_model import DataConfig, EvaluateConfig
from rlm_jax.retrievers.chunk_targets import TargetsConfig
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig


def tiny() -> Config:
    """The long modules of the embedded corpus, with lexical targets.

    Command: python -m experiments.rpt --preset tiny --workdir runs/rpt
    Corpus: stdlib, documents of 2,048 tokens or more, BPE of 4,096. Hardware: 2 CPU
    cores. Time: 5 minutes. Figure: docs/results.md.
    """
    return Config(
        data=DataConfig(batch_size=4, length=512),
        documents=DocumentsConfig(shortest=2048, longest=4096),
        method=RPTConfig(
            decoder.modern(
                num_layers=2, width=128, feed_forward_width=384, attention_window=128
            ),
            chunk_length=32,
            reader_heads=2,
            reader_head_width=32,
            auxiliary=AuxiliaryConfig(warmup_steps=50, margin_steps=400),
            sampling=SamplingConfig(steps=400),
        ),
        targets=TargetsConfig(kind="lexical"),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=50, min_learning_rate=3e-4),
        train=TrainConfig(
            steps=400, log_every=25, eval_every=200, checkpoint_every=200
        ),
        evaluate=EvaluateConfig(window=128, stride=128, max_tokens=2**15),
    )


def novels() -> Config:
    """Novels, a decoder of 4 layers of 256 and a reference language model.

    Command: python -m experiments.rpt --preset novels --workdir runs/novels_rpt
      --config.data.corpus=text:FOLDER (folders train, valid and test)
      --config.targets.reference=WORKDIR (a run of experiments.lm on the same text)
    Corpus: 56 English novels. Meant for 2 CPU cores; run here on 14 of them with half
    the width: docs/results.md.
    """
    return Config(
        data=DataConfig(
            corpus="text:data/books", vocab_size=8192, batch_size=4, length=1024
        ),
        documents=DocumentsConfig(longest=2**14),
        method=RPTConfig(
            decoder.modern(attention_window=256),
            chunk_length=32,
            reader_heads=4,
            reader_head_width=32,
            auxiliary=AuxiliaryConfig(warmup_steps=100, margin_steps=800),
            sampling=SamplingConfig(steps=800),
        ),
        # A table of all candidates would take longer than the training.
        targets=TargetsConfig(every=8),
        optim=presets.novels_chunks()["optim"],
        train=TrainConfig(
            steps=1200, log_every=50, eval_every=400, checkpoint_every=200
        ),
        evaluate=EvaluateConfig(window=256, stride=256, max_tokens=2**16),
    )


def paper() -> Config:
    """Rubin and Berant 2023: 12 layers of 1,024, documents of 16,384 tokens.

    Windows of 2,048 tokens, chunks of 64, 2 neighbours, cross-attention at every second
    upper layer, 20 candidates of a chunk scored by a model of 1.4 billion parameters.
    What the paper and its code leave open (steps, batch, schedules) is our guess.

    Command: python -m experiments.rpt --preset paper --workdir runs/rpt_pg19
      --config.data.corpus=jsonl:FOLDER (PG19) --config.targets.reference=FOLDER
    Hardware: accelerators. Figure: the paper's perplexity of 10.96 on PG19 (11.44 with
    BM25's neighbours, 11.48 Transformer-XL); not run here.
    """
    return Config(
        data=DataConfig(
            corpus="jsonl:data/pg19", vocab_size=50_304, batch_size=8, length=16_384
        ),
        documents=DocumentsConfig(shortest=2048),
        method=RPTConfig(
            decoder.modern(
                num_layers=12,
                width=1024,
                num_heads=8,
                feed_forward_width=2816,
                attention_window=2048,
                dtype="bfloat16",
                remat=True,
            ),
            auxiliary=AuxiliaryConfig(warmup_steps=5000, margin_steps=50_000),
            sampling=SamplingConfig(steps=50_000),
        ),
        targets=TargetsConfig(num=20, batch_size=256, shard_size=4096),
        optim=OptimConfig(
            learning_rate=2e-4,
            warmup_steps=5000,
            min_learning_rate=2e-5,
            weight_decay=0.1,
        ),
        train=TrainConfig(
            steps=100_000, log_every=100, eval_every=5000, checkpoint_every=5000
        ),
        evaluate=EvaluateConfig(window=2048, stride=2048, batch_size=8),
    )


PRESETS = {"tiny": tiny, "novels": novels, "paper": paper}


if __name__ == "__main__":
    launch.main(PRESETS, run)
