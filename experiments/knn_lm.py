"""kNN-LM: a datastore over the training tokens of a trained language model.

    python -m experiments.knn_lm --preset tiny --workdir runs/knn_lm

trains the plain language model first, unless ``--config.params_from`` names the workdir
of a run whose decoder is taken as it is (of any launcher here, and of any size).
"""

import dataclasses
import functools

import numpy as np

from experiments import (
    inspection,
    language_model,
    launch,
    presets,
    reporting,
    token_search,
)
from rlm_jax.evaluate import knn
from rlm_jax.methods import knn_lm, lm
from rlm_jax.models.decoder import DecoderConfig
from rlm_jax.train import checkpoint


@dataclasses.dataclass
class TuneConfig:
    """The grid that is searched on the validation split.

    Without it the method's own k, temperature and weight are used.
    """

    tokens: int = 16384  # of the validation split, from its start; 0: no search
    ks: tuple[int, ...] = (16, 64, 256, 1024)
    temperatures: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0)
    weights: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)


@dataclasses.dataclass
class Config(language_model.Experiment):
    """A run of kNN-LM."""

    method: knn_lm.KnnLMConfig = dataclasses.field(default_factory=knn_lm.KnnLMConfig)
    datastore: token_search.DatastoreConfig = dataclasses.field(
        default_factory=token_search.DatastoreConfig
    )
    tune: TuneConfig = dataclasses.field(default_factory=TuneConfig)
    params_from: str = ""  # workdir whose decoder is used; nothing is trained


def tiny() -> Config:
    """The embedded corpus on 2 CPU cores.

    Command: python -m experiments.knn_lm --preset tiny --workdir runs/knn_lm
    Corpus: stdlib, BPE of 4,096. Hardware: 2 CPU cores. Time: under 3 minutes.
    Figure: see the table that `make demo` prints and docs/results.md.
    """
    return Config(
        **presets.tiny(),
        method=knn_lm.KnnLMConfig(presets.tiny_decoder(), k=64),
        datastore=token_search.DatastoreConfig(max_tokens=2**17, exact_queries=512),
        tune=TuneConfig(tokens=4096, ks=(16, 64)),
    )


def wikitext2() -> Config:
    """WikiText-2 at word level, all training tokens in the datastore.

    Command: python -m experiments.knn_lm --preset wikitext2 --workdir runs/wt2_knn
      --config.data.corpus=text:FOLDER --config.params_from=runs/wt2_lm
    Corpus: WikiText-2. Hardware: 2 CPU cores. Time: about 20 minutes after the language
    model's. Figure: docs/results.md.
    """
    return Config(
        **presets.wikitext2(),
        method=knn_lm.KnnLMConfig(presets.wikitext2_decoder(), k=256),
        datastore=token_search.DatastoreConfig(recompute=False),
        tune=TuneConfig(
            tokens=65536,
            ks=(64, 256),
            temperatures=(5.0, 10.0, 15.0, 20.0, 30.0),
            weights=(0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
        ),
    )


def wikitext103() -> Config:
    """WikiText-103 with the hyper-parameters of the released scripts.

    Command: python -m experiments.knn_lm --preset wikitext103 --workdir runs/wt103_knn
      --config.data.corpus=text:FOLDER --config.params_from=runs/wt103_lm
    Corpus: WikiText-103; 103 million keys of 1,024 in float16 are 211 GB. Hardware: 8
    accelerators and a host with the keys in memory. Figure: the paper's 16.06 on
    validation and 16.12 on test, k = 1024, t = 1, lambda = 0.25; not run here.
    """
    return Config(
        **presets.wikitext103(),
        method=knn_lm.KnnLMConfig(presets.wikitext103_decoder()),
        tune=TuneConfig(tokens=0),
    )


PRESETS = {"tiny": tiny, "wikitext2": wikitext2, "wikitext103": wikitext103}


def execute(config: Config, run: launch.Run):
    """Train, build the datastore, tune on validation, evaluate on test, report."""
    phases = launch.Phases()
    with phases("data"):
        text = language_model.load_text(config.data)
    if config.params_from:
        config = with_decoder_of(config, config.params_from, text)
    same = (*language_model.SAME, "datastore", "params_from")
    launch.claim(run, config, text.fingerprint, same=same)
    config = language_model.with_vocabulary(config, text)
    method = knn_lm.knn_lm(config.method)
    if run.dry_run:
        return language_model.describe(method, config, text)
    with phases("train"):
        params = _parameters(config, text, run)
    launch.leave_to_first()
    with phases("datastore"):
        keys = token_search.build(method, params, config, config.datastore, text, run)
    states = functools.partial(
        token_search.validation_states, method, params, config, text
    )
    with phases("index"):
        searched = token_search.open_index(
            keys,
            config.datastore,
            k=config.method.k,
            metric=config.method.metric,
            queries=states,
        )
    return evaluate(config, run, phases, text, method, params, searched)


def with_decoder_of(config: Config, workdir: str, text) -> Config:
    """The configuration with the decoder of another run."""
    stored = launch.configuration(workdir, text.fingerprint)
    return dataclasses.replace(
        config,
        method=dataclasses.replace(
            config.method, decoder=DecoderConfig(**stored["method"]["decoder"])
        ),
    )


def _parameters(config: Config, text, run: launch.Run):
    plain = lm.lm(lm.LMConfig(config.method.decoder))
    if not config.params_from:
        return language_model.train(plain, config, text, run, steps=config.train.steps)
    return checkpoint.load_params(config.params_from)


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
            name: mixed(x)
            for name, x in token_search.by_control(found, ids, searched.keys).items()
        }
        approximation = token_search.held_to_exact(test, searched, store, mixed)
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
    return knn.tune(
        validation.stream.log_probs,
        found,
        validation.stream.targets,
        ks=[k for k in tuned.ks if k <= searched.k] or [searched.k],
        temperatures=tuned.temperatures,
        weights=tuned.weights,
    )


if __name__ == "__main__":
    launch.main("knn_lm", PRESETS, execute)
