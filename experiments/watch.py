"""Make the indexes of a run with `refresh.policy=external`, beside it or elsewhere.

python -m experiments.watch --workdir runs/atlas

The run leaves an encoder at the steps of its schedule; this process encodes the
collection with it and renames the folder when the index is whole, and the run takes it
up. It ends when it is interrupted, or with `--config.once` when nothing waits.
"""

from experiments import launch
from rlm_jax.recipes.watching import Config, run


def plain() -> Config:
    """Command: python -m experiments.watch --workdir runs/atlas"""
    return Config()


PRESETS = {"plain": plain}


if __name__ == "__main__":
    launch.main(PRESETS, run)
