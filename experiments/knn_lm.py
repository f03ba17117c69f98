"""kNN-LM: a datastore over the training tokens of a trained language model.

    python -m experiments.knn_lm --preset tiny --workdir runs/knn_lm

trains the plain language model first, unless ``--config.continue_from`` names the
workdir of one (``--config.train.steps`` then at its number of steps).
"""

import dataclasses

import numpy as np

from experiments import inspection, language_model, launch, presets, reporting, search
from rlm_jax.evaluate import knn
from rlm_jax.methods import knn_lm, lm


@dataclasses.dataclass
class TuneConfig:
    """The grid that is searched on the validation split."""

    tokens: int = 16384  # of the validation split, from its start
    ks: tuple[int, ...] = (16, 64, 256, 1024)
    temperatures: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0)
    weights: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)


@dataclasses.dataclass
class Config(language_model.Experiment):
    """A run of kNN-LM."""

    method: knn_lm.KnnLMConfig = dataclasses.field(default_factory=knn_lm.KnnLMConfig)
    datastore: search.DatastoreConfig = dataclasses.field(
        default_factory=search.DatastoreConfig
    )
    tune: TuneConfig = dataclasses.field(default_factory=TuneConfig)


def tiny() -> Config:
    """The embedded corpus on 2 CPU cores.

    Command: python -m experiments.knn_lm --preset tiny --workdir runs/knn_lm
    Corpus: stdlib, BPE of 4,096. Hardware: 2 CPU cores. Time: under 3 minutes.
    Figure: see the table that `make demo` prints and docs/results.md.
    """
    return Config(
        **presets.tiny(),
        method=knn_lm.KnnLMConfig(presets.tiny_decoder()),
        datastore=search.DatastoreConfig(max_tokens=2**17, k=64, exact_queries=512),
        tune=TuneConfig(tokens=4096, ks=(16, 64)),
    )


def wikitext2() -> Config:
    """WikiText-2 at word level, all training tokens in the datastore.

    Command: python -m experiments.knn_lm --preset wikitext2 --workdir runs/wt2_knn
      --config.data.corpus=text:FOLDER --config.continue_from=runs/wt2_lm
    Corpus: WikiText-2. Hardware: 2 CPU cores. Time: about 20 minutes after the language
    model's. Figure: docs/results.md.
    """
    return Config(
        **presets.wikitext2(),
        method=knn_lm.KnnLMConfig(presets.wikitext2_decoder()),
        datastore=search.DatastoreConfig(k=256, recompute=False),
        tune=TuneConfig(ks=(16, 64, 256)),
    )


def wikitext103() -> Config:
    """WikiText-103 with the hyper-parameters of the released scripts.

    Command: python -m experiments.knn_lm --preset wikitext103 --workdir runs/wt103_knn
      --config.data.corpus=text:FOLDER --config.continue_from=runs/wt103_lm
    Corpus: WikiText-103; 103 million keys of 1,024 in float16 are 211 GB. Hardware: 8
    accelerators and a host with the keys in memory. Figure: the paper's 16.06 on
    validation and 16.12 on test, k = 1024, t = 1, lambda = 0.25; not run here.
    """
    config = Config(
        **presets.wikitext103(),
        method=knn_lm.KnnLMConfig(presets.wikitext103_decoder()),
        datastore=search.DatastoreConfig(k=1024),
        tune=TuneConfig(ks=(1024,), temperatures=(1.0,), weights=(0.25,)),
    )
    config.evaluate.window, config.evaluate.stride = 3072, 512
    return config


PRESETS = {"tiny": tiny, "wikitext2": wikitext2, "wikitext103": wikitext103}


def execute(config: Config, run: launch.Run):
    """Train, build the datastore, tune on validation, evaluate on test, report."""
    launch.claim(run, config, same=(*language_model.SAME, "datastore"))
    phases = language_model.Phases()
    with phases("data"):
        text = language_model.load_text(config.data)
    config = language_model.with_vocabulary(config, text)
    method = knn_lm.knn_lm(config.method)
    if run.dry_run:
        return language_model.describe(method, config, text)
    with phases("train"):
        plain = lm.lm(lm.LMConfig(config.method.decoder))
        params = language_model.train(
            plain, config, text, run, steps=config.train.steps
        )
    launch.leave_to_first()
    with phases("datastore"):
        store = config.datastore
        keys = search.build(method, params, config, store, text, run)
    with phases("index"):
        searched = search.open_index(keys, store)
    return evaluate(config, run, phases, text, method, params, keys, searched)


def evaluate(config: Config, run, phases, text, method, params, keys, searched):
    """Tune on validation, evaluate on test with controls, report."""
    store, tuned = config.datastore, config.tune
    with phases("evaluate"):
        validation = language_model.score_split(
            method, params, config, text, "validation", limit=tuned.tokens
        )
        test = language_model.score_split(method, params, config, text, "test")
    with phases("search"):
        found, _ = search.look_up(validation, keys, searched, store)
        mixture = knn.tune(
            validation.stream.log_probs,
            found,
            validation.stream.targets,
            ks=[k for k in tuned.ks if k <= found.values.shape[1]],
            temperatures=tuned.temperatures,
            weights=tuned.weights,
        )
        found, ids = search.look_up(test, keys, searched, store)

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
            name: mixed(x) for name, x in search.by_control(found, ids, keys).items()
        }
        approximation = search.held_to_exact(test, keys, searched, store, mixed)
    return reporting.finish(
        run,
        config,
        text,
        test,
        log_probs,
        phases.seconds,
        protocol={
            **mixture._asdict(),
            "metric": store.metric,
            "datastore_entries": keys.num_entries,
            "approximation": approximation,
        },
        positions=inspection.of_datastore(
            text, test, log_probs, found, ids, mixture.temperature
        ),
    )


if __name__ == "__main__":
    launch.main("knn_lm", PRESETS, execute)
