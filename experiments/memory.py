"""Documents for the memory of a run of NPM, or out of it, without training.

python -m experiments.memory --workdir runs/npm --config.add=jsonl:FILE
python -m experiments.memory --workdir runs/npm --config.remove="('some id',)"
"""

from experiments import launch
from rlm_jax.recipes.phrases.memory import Config, run


def plain() -> Config:
    """Nothing, until it is named."""
    return Config()


PRESETS = {"plain": plain}


if __name__ == "__main__":
    launch.main(PRESETS, run)
