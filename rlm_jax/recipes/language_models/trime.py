"""TRIME: a language model trained with the memory it is evaluated with."""

import dataclasses
from typing import ClassVar

from rlm_jax.data.texts import Order
from rlm_jax.evaluate import knn, token_memory
from rlm_jax.evaluate.perplexity import StreamScores
from rlm_jax.evaluate.token_memory import TokenMemory
from rlm_jax.evaluate.token_search import by_control
from rlm_jax.methods import lm, trime
from rlm_jax.ops.memory import LogSums
from rlm_jax.recipes import base_lm, inspection, language_model, reporting, runs
from rlm_jax.recipes.language_models import token_search
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.train import checkpoint


@dataclasses.dataclass
class MemoryConfig:
    """The memory at evaluation; its temperature is tuned on the validation split."""

    MAY_BE_ZERO: ClassVar = ("k",)

    size: int = 4096  # tokens of finished segments; 0: the local memory alone
    segment: int = 256  # tokens after which the memory moves on
    tune_tokens: int = 16384  # of the validation split, from its start
    # of the memory; the best on validation is taken
    temperatures: tuple[float, ...] = (0.8, 1.0, 1.15, 1.25, 1.4, 1.6, 2.0, 3.0)
    k: int = 0  # neighbours from a datastore of the training tokens; 0: no datastore
    interpolate: bool = False  # and mix in a kNN distribution, calibrated apart
    # of the separate kNN distribution
    knn_temperatures: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    knn_weights: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4)  # its lambda


@dataclasses.dataclass
class Config(language_model.Experiment):
    """A run of TRIME: a cross-entropy warm-up, then training with a memory."""

    method: trime.TrimeConfig = dataclasses.field(default_factory=trime.TrimeConfig)
    warmup_steps: int = 0  # of plain cross-entropy, the first of train.steps
    warmup_order: Order = "shuffled"  # of its batches, as data.order is of the others
    memory: MemoryConfig = dataclasses.field(default_factory=MemoryConfig)
    datastore: token_search.DatastoreConfig = dataclasses.field(
        default_factory=lambda: token_search.DatastoreConfig(recompute=False)
    )


@recipe("trime")
def run(config: Config, here: Run):
    """Warm up, train with the memory, tune on validation, evaluate on test, report."""
    phases = runs.Phases()
    with phases("data"):
        start = base_lm.start(config, here, None, config.continue_from)
        language_model.check_split(start.text, "validation", start.config.data.corpus)
    text = start.text
    same = (*language_model.SAME, "warmup_steps", "warmup_order")
    config = start.claim(here, same=same)
    method = trime.trime(config.method)
    if here.dry_run:
        return language_model.describe(method, config, text)
    with phases("train"):
        params = _train(method, config, text, here)
    runs.leave_to_first()
    base_lm.publish(here, config.method.decoder, params, text.tokenizer)
    if not config.memory.k:
        return evaluate(config, here, phases, text, method, params, None)
    # Queries over sqrt(D): the inner products are then the memory's logits.
    searched = token_search.build_and_open(
        method, params, config, config.datastore, text, here, phases,
        k=config.memory.k, metric="ip", scale=lambda width: width**-0.5,
    )  # fmt: skip
    return evaluate(config, here, phases, text, method, params, searched)


def _train(method, config: Config, text, run: runs.Run):
    done = checkpoint.latest_step(run.workdir / "checkpoints")
    if done < config.warmup_steps and not config.continue_from:
        plain = lm.lm(lm.LMConfig(config.method.decoder))
        data = dataclasses.replace(config.data, order=config.warmup_order)
        warmup = dataclasses.replace(config, data=data)
        language_model.train(plain, warmup, text, run, steps=config.warmup_steps)
    return language_model.train(method, config, text, run, steps=config.train.steps)


def evaluate(config: Config, run, phases, text, method, params, searched):
    """Tune on validation, evaluate on test with controls, report."""
    with phases("evaluate"):
        validation = language_model.score_split(
            method, params, config, text, "validation", limit=config.memory.tune_tokens
        )
        test = language_model.score_split(method, params, config, text, "test")
    size = language_model.memory_size("memory.size", config.memory.size, test)
    memory = TokenMemory(size, config.memory.segment)
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
    language_model.note_grid_end(
        "memory.temperatures", memory.temperature, config.memory.temperatures
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
        neighbours = by_control(test_found, ids, searched.keys)
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

        approximation = token_search.compared_with_exact(test, searched, store, joint)
        protocol = {
            "k": searched.k,
            "external_temperature": temperature,
            "datastore_entries": searched.keys.num_entries,
            "approximation": approximation,
            "interpolation": mixture and mixture._asdict(),
        }
    return memory, log_probs, protocol


def _calibrate(config: Config, validation, memory, found, temperature) -> knn.Mixture:
    """The separate kNN distribution that suits validation best."""
    inside = token_memory.stream_log_sums(validation.stream, memory)
    outside = token_memory.external_log_sums(
        found, validation.stream.targets, temperature=temperature
    )
    temperatures, weights = config.memory.knn_temperatures, config.memory.knn_weights
    chosen = knn.tune(
        token_memory.joint_log_probs(validation.stream, inside, outside),
        found,
        validation.stream.targets,
        ks=(found.values.shape[1],),
        temperatures=temperatures,
        weights=weights,
    )
    note = language_model.note_grid_end
    note("memory.knn_temperatures", chosen.temperature, temperatures)
    note("memory.knn_weights", chosen.weight, weights)
    return chosen


def _interpolated(log_probs, neighbours, targets, mixture: knn.Mixture | None):
    if neighbours is None or mixture is None:  # the control without retrieval
        return log_probs
    outside = knn.knn_log_probs(
        neighbours, targets, k=mixture.k, temperature=mixture.temperature
    )
    return knn.mix(log_probs, outside, mixture.weight)
