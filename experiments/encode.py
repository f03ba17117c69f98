"""A collection through an encoder: vectors on disk, an index, and its ranking judged.

python -m experiments.encode --workdir runs/encoded --config.encoder=FOLDER
  --config.collection.passages=beir:FOLDER

The encoder is a folder in Hugging Face's layout (config.json, model.safetensors,
tokenizer.json or vocab.txt): a published one, or a run's ``encoder``. With
--config.collection.split the questions of that split are asked and judged. What was
killed goes on when it is started again. Several processes (JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES, JAX_PROCESS_ID) on one file system share the encoding.
"""

from experiments import launch
from rlm_jax.data.collections import CollectionConfig
from rlm_jax.recipes.retrievers.encode import Config, run
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig


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


if __name__ == "__main__":
    launch.main(PRESETS, run)
