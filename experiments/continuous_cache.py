"""The continuous cache: a plain language model that looks back at its recent states.

    python -m experiments.continuous_cache --preset tiny --workdir runs/cache

trains the plain language model first, unless ``--config.params_from`` names the workdir
of a run whose decoder is taken as it is, a Hugging Face folder, or a GGUF file.
"""

from experiments import launch, presets
from rlm_jax.methods import lm
from rlm_jax.recipes.language_models.continuous_cache import CacheConfig, Config, run


def tiny() -> Config:
    """The embedded corpus on 2 CPU cores.

    Command: python -m experiments.continuous_cache --preset tiny --workdir runs/cache
    Corpus: stdlib, BPE of 4,096. Hardware: 2 CPU cores. Time: under 3 minutes.
    Figure: see the table that `make demo` prints and docs/results.md.
    """
    return Config(
        **presets.tiny(),
        method=lm.LMConfig(presets.tiny_decoder()),
        cache=CacheConfig(segment=128, tune_tokens=8192),
    )


def wikitext2() -> Config:
    """WikiText-2 at word level; a cache as large as TRIME's long memory.

    Command: python -m experiments.continuous_cache --preset wikitext2
      --workdir runs/wt2_cache --config.data.corpus=text:FOLDER
      --config.params_from=runs/wt2_lm
    Corpus: WikiText-2. Hardware: 2 CPU cores. Time: 5 minutes after the language
    model's. Figure: none; not run here.
    """
    return Config(
        **presets.wikitext2(),
        method=lm.LMConfig(presets.wikitext2_decoder()),
        cache=CacheConfig(size=4096),
    )


PRESETS = {"tiny": tiny, "wikitext2": wikitext2}


if __name__ == "__main__":
    launch.main(PRESETS, run)
