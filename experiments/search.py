"""Ask a collection: type a question, see the passages with their scores.

python -m experiments.search --workdir runs/dpr

The workdir is that of a run of experiments.bm25, .dpr, .contriever or .encode.
`--config.question="..."` asks one question and `--config.questions=FILE` those of a
file; without them they are asked for, or come through a pipe, one a line.
`--config.json` gives lines of JSON, `--config.run_file=FILE` a run in TREC's format.
"""

from experiments import launch
from rlm_jax.recipes.retrievers.search import Config, run


def plain() -> Config:
    """Five passages, three lines of each."""
    return Config()


PRESETS = {"plain": plain}


if __name__ == "__main__":
    launch.main(PRESETS, run)
