"""kNN-LM: a datastore over the training tokens of a trained language model.

The plain language model is trained first, unless ``params_from`` names a run or a
Hugging Face folder whose decoder is taken as it is.
"""

import dataclasses

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.evaluate import knn
from rlm_jax.evaluate.token_search import by_control
from rlm_jax.methods import knn_lm
from rlm_jax.recipes import base_lm, inspection, language_model, reporting, runs
from rlm_jax.recipes.language_models import token_search
from rlm_jax.recipes.runs import Run, recipe


@dataclasses.dataclass
class TuneConfig:
    """The grid that is searched on the validation split.

    Without it the method's own k, temperature and weight are used.
    """

    tokens: int = 16384  # of the validation split, from its start; 0: no search
    ks: tuple[int, ...] = (16, 64, 256, 1024)  # neighbours
    # that similarities are divided by
    temperatures: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0)
    # lambda, of the neighbours' distribution
    weights: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)

    def check(self) -> None:
        """Raises UserError for an empty grid."""
        if self.tokens and not (self.ks and self.temperatures and self.weights):
            raise UserError(
                "A grid to tune on is empty; give tune.ks, tune.temperatures and "
                "tune.weights a value each, or tune.tokens=0."
            )


@dataclasses.dataclass
class Config(language_model.Experiment):
    """A run of kNN-LM."""

    method: knn_lm.KnnLMConfig = dataclasses.field(default_factory=knn_lm.KnnLMConfig)
    datastore: token_search.DatastoreConfig = dataclasses.field(
        default_factory=token_search.DatastoreConfig
    )
    tune: TuneConfig = dataclasses.field(default_factory=TuneConfig)
    # Workdir or Hugging Face folder whose decoder is used as it is; nothing is trained.
    params_from: str = ""


@recipe("knn_lm")
def run(config: Config, here: Run):
    """Train, build the datastore, tune on validation, evaluate on test, report."""
    phases = runs.Phases()
    with phases("data"):
        start = base_lm.start_plain(config, here)
        if config.tune.tokens:
            corpus = start.config.data.corpus
            language_model.check_split(start.text, "validation", corpus)
    text = start.text
    same = (*language_model.SAME, "datastore", "params_from")
    config = start.claim(here, same=same)
    method = knn_lm.knn_lm(config.method)
    if here.dry_run:
        return language_model.describe(method, config, text)
    with phases("train"):
        params = base_lm.trained_or_given(start, config, here)
    searched = token_search.build_and_open(
        method, params, config, config.datastore, text, here, phases,
        k=config.method.k, metric=config.method.metric,
    )  # fmt: skip
    return evaluate(config, here, phases, text, method, params, searched)


def evaluate(config: Config, run, phases, text, method, params, searched):
    """Tune on validation, evaluate on test with controls, report."""
    store = config.datastore
    mixture = knn.Mixture(searched.k, config.method.temperature, config.method.weight)
    if config.tune.tokens:
        with phases("tune"):
            mixture = _tuned(config, text, method, params, searched)
    with phases("evaluate"):
        test = language_model.score_split(method, params, config, text, "test")
    with phases("search"):
        found, ids = token_search.look_up(test, searched, store)

    def mixed(neighbours: knn.NeighbourValues, count: int | None = None) -> np.ndarray:
        knn_log_probs = knn.knn_log_probs(
            neighbours,
            test.stream.targets[:count],
            k=mixture.k,
            temperature=mixture.temperature,
        )
        return knn.mix(test.stream.log_probs[:count], knn_log_probs, mixture.weight)

    with phases("controls"):
        log_probs = {"off": test.stream.log_probs} | {
            name: mixed(x) for name, x in by_control(found, ids, searched.keys).items()
        }
        approximation = token_search.compared_with_exact(test, searched, store, mixed)
    return reporting.finish(
        run,
        config,
        text,
        test,
        log_probs,
        phases.seconds,
        protocol={
            **mixture._asdict(),
            "metric": searched.metric,
            "datastore_entries": searched.keys.num_entries,
            "approximation": approximation,
        },
        positions=inspection.of_datastore(text, test, log_probs, found, ids, mixture),
    )


def _tuned(config: Config, text, method, params, searched) -> knn.Mixture:
    tuned = config.tune
    validation = language_model.score_split(
        method, params, config, text, "validation", limit=tuned.tokens
    )
    found, _ = token_search.look_up(validation, searched, config.datastore)
    ks = [k for k in tuned.ks if k <= searched.k] or [searched.k]
    chosen = knn.tune(
        validation.stream.log_probs,
        found,
        validation.stream.targets,
        ks=ks,
        temperatures=tuned.temperatures,
        weights=tuned.weights,
    )
    grids = {"ks": ks, "temperatures": tuned.temperatures, "weights": tuned.weights}
    for (name, grid), value in zip(grids.items(), chosen, strict=True):
        language_model.note_grid_end(f"tune.{name}", value, grid)
    return chosen
