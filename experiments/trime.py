"""TRIME: a language model trained with the memory it is evaluated with.

python -m experiments.trime --preset tiny --workdir runs/trime
"""

from experiments import launch, presets
from rlm_jax.methods import trime
from rlm_jax.recipes.language_models.trime import Config, MemoryConfig, run


def tiny() -> Config:
    """TRIME with long-term memory on the embedded corpus, on 2 CPU cores.

    Command: python -m experiments.trime --preset tiny --workdir runs/trime
    Corpus: stdlib, BPE of 4,096. Hardware: 2 CPU cores. Time: under 3 minutes.
    Figure: see the table that `make demo` prints and docs/results.md.
    """
    config = Config(
        **presets.tiny(),
        method=trime.TrimeConfig(presets.tiny_decoder(), memory="long"),
        warmup_steps=250,
        memory=MemoryConfig(size=2048, segment=128, tune_tokens=8192),
    )
    config.data.order = "consecutive"
    return config


def wikitext2() -> Config:
    """WikiText-2, TRIME with long-term memory; see docs/results.md for the others.

    Command: python -m experiments.trime --preset wikitext2 --workdir runs/wt2_trime
      --config.data.corpus=text:FOLDER
    Corpus: WikiText-2. Hardware: 2 CPU cores. Time: about 45 minutes.
    Figure: docs/results.md.
    """
    config = Config(
        **presets.wikitext2(),
        method=trime.TrimeConfig(presets.wikitext2_decoder(), memory="long"),
        warmup_steps=2400,
    )
    config.data.order = "consecutive"
    return config


def wikitext2_local() -> Config:
    """As wikitext2 with local memory.

    Command: python -m experiments.trime --preset wikitext2_local
      --workdir runs/wt2_local --config.data.corpus=text:FOLDER
    Corpus, hardware, time: as wikitext2. Figure: docs/results.md.
    """
    config = wikitext2()
    config.method.memory, config.data.order = "local", "shuffled"
    config.memory.size = 256
    return config


def wikitext2_external() -> Config:
    """As wikitext2 with external memory: lexically similar segments in training, and in
    evaluation the long-term memory and neighbours among all training tokens.

    Command: python -m experiments.trime --preset wikitext2_external
      --workdir runs/wt2_external --config.data.corpus=text:FOLDER
    Corpus, hardware: as wikitext2. Time: 10 minutes more. Figure: docs/results.md.
    """
    config = wikitext2()
    config.method.memory, config.data.order = "external", "similar"
    config.memory.k, config.memory.interpolate = 128, True
    # Whether training texts help differs from article to article: tune on many.
    config.memory.tune_tokens = 65536
    config.memory.temperatures = (0.8, 1.0, 1.25, 1.6, 2.0, 3.0, 5.0, 10.0)
    return config


def wikitext103() -> Config:
    """WikiText-103, long-term memory, hyper-parameters of the released script.

    Command: python -m experiments.trime --preset wikitext103 --workdir runs/wt103_trime
      --config.data.corpus=text:FOLDER
    Corpus: WikiText-103. Hardware: 8 accelerators. Time: days. Figure: the repository's
    17.01 on validation and 17.64 on test (long); not run here.
    """
    config = Config(
        **presets.wikitext103(),
        method=trime.TrimeConfig(presets.wikitext103_decoder(), memory="long"),
        warmup_steps=9 * 1400,  # epochs of 103M tokens at 73,728 a step
        memory=MemoryConfig(size=12288, segment=512),
    )
    config.data.order = "consecutive"
    return config


def enwik8() -> Config:
    """enwik8, long-term memory, hyper-parameters of the released script.

    Command: python -m experiments.trime --preset enwik8 --workdir runs/enwik8_trime
      --config.data.corpus=text:FOLDER
    Corpus: enwik8. Hardware: 4 accelerators. Time: days. Figure: the repository's 1.08
    on validation and 1.05 bits per byte on test (long); not run here.
    """
    config = Config(
        **presets.enwik8(),
        method=trime.TrimeConfig(presets.enwik8_decoder(), memory="long"),
        warmup_steps=3 * 1830,  # epochs of 90M bytes at 49,152 a step
        memory=MemoryConfig(size=24576, segment=80),
    )
    config.data.order = "consecutive"
    return config


PRESETS = {
    "tiny": tiny,
    "wikitext2": wikitext2,
    "wikitext2_local": wikitext2_local,
    "wikitext2_external": wikitext2_external,
    "wikitext103": wikitext103,
    "enwik8": enwik8,
}


if __name__ == "__main__":
    launch.main(PRESETS, run)
