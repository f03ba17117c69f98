"""A collection through an encoder: vectors on disk, an index, and its ranking judged.

The encoder is a folder in Hugging Face's layout (config.json, model.safetensors,
tokenizer.json or vocab.txt): a published one, or a run's ``encoder``. Where
``collection.split`` is named, the questions of that split are asked and judged. A
killed run goes on when it is started again. Several processes on one file system share
the encoding.
"""

import dataclasses
import pathlib

import numpy as np

from rlm_jax import terminal
from rlm_jax.data import collections
from rlm_jax.data import passages as passages_lib
from rlm_jax.data.collections import CollectionConfig
from rlm_jax.errors import UserError
from rlm_jax.recipes import runs
from rlm_jax.recipes.retrievers import ranking_report
from rlm_jax.recipes.retrievers.ranking_report import JudgeConfig
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.report import report
from rlm_jax.retrieval import encode_stream
from rlm_jax.retrievers import dense, encoder_towers, published_index
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig
from rlm_jax.retrievers.own_passages import OwnPassages


@dataclasses.dataclass
class Config:
    """Which collection is encoded, and by which encoder."""

    encoder: str = ""  # folder of the passages' encoder
    question_encoder: str = ""  # of the questions'; empty: the same
    collection: CollectionConfig = dataclasses.field(
        default_factory=lambda: CollectionConfig(split="")
    )
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)


@recipe("encode")
def run(config: Config, here: Run):
    """Encode, index, and judge if questions are named; report."""
    if not config.encoder:
        raise UserError("Which encoder? Name its folder with --config.encoder.")
    phases = runs.Phases()
    with phases("data"):
        tower = encoder_towers.load(config.encoder)
        asking = tower
        if config.question_encoder:
            asking = encoder_towers.load(config.question_encoder)
        passages = passages_lib.load(config.collection.passages)
        collection, own = None, OwnPassages(np.zeros(0, np.int32))
        if config.collection.split:
            collection = collections.load(config.collection)
            own = ranking_report.check(config.judge, config.search.k, collection)
    identity = f"{passages.fingerprint[:16]}-{encode_stream.fingerprint(tower.params)}"
    runs.claim(
        here,
        config,
        identity,
        same=("text",),
        identity={
            "tokenizer": tower.tokenizer.fingerprint,
            "question_encoder": encode_stream.fingerprint(asking.params),
            "question_tokenizer": asking.tokenizer.fingerprint,
        },
    )
    if here.dry_run:
        terminal.say(
            f"{len(passages):,} passages, vectors of "
            f"{tower.config.projection or tower.config.width}"
        )
        return None
    with phases("encode"):
        store, facts = dense.encode_collection(
            tower,
            passages,
            passages.fingerprint,
            config.text,
            config.search,
            here.workdir / "datastore",
            alone=False,
        )
    runs.leave_to_first()
    asks = pathlib.Path(config.question_encoder or config.encoder).resolve()
    published_index.publish_dense(
        here.workdir,
        passages,
        config.text,
        config.search,
        encoder=str(asks),
        questions=asking,
        vectors="datastore",
    )
    if facts:
        rate = len(passages) / phases.seconds["encode"]
        terminal.say(
            f"{len(passages):,} passages, {rate:,.0f} a second, "
            f"{facts['padding']:.1%} padding"
        )
    if collection is not None:
        deep = dataclasses.replace(config.search, k=own.deeper(config.search.k))
        with phases("search"):
            neighbours = dense.search(
                asking, store, collection.texts, config.text, deep
            )
        return ranking_report.judged(
            here,
            config,
            collection,
            neighbours,
            phases,
            own,
            curves={},
            protocol={"encoder": config.encoder, **facts},
        )
    with phases("index"):
        index = dense.open_index(store, config.search)
    result = report.build(
        system=here.system,
        preset=here.preset,
        corpus=config.collection.passages,
        metrics={"passages": len(passages), "dimension": store.dim, **facts},
        controls={},
        seconds=phases.seconds,
        commit=report.commit_of(pathlib.Path(__file__).parent),
        protocol={
            "encoder": config.encoder,
            "index": type(index).__name__,
            **dataclasses.asdict(config.text),
            **dataclasses.asdict(config.search),
        },
    )
    report.write(here.workdir / "report.json", result)
    terminal.say(f"ask: python -m experiments.search --workdir {here.workdir}")
    return result
