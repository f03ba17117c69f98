"""BM25: the retriever that every other one is measured against.

python -m experiments.bm25 --preset tiny --workdir runs/bm25
"""

from experiments import launch
from rlm_jax.data.collections import CollectionConfig
from rlm_jax.recipes.retrievers.bm25 import Config, run


def tiny() -> Config:
    """Docstrings of the running Python's library, asked for their functions.

    Command: python -m experiments.bm25 --preset tiny --workdir runs/bm25
    Corpus: stdlib. Hardware: 2 CPU cores. Time: half a minute.
    Figure: docs/results.md.
    """
    return Config()


def squad() -> Config:
    """SQuAD's development paragraphs and questions, as files of JSON lines.

    Command: python -m experiments.bm25 --preset squad --workdir runs/bm25_squad
      --config.collection.passages=jsonl:FILE --config.collection.questions=jsonl:FILE
    Corpus: SQuAD 1.1. Hardware: 2 CPU cores. Time: under a minute.
    Figure: docs/results.md.
    """
    return Config(
        CollectionConfig(
            "jsonl:data/squad/dev_passages.jsonl",
            "jsonl:data/squad/dev_questions.jsonl.gz",
        )
    )


def nfcorpus() -> Config:
    """NFCorpus in BEIR's layout, with the setting of the published figure.

    Command: python -m experiments.bm25 --preset nfcorpus --workdir runs/bm25_nfcorpus
      --config.collection.passages=beir:FOLDER
    Corpus: BEIR NFCorpus. Hardware: 2 CPU cores. Time: under a minute.
    Figure: published nDCG@10 0.3218; docs/results.md.
    """
    return Config(CollectionConfig("beir:data/beir/nfcorpus"))


def scifact() -> Config:
    """SciFact in BEIR's layout, with the setting of the published figure.

    Command: python -m experiments.bm25 --preset scifact --workdir runs/bm25_scifact
      --config.collection.passages=beir:FOLDER
    Corpus: BEIR SciFact. Hardware: 2 CPU cores. Time: under a minute.
    Figure: published nDCG@10 0.6789; docs/results.md.
    """
    return Config(CollectionConfig("beir:data/beir/scifact"))


def nq() -> Config:
    """Natural Questions over DPR's 21 million passages of Wikipedia.

    Command: python -m experiments.bm25 --preset nq --workdir runs/bm25_nq
      --config.collection.passages=dpr:psgs_w100.tsv.gz
      --config.collection.questions=dpr:nq-test.csv
    Corpus: DPR's. Hardware: 64 GiB of memory. Time: hours. Figure: published top-20
    answer recall 62.9; not run here.
    """
    return Config(
        CollectionConfig("dpr:data/dpr/psgs_w100.tsv.gz", "dpr:data/dpr/nq-test.csv")
    )


PRESETS = {
    "tiny": tiny,
    "squad": squad,
    "nfcorpus": nfcorpus,
    "scifact": scifact,
    "nq": nq,
}


if __name__ == "__main__":
    launch.main(PRESETS, run)
