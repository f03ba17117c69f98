"""REPLUG: a language model's distributions after each of k documents, mixed.

Every k of ``ensemble.ks`` is told beside the configured one, from the same passes.
"""

import dataclasses

from rlm_jax.recipes import runs
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.recipes.with_passages import documents, ensemble
from rlm_jax.retrievers import passage_search


@dataclasses.dataclass
class Config(ensemble.Config):
    """A run of REPLUG."""


@recipe("replug")
def run(config: Config, here: Run):
    """Retrieve for every stride of the test split, score, mix, report."""
    ensemble.check(config.ensemble)
    phases = runs.Phases()
    setting = documents.prepare(
        config, here, phases, tune_tokens=ensemble.tune_tokens(config)
    )
    if setting is None:
        return None
    runs.leave_to_first()
    with phases("index"):
        searcher = passage_search.load(
            setting.config, setting.passages, setting.text.tokenizer, here.workdir
        )
    return ensemble.evaluate(here, phases, setting, searcher, {}, {})
