"""The continuous cache beside a plain language model, on a protocol like TRIME's.

The model is trained first, unless ``params_from`` names a run or a Hugging Face folder
whose decoder is taken as it is.
"""

import dataclasses

from rlm_jax.evaluate import continuous_cache
from rlm_jax.evaluate.token_memory import TokenMemory
from rlm_jax.methods import lm
from rlm_jax.recipes import base_lm, inspection, language_model, reporting, runs
from rlm_jax.recipes.runs import Run, recipe


@dataclasses.dataclass
class CacheConfig:
    """The recent past, and the grid that is searched on the validation split."""

    size: int = 2048  # tokens of finished segments; 0: those of the running one alone
    segment: int = 256  # tokens after which the cache moves on
    tune_tokens: int = 16384  # of the validation split, from its start
    # t, where theta = 1 / (t sqrt(D)); the best on validation is taken
    temperatures: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
    # lambda, of the cache's distribution
    weights: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)


@dataclasses.dataclass
class Config(language_model.Experiment):
    """A run of a plain language model with a continuous cache."""

    method: lm.LMConfig = dataclasses.field(default_factory=lm.LMConfig)
    cache: CacheConfig = dataclasses.field(default_factory=CacheConfig)
    # Workdir or Hugging Face folder whose decoder is used as it is; nothing is trained.
    params_from: str = ""


@recipe("continuous_cache")
def run(config: Config, here: Run):
    """Train or take a model, tune on validation, evaluate on test, report."""
    phases = runs.Phases()
    with phases("data"):
        start = base_lm.start_plain(config, here)
        language_model.check_split(start.text, "validation", start.config.data.corpus)
    text = start.text
    config = start.claim(here, same=(*language_model.SAME, "params_from"))
    method = lm.lm(config.method)
    if here.dry_run:
        return language_model.describe(method, config, text)
    with phases("train"):
        params = base_lm.trained_or_given(start, config, here)
    cache = config.cache
    with phases("evaluate"):
        validation = language_model.score_split(
            method, params, config, text, "validation", limit=cache.tune_tokens
        )
        test = language_model.score_split(method, params, config, text, "test")
    size = language_model.memory_size("cache.size", cache.size, test)
    with phases("controls"):
        memory, weight = continuous_cache.tune(
            validation.stream,
            TokenMemory(size, cache.segment),
            cache.temperatures,
            cache.weights,
        )
        log_probs = continuous_cache.by_control(test.stream, memory, weight)
    language_model.note_grid_end(
        "cache.temperatures", memory.temperature, cache.temperatures
    )
    language_model.note_grid_end("cache.weights", weight, cache.weights)
    return reporting.finish(
        here,
        config,
        text,
        test,
        log_probs,
        phases.seconds,
        protocol={
            "memory_size": memory.size,
            "memory_temperature": memory.temperature,
            "weight": weight,
        },
        positions=inspection.of_memory(text, test, log_probs, memory),
    )
