"""Ask a reader: its answer, the passages it read, and where in them it looked.

python -m experiments.ask --workdir runs/fid --config.question="..."

Without a question, questions are read from a pipe, one a line, or asked for;
`--config.json` gives lines of JSON.
"""

from experiments import launch
from rlm_jax.recipes.readers.ask import Config, run


def plain() -> Config:
    """The run's own retriever and number of passages."""
    return Config()


PRESETS = {"plain": plain}


if __name__ == "__main__":
    launch.main(PRESETS, run)
