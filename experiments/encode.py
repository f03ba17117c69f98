"""A collection through an encoder: vectors on disk, an index, and its ranking judged.

python -m experiments.encode --workdir runs/encoded --config.encoder=FOLDER
  --config.collection.passages=beir:FOLDER

The encoder is a folder in Hugging Face's layout (config.json, model.safetensors,
tokenizer.json or vocab.txt): a published one, or a run's ``encoder``. With
--config.collection.split the questions of that split are asked and judged. What was
killed goes on when it is started again. Several processes (JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES, JAX_PROCESS_ID) on one file system share the encoding.
"""

import dataclasses
import pathlib

from experiments import launch, ranking_report, retrievers, searcher
from experiments.ranking_report import JudgeConfig
from experiments.retrievers import (
    CollectionConfig,
    SearchConfig,
    TextConfig,
)
from rlm_jax import terminal
from rlm_jax.data import passages as passages_lib
from rlm_jax.errors import UserError
from rlm_jax.report import report
from rlm_jax.retrieval import encode_stream


@dataclasses.dataclass
class Config:
    """What is encoded, by what."""

    encoder: str = ""  # folder of the passages' encoder
    question_encoder: str = ""  # of the questions'; empty: the same
    collection: CollectionConfig = dataclasses.field(
        default_factory=lambda: CollectionConfig(split="")
    )
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)


def tiny() -> Config:
    """The embedded corpus, by the encoder that is named.

    Command: python -m experiments.encode --workdir runs/encoded
      --config.encoder=runs/dpr/encoder
    Corpus: stdlib. Hardware: 2 CPU cores. Time: under a minute with a tiny encoder.
    """
    return Config()


def wikipedia() -> Config:
    """DPR's 21 million passages, in float16, for ScaNN.

    Command: python -m experiments.encode --preset wikipedia --workdir runs/wikipedia
      --config.encoder=FOLDER --config.collection.passages=dpr:psgs_w100.tsv.gz
    Corpus: DPR's Wikipedia. Hardware: accelerators. Time: hours; not run here.
    """
    return Config(
        collection=CollectionConfig("dpr:data/dpr/psgs_w100.tsv.gz", split=""),
        text=TextConfig(titles="pair"),
        search=SearchConfig(dtype="float16", batch_tokens=1 << 17),
    )


PRESETS = {"tiny": tiny, "wikipedia": wikipedia}


def execute(config: Config, run: launch.Run):
    """Encode, index, and judge if questions are named; report."""
    if not config.encoder:
        raise UserError("Which encoder? Name its folder with --config.encoder.")
    phases = launch.Phases()
    with phases("data"):
        passages = passages_lib.load(config.collection.passages)
        tower = retrievers.load_tower(config.encoder)
        asking = tower
        if config.question_encoder:
            asking = retrievers.load_tower(config.question_encoder)
    identity = f"{passages.fingerprint[:16]}-{encode_stream.fingerprint(tower.params)}"
    launch.claim(run, config, identity, same=("text",))
    if run.dry_run:
        terminal.say(
            f"{len(passages):,} passages, vectors of "
            f"{tower.config.projection or tower.config.width}"
        )
        return None
    with phases("encode"):
        store, facts = retrievers.encode_collection(
            tower,
            passages,
            passages.fingerprint,
            config.text,
            config.search,
            run.workdir / "datastore",
            alone=False,
        )
    launch.leave_to_first()
    own = pathlib.Path(config.question_encoder or config.encoder).resolve()
    searcher.publish_dense(
        run.workdir,
        passages,
        config,
        encoder=str(own),
        questions=asking,
        vectors="datastore",
    )
    if facts:
        rate = len(passages) / phases.seconds["encode"]
        terminal.say(
            f"{len(passages):,} passages, {rate:,.0f} a second, "
            f"{facts['padding']:.1%} padding"
        )
    if config.collection.split:
        collection = retrievers.load_collection(config.collection)
        with phases("search"):
            found = retrievers.search_dense(
                asking, store, collection.texts, config.text, config.search
            )
        return ranking_report.judged(
            run,
            config,
            collection,
            found,
            phases,
            curves={},
            protocol={"encoder": config.encoder, **facts},
        )
    with phases("index"):
        index = retrievers.open_index(store, config.search)
    made = report.build(
        system=run.system,
        preset=run.preset,
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
    report.write(run.workdir / "report.json", made)
    terminal.say(f"ask: python -m experiments.search --workdir {run.workdir}")
    return made


if __name__ == "__main__":
    launch.main("encode", PRESETS, execute)
