"""BM25: the retriever that every other one is measured against.

python -m experiments.bm25 --preset tiny --workdir runs/bm25
"""

import dataclasses

from experiments import launch, ranking_report, retrievers, searcher
from experiments.ranking_report import JudgeConfig
from experiments.retrievers import CollectionConfig
from rlm_jax.retrieval.bm25 import BM25Config


@dataclasses.dataclass
class Config:
    """A collection, searched by BM25."""

    collection: CollectionConfig = dataclasses.field(default_factory=CollectionConfig)
    bm25: BM25Config = dataclasses.field(default_factory=BM25Config)
    k: int = 100  # passages a question
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)


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


def execute(config: Config, run: launch.Run):
    """Build or open the index, search for every question, judge, report."""
    phases = launch.Phases()
    with phases("data"):
        collection = retrievers.load_collection(config.collection)
    launch.claim(run, config, collection.fingerprint, same=("collection", "bm25"))
    if run.dry_run:
        return retrievers.describe(collection)
    with phases("index"):
        index = retrievers.open_bm25(
            collection.passages, run.workdir / "bm25", config.bm25
        )
    how = {"bm25": dataclasses.asdict(config.bm25)}
    searcher.publish(run.workdir, collection.passages, how)
    with phases("search"):
        found = index.search(collection.texts, config.k, progress=True)
    return ranking_report.finish(
        run,
        collection,
        config.collection,
        {ranking_report.REAL: found},
        config.judge,
        phases.seconds,
        protocol=dataclasses.asdict(config.bm25),
    )


if __name__ == "__main__":
    launch.main("bm25", PRESETS, execute)
