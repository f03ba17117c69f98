"""The plain language model: what every retrieval gain is measured against.

``init_from`` goes on from a decoder of another run, or a published one, on a text of
one's own.
"""

import dataclasses

from rlm_jax.methods import lm
from rlm_jax.recipes import base_lm, language_model, reporting, runs
from rlm_jax.recipes.runs import Run, recipe


@dataclasses.dataclass
class Config(language_model.Experiment):
    """A run of the plain language model."""

    method: lm.LMConfig = dataclasses.field(default_factory=lm.LMConfig)
    # Workdir or Hugging Face folder of a decoder to begin with, tokenizer included.
    init_from: str = ""


@recipe("lm")
def run(config: Config, here: Run):
    """Train, score the test split, report."""
    phases = runs.Phases()
    given = None
    with phases("data"):
        if config.init_from:
            given = base_lm.to_start_from(
                config.init_from, config.data, config.method.decoder
            )
        source = config.init_from or config.continue_from
        start = base_lm.start(config, here, given, source)
    text = start.text
    config = start.claim(here, same=(*language_model.SAME, "init_from"))
    method = lm.lm(config.method)
    if here.dry_run:
        return language_model.describe(method, config, text)
    with phases("train"):
        params = language_model.train(
            method,
            config,
            text,
            here,
            steps=config.train.steps,
            initial_params=given.decoding.params if given and given.decoding else None,
        )
    runs.leave_to_first()
    base_lm.publish(here, config.method.decoder, params, text.tokenizer)
    with phases("evaluate"):
        test = language_model.score_split(method, params, config, text, "test")
    log_probs = {"real": test.stream.log_probs}
    return reporting.finish(here, config, text, test, log_probs, phases.seconds)
