"""Continue prompts by a language model, with documents that are shown.

    python -m experiments.generate --preset in_context --workdir runs/generate
      --config.model=runs/lm

The model is the workdir of a run or a folder in Hugging Face's layout (GPT-2, Llama).
Prompts are asked for, or come through a pipe, one a line, until an empty one;
``--config.prompt`` gives a single one. The workdir keeps the documents' index.
"""

from experiments import launch
from rlm_jax.recipes.generate import Config, run


def plain() -> Config:
    """The language model alone.

    Command: python -m experiments.generate --workdir runs/generate
      --config.model=runs/lm
    Hardware: 2 CPU cores. Time: seconds.
    """
    return Config()


def in_context() -> Config:
    """One document before the text, found anew every 16 tokens (Ram et al. 2023).

    Command: python -m experiments.generate --preset in_context
      --workdir runs/generate --config.model=runs/lm
    Documents: the embedded corpus in passages of 100 words. Hardware: 2 CPU cores.
    Time: seconds.
    """
    return Config(retrieval="in_context")


def replug() -> Config:
    """Every token by five documents, mixed by their scores (Shi et al. 2023).

    Command: python -m experiments.generate --preset replug
      --workdir runs/generate --config.model=runs/lm
    Documents: the embedded corpus in passages of 100 words. Hardware: 2 CPU cores.
    Time: seconds.
    """
    return Config(retrieval="replug")


def memory() -> Config:
    """With the memory of a run of kNN-LM or TRIME: its datastore, the text's own past.

    Command: python -m experiments.generate --preset memory
      --workdir runs/generate --config.model=runs/trime
    Hardware: 2 CPU cores. Time: seconds.
    """
    return Config(retrieval="memory")


PRESETS = {
    "plain": plain,
    "in_context": in_context,
    "replug": replug,
    "memory": memory,
}


if __name__ == "__main__":
    launch.main(PRESETS, run)
