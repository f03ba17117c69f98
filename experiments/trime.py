"""TRIME: a language model trained with the memory it is evaluated with.

python -m experiments.trime --preset tiny --workdir runs/trime
"""

import dataclasses
import functools

from experiments import (
    inspection,
    language_model,
    launch,
    presets,
    reporting,
    token_search,
)
from rlm_jax.evaluate import knn, token_memory
from rlm_jax.evaluate.perplexity import StreamScores
from rlm_jax.evaluate.token_memory import TokenMemory
from rlm_jax.methods import lm, trime
from rlm_jax.ops.memory import LogSums
from rlm_jax.train import checkpoint


@dataclasses.dataclass
class MemoryConfig:
    """The memory at evaluation; its temperature is tuned on the validation split."""

    size: int = 4096  # tokens of finished segments; 0: the local memory alone
    segment: int = 256  # tokens after which the memory moves on
    tune_tokens: int = 16384  # of the validation split, from its start
    temperatures: tuple[float, ...] = (0.8, 1.0, 1.15, 1.25, 1.4, 1.6, 2.0, 3.0)
    k: int = 0  # neighbours from a datastore of the training tokens; 0: no datastore
    interpolate: bool = False  # and mix in a kNN distribution, calibrated apart
    knn_temperatures: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    knn_weights: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4)


@dataclasses.dataclass
class Config(language_model.Experiment):
    """A run of TRIME: a cross-entropy warm-up, then training with a memory."""

    method: trime.TrimeConfig = dataclasses.field(default_factory=trime.TrimeConfig)
    warmup_steps: int = 0  # of plain cross-entropy, the first of train.steps
    memory: MemoryConfig = dataclasses.field(default_factory=MemoryConfig)
    datastore: token_search.DatastoreConfig = dataclasses.field(
        default_factory=lambda: token_search.DatastoreConfig(recompute=False)
    )


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


def execute(config: Config, run: launch.Run):
    """Warm up, train with the memory, tune on validation, evaluate on test, report."""
    phases = launch.Phases()
    with phases("data"):
        text = language_model.load_text(config.data)
    same = (*language_model.SAME, "warmup_steps")
    launch.claim(run, config, text.fingerprint, same=same)
    config = language_model.with_vocabulary(config, text)
    method = trime.trime(config.method)
    if run.dry_run:
        return language_model.describe(method, config, text)
    with phases("train"):
        params = _train(method, config, text, run)
    launch.leave_to_first()
    if not config.memory.k:
        return evaluate(config, run, phases, text, method, params, None)
    with phases("datastore"):
        keys = token_search.build(method, params, config, config.datastore, text, run)
    states = functools.partial(
        token_search.validation_states, method, params, config, text
    )
    with phases("index"):
        # Queries over sqrt(D): the inner products are then the memory's logits.
        searched = token_search.open_index(
            keys,
            config.datastore,
            k=config.memory.k,
            metric="ip",
            scale=keys.dim**-0.5,
            queries=states,
        )
    return evaluate(config, run, phases, text, method, params, searched)


def _train(method, config: Config, text, run: launch.Run):
    done = checkpoint.latest_step(run.workdir / "checkpoints")
    if done < config.warmup_steps and not config.continue_from:
        plain = lm.lm(lm.LMConfig(config.method.decoder))
        language_model.train(plain, config, text, run, steps=config.warmup_steps)
    return language_model.train(method, config, text, run, steps=config.train.steps)


def evaluate(config: Config, run, phases, text, method, params, searched):
    """Tune on validation, evaluate on test with controls, report."""
    with phases("evaluate"):
        validation = language_model.score_split(
            method, params, config, text, "validation", limit=config.memory.tune_tokens
        )
        test = language_model.score_split(method, params, config, text, "test")
    memory = TokenMemory(config.memory.size, config.memory.segment)
    if searched is None:
        with phases("controls"):
            memory = token_memory.tune_temperature(
                validation.stream, memory, config.memory.temperatures
            )
            log_probs = token_memory.log_probs_by_control(test.stream, memory)
        protocol = {}
    else:
        memory, log_probs, protocol = _with_datastore(
            config, phases, validation, test, memory, searched
        )
    positions = inspection.of_memory(text, test, log_probs, memory)
    return reporting.finish(
        run,
        config,
        text,
        test,
        log_probs,
        phases.seconds,
        protocol={
            "memory": config.method.memory,
            "memory_size": memory.size,
            "memory_temperature": memory.temperature,
            **protocol,
        },
        positions=positions,
    )


def _with_datastore(config: Config, phases, validation, test, memory, searched):
    """(tuned memory, log-probabilities by control, protocol) with a datastore too."""
    store = config.datastore
    with phases("search"):
        found, _ = token_search.look_up(validation, searched, store)
        memory, temperature = token_memory.tune_temperatures(
            validation.stream, memory, config.memory.temperatures, found
        )
        test_found, ids = token_search.look_up(test, searched, store)
    with phases("controls"):
        stream = test.stream
        neighbours = token_search.by_control(test_found, ids, searched.keys)
        log_probs = token_memory.log_probs_by_control(
            stream, memory, neighbours, external_temperature=temperature
        )
        past = token_memory.stream_log_sums(stream, memory)
        mixture = None
        if config.memory.interpolate:
            mixture = _calibrate(config, validation, memory, found, temperature)
            log_probs = {
                name: _interpolated(x, neighbours.get(name), stream.targets, mixture)
                for name, x in log_probs.items()
            }

        def joint(some: knn.NeighbourValues, count: int):
            first = StreamScores(*(x[:count] for x in stream))
            outside = token_memory.external_log_sums(
                some, first.targets, temperature=temperature
            )
            inside = LogSums(*(x[:count] for x in past))
            both = token_memory.joint_log_probs(first, inside, outside)
            return _interpolated(both, some, first.targets, mixture)

        protocol = {
            "k": searched.k,
            "external_temperature": temperature,
            "datastore_entries": searched.keys.num_entries,
            "approximation": token_search.held_to_exact(test, searched, store, joint),
            "interpolation": mixture and mixture._asdict(),
        }
    return memory, log_probs, protocol


def _calibrate(config: Config, validation, memory, found, temperature) -> knn.Mixture:
    """The separate kNN distribution that suits validation best."""
    inside = token_memory.stream_log_sums(validation.stream, memory)
    outside = token_memory.external_log_sums(
        found, validation.stream.targets, temperature=temperature
    )
    return knn.tune(
        token_memory.joint_log_probs(validation.stream, inside, outside),
        found,
        validation.stream.targets,
        ks=(found.values.shape[1],),
        temperatures=config.memory.knn_temperatures,
        weights=config.memory.knn_weights,
    )


def _interpolated(log_probs, neighbours, targets, mixture: knn.Mixture | None):
    if neighbours is None or mixture is None:  # the control without retrieval
        return log_probs
    outside = knn.knn_log_probs(
        neighbours, targets, k=mixture.k, temperature=mixture.temperature
    )
    return knn.mix(log_probs, outside, mixture.weight)


if __name__ == "__main__":
    launch.main("trime", PRESETS, execute)
