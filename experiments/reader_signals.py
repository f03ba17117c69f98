"""What a retriever can learn from a reader, side by side: which signal is right?

python -m experiments.reader_signals --workdir runs/signals --config.reader=runs/atlas

The passages that a trained reader was given are scored by pdist, emdr2, loop, adist and
FiD's attention, by the retriever, and with `--config.language_model` by REPLUG-LSR's
likelihoods. The table has their rank correlation with what each passage truly does to
the likelihood of the answer.
"""

from experiments import launch
from rlm_jax.recipes.readers.signals import Config, run


def plain() -> Config:
    """200 questions of the run's split.

    Command: python -m experiments.reader_signals --workdir runs/signals
      --config.reader=runs/atlas --config.language_model=FOLDER
    Hardware: 2 CPU cores. Time and figures: docs/results.md.
    """
    return Config()


PRESETS = {"plain": plain}


if __name__ == "__main__":
    launch.main(PRESETS, run)
