"""BM25: the retriever that every other one is measured against."""

import dataclasses

from rlm_jax.data import collections
from rlm_jax.data.collections import CollectionConfig
from rlm_jax.recipes import runs
from rlm_jax.recipes.retrievers import ranking_report
from rlm_jax.recipes.retrievers.ranking_report import JudgeConfig
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.retrieval import bm25
from rlm_jax.retrieval.bm25 import BM25Config
from rlm_jax.retrievers import lexical, published_index


@dataclasses.dataclass
class Config:
    """A collection, searched by BM25."""

    collection: CollectionConfig = dataclasses.field(default_factory=CollectionConfig)
    bm25: BM25Config = dataclasses.field(default_factory=BM25Config)
    k: int = 100  # passages a question
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)


@recipe("bm25")
def run(config: Config, here: Run):
    """Build or open the index, search for every question, judge, report."""
    phases = runs.Phases()
    with phases("data"):
        collection = collections.load(config.collection)
        own = ranking_report.check(config.judge, config.k, collection)
    runs.claim(here, config, collection.fingerprint, same=("collection", "bm25"))
    if here.dry_run:
        return collections.describe(collection)
    with phases("index"):
        index = lexical.open_index(
            collection.passages, here.workdir / "bm25", config.bm25
        )
    published_index.publish(
        here.workdir, collection.passages, {"bm25": bm25.fields(config.bm25)}
    )
    with phases("search"):
        neighbours = index.search(collection.texts, own.deeper(config.k), progress=True)
    return ranking_report.finish(
        here,
        collection,
        config.collection,
        {ranking_report.REAL: neighbours},
        config.judge,
        phases.seconds,
        own,
        protocol=dataclasses.asdict(config.bm25),
    )
