"""RETRO: a language model trained against a frozen retriever.

    python -m experiments.retro --preset tiny --workdir runs/retro

The training text, cut into chunks, is encoded and searched once; every chunk then has
its neighbours for good. ``--config.init_from=MODEL --config.method.trained=retrieval``
teaches a trained decoder to read them (RETRO-fitting), and
``--config.warm_start=True`` lets what reads begin as copies of its layers.
``--config.baseline=WORKDIR`` scores a plain language model on the same chunks.
``--config.prompt=TEXT`` continues a text in place of the evaluation.
"""

import dataclasses

from experiments import launch, presets
from rlm_jax.recipes.chunks.retro import Config, run
from rlm_jax.retrievers.chunk_search import DatabaseConfig
from rlm_jax.retrievers.dense import SearchConfig


def tiny() -> Config:
    """The embedded corpus; its encoder has random weights, so nothing is downloaded.

    Command: python -m experiments.retro --preset tiny --workdir runs/retro
    Corpus: stdlib, BPE of 4,096. Hardware: 2 CPU cores. Time: under 5 minutes.
    Figure: docs/results.md.
    """
    return Config(
        **presets.tiny_chunks(),
        method=presets.tiny_retro(),
        database=DatabaseConfig(search=SearchConfig(k=10, index="exact")),
        ks=(),  # which would take as long as the rest
    )


def novels() -> Config:
    """Novels, a decoder of 4 layers of 256 and a sentence encoder.

    Command: python -m experiments.retro --preset novels --workdir runs/novels_retro
      --config.data.corpus=text:FOLDER (folders train, valid and test)
      --config.database.encoder=FOLDER (all-MiniLM-L6-v2)
    Corpus: 56 English novels. Meant for 2 CPU cores; not run to its end here.
    """
    return Config(
        **presets.novels_chunks(),
        method=presets.novels_retro(),
        database=DatabaseConfig(encoder="data/all-MiniLM-L6-v2"),
    )


def wikitext2() -> Config:
    """WikiText-2, whose database the novels join.

    Command: python -m experiments.retro --preset wikitext2 --workdir runs/wt2_retro
      --config.data.corpus=text:FOLDER (WikiText-2) --config.database.more=text:FOLDER
      (novels) --config.database.encoder=FOLDER (all-MiniLM-L6-v2)
    Corpus: as named. Meant for 2 CPU cores; not run to its end here (docs/results.md
    has WikiText-2 with a smaller decoder, a warm start and no novels).
    """
    config = novels()
    config.data.corpus = "text:data/wikitext-2"
    config.database.more = "text:data/books"
    return config


def paper_172m() -> Config:
    """Borgeaud et al. 2022, table 1: 132M parameters, 172M with retrieval.

    Ours are 121M and 157M, since its relative positions have parameters (one map from
    width to heads at each attention) and rotary ones have none.

    Command: python -m experiments.retro --preset paper_172m --workdir runs/retro_172m
      --config.data.corpus=jsonl:FOLDER --config.database.encoder=FOLDER (BERT)
    Corpus: the paper's MassiveText is not public. Hardware: accelerators; not run here.
    """
    return Config(
        **presets.paper_chunks(),
        method=presets.paper_retro(width=896, num_heads=16, head_width=64),
        database=DatabaseConfig(encoder="data/bert-base-uncased"),
    )


def paper_425m() -> Config:
    """As paper_172m with 368M parameters, 425M with retrieval; ours, 340M and 381M.

    Command: python -m experiments.retro --preset paper_425m --workdir runs/retro_425m
      --config.data.corpus=jsonl:FOLDER --config.database.encoder=FOLDER (BERT)
    Corpus, hardware: as paper_172m; not run here.
    """
    return dataclasses.replace(
        paper_172m(),
        method=presets.paper_retro(width=1536, num_heads=12, head_width=128),
    )


PRESETS = {
    "tiny": tiny,
    "wikitext2": wikitext2,
    "novels": novels,
    "paper_172m": paper_172m,
    "paper_425m": paper_425m,
}


if __name__ == "__main__":
    launch.main(PRESETS, run)
