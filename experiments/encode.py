"""A collection through an encoder: vectors on disk, and an index to search them.

python -m experiments.encode --workdir runs/encoded --config.encoder=FOLDER
  --config.passages=beir:FOLDER

The encoder is a folder in Hugging Face's layout (config.json, model.safetensors,
tokenizer.json or vocab.txt): a published one, or a run's ``encoder``. What was killed
goes on when it is started again. Several processes (JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES, JAX_PROCESS_ID) on one file system share the work.
"""

import dataclasses
import pathlib

from experiments import launch, retrievers
from experiments.retrievers import SearchConfig, TextConfig
from rlm_jax.data import passages as passages_lib
from rlm_jax.errors import UserError
from rlm_jax.report import report
from rlm_jax.retrieval import encode
from rlm_jax.train import parallel, progress


@dataclasses.dataclass
class Config:
    """What is encoded, by what."""

    encoder: str = ""  # folder of the passages' encoder
    question_encoder: str = ""  # of the questions'; empty: the same
    passages: str = "stdlib"  # stdlib, beir:FOLDER, dpr:FILE or jsonl:PATH
    text: TextConfig = dataclasses.field(default_factory=TextConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)


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
      --config.encoder=FOLDER --config.passages=dpr:psgs_w100.tsv.gz
    Corpus: DPR's Wikipedia. Hardware: accelerators. Time: hours; not run here.
    """
    return Config(
        passages="dpr:data/dpr/psgs_w100.tsv.gz",
        text=TextConfig(titles="pair"),
        search=SearchConfig(dtype="float16", batch_tokens=1 << 17),
    )


PRESETS = {"tiny": tiny, "wikipedia": wikipedia}


def execute(config: Config, run: launch.Run):
    """Encode, index, report the sizes."""
    if not config.encoder:
        raise UserError("Which encoder? Name its folder with --config.encoder.")
    phases = launch.Phases()
    with phases("data"):
        passages = passages_lib.load(config.passages)
        tower = retrievers.load_tower(config.encoder)
    identity = f"{passages.fingerprint[:16]}-{encode.fingerprint(tower.params)}"
    launch.claim(run, config, identity, same=("text",))
    if run.dry_run:
        progress.say(f"{len(passages):,} passages, vectors of {tower.config.width}")
        return None
    with phases("encode"):
        store, facts = retrievers.encode_collection(
            tower,
            passages,
            passages.fingerprint,
            config.text,
            config.search,
            run.workdir / "datastore",
        )
    if not parallel.is_first_process():
        return None
    with phases("index"):
        index = retrievers.open_index(store, config.search)
    searcher = {
        "encoder": str(
            pathlib.Path(config.question_encoder or config.encoder).resolve()
        ),
        "text": dataclasses.asdict(config.text),
        "search": dataclasses.asdict(config.search),
    }
    retrievers.publish(run.workdir, passages, searcher)
    figures = {
        "passages": float(len(passages)),
        "dimension": float(store.dim),
        "passages_per_second": len(passages) / phases.seconds["encode"],
        **facts,
    }
    made = report.build(
        system=run.system,
        preset=run.preset,
        corpus=config.passages,
        metrics=figures,
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
    padding = f", {facts['padding']:.1%} padding" if facts else ""
    progress.say(
        f"{len(passages):,} passages at {figures['passages_per_second']:,.0f} a second"
        f"{padding}; ask: python -m experiments.search --workdir {run.workdir}"
    )
    return made


if __name__ == "__main__":
    launch.main("encode", PRESETS, execute)
