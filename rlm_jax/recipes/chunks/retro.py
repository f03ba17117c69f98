"""RETRO: a language model trained against a frozen retriever.

The training text, cut into chunks, is encoded and searched once; every chunk then has
its neighbours for good. A run from scratch trains everything. With ``init_from`` and
``method.trained`` "retrieval", a trained decoder is taught to read neighbours
(RETRO-fitting); with ``warm_start`` what reads them begins as copies of its layers. A
``baseline`` is scored on the same chunks. Where a ``prompt`` is given, it is continued
in place of the evaluation.
"""

import dataclasses

import jax
import numpy as np

from rlm_jax import processes, terminal
from rlm_jax.data import texts
from rlm_jax.data.texts import Text
from rlm_jax.errors import UserError
from rlm_jax.method import Method, Params
from rlm_jax.methods import retro
from rlm_jax.models.decoder import check_length
from rlm_jax.recipes import base_lm, language_model, runs
from rlm_jax.recipes.base_lm import BaseLM, Decoding
from rlm_jax.recipes.chunks import retro_data, retro_evaluation
from rlm_jax.recipes.chunks.config import Config, check
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.retrievers.chunk_search import Database
from rlm_jax.train import dry_run, fit

SAME = (
    *("data", "method", "database", "optim", "init_from", "warm_start"),
    *runs.DRAWS,
)


@recipe("retro")
def run(config: Config, here: Run):
    """Find neighbours, train, score the test split with its controls, report."""
    check(config)
    phases = runs.Phases()
    given = None
    with phases("data"):
        if config.init_from:
            given = base_lm.to_start_from(
                config.init_from, config.data, config.method.decoder
            )
        start = base_lm.start(config, here, given, config.init_from)
        text = start.text
    # What is continued is no part of what a workdir belongs to.
    as_evaluated = dataclasses.replace(
        start.config, prompt="", new_tokens=0, temperature=0.0, retrieve=True
    )
    claimed = start._replace(config=as_evaluated).claim(
        here, same=SAME, unused=("baseline", "ks", "evaluate") if config.prompt else ()
    )
    config = dataclasses.replace(config, data=claimed.data, method=claimed.method)
    method = retro.retro(config.method)
    if config.warm_start:
        retro.check_warm_start(config.method)
    baseline = None
    if config.baseline and not config.prompt:
        baseline = _baseline(config, text)
    _check_text(config, text)
    if here.dry_run:
        return _describe(method, config, text)
    database = retro_data.prepare(config, here, text, phases)
    with phases("train"):
        params = _train(method, config, text, database, given, here)
    runs.leave_to_first()
    if config.prompt:
        return retro_evaluation.continue_prompt(config, text, database, params)
    return retro_evaluation.evaluate(
        config, here, phases, text, database, method, params, baseline
    )


def _baseline(config: Config, text: Text) -> Decoding:
    stored = runs.configuration_of(config.baseline, text.fingerprint)
    if stored["system"] not in ("lm", "knn_lm"):
        raise UserError(
            f"The run in {config.baseline} is of {stored['system']}; name one of "
            "experiments.lm as the baseline."
        )
    dtype = config.method.decoder.dtype
    plain = base_lm.load(config.baseline, config.data, dtype=dtype).decoding
    assert plain is not None
    return plain


def _check_text(config: Config, text: Text) -> None:
    """Raises UserError for a text that the training would refuse, before the search."""
    data, decoder = config.data, config.method.decoder
    window = config.evaluate.window
    check_length(decoder, data.length, "data.length")
    check_length(decoder, window, "evaluate.window")
    language_model.note_untrained(data.length, window, "windows at evaluation")
    for name in ("train", "validation"):
        texts.batches(data, text.store.split(name))


def _describe(method: Method, config: Config, text: Text) -> None:
    if not processes.is_first():
        return
    m = config.method.chunk_length
    for name, split in text.store.splits.items():
        num = len(split.tokens)
        terminal.say(f"{name}: {num:,} tokens, {-(-num // m):,} chunks of {m}")
    chunks = retro_data.stream(text.store.split("train"), m)
    none = np.broadcast_to(np.int32(-1), (len(chunks), config.method.k))
    batches = retro_data.batches(config, text, "train", chunks, none)
    dry_run.describe(method, batches, config)


def _train(
    method: Method,
    config: Config,
    text: Text,
    database: Database,
    given: BaseLM | None,
    run: runs.Run,
) -> Params:
    """Train to ``train.steps``, resuming from the workdir; the parameters."""
    of_split = {
        name: retro_data.batches(
            config, text, name, database.chunks, database.neighbours[name].ids
        )
        for name in ("train", "validation")
    }
    initial = None
    if given is not None and given.decoding is not None:
        init = jax.jit(method.init)(jax.random.key(config.train.seed))
        initial = retro.around(given.decoding.params, jax.device_get(init))
        if config.warm_start:
            initial = retro.warm_started(config.method, initial)
    size, count = config.data.batch_size, config.evaluate.validation_batches
    return fit.train(
        method,
        fit.from_batches(of_split["train"], size, config.train),
        config.optim,
        config.train,
        run.workdir,
        initial_params=initial,
        validation=fit.validation_of(method, of_split["validation"], size, count),
        trainable=retro.TRAINED[config.method.trained],
    )
