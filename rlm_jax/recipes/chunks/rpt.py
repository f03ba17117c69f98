"""RPT: a language model that learns what to retrieve from its own document.

BM25 finds candidates among a document's earlier chunks, a reference language model
scores them once, and every chunk has its targets for good. Then decoder and retriever
are trained together. With ``method.neighbours`` "given" the same decoder reads what
BM25 finds and learns no retriever: the paper's RETRO. A ``baseline`` is read in the
same windows. Where there is a ``prompt``, it is continued in place of the evaluation.
"""

import dataclasses
from typing import Any

import jax

from rlm_jax import processes, terminal
from rlm_jax.data.texts import Text
from rlm_jax.errors import UserError
from rlm_jax.method import Method, Params
from rlm_jax.methods import retro, rpt
from rlm_jax.recipes import base_lm, runs
from rlm_jax.recipes.base_lm import BaseLM, Decoding
from rlm_jax.recipes.chunks import rpt_evaluation, rpt_generation, rpt_targets
from rlm_jax.recipes.chunks.rpt_config import Config, check
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.retrievers.chunk_targets import Targets
from rlm_jax.train import dry_run, fit

SAME = (
    *("data", "documents.shortest", "method", "optim", "init_from", "warm_start"),
    *("targets.kind", "targets.num", "targets.every", *runs.DRAWS),
)


@recipe("rpt")
def run(config: Config, here: Run):
    """Score candidates, train, read the test documents with controls, report."""
    check(config)
    prompt = rpt_generation.prompt_of(config)
    phases = runs.Phases()
    with phases("data"):
        given, reference = _models(config)
        start = base_lm.start(
            config, here, _tokens_of(given, reference), config.init_from
        )
        text = start.text
        if reference is not None:
            rpt_targets.check_reference(reference, text)
    # What is continued is no part of what a workdir belongs to.
    as_evaluated = dataclasses.replace(
        start.config, prompt="", prompt_file="", new_tokens=0, temperature=0.0
    )
    claimed = start._replace(config=as_evaluated).claim(
        here, same=SAME, unused=("baseline", "evaluate", "documents") if prompt else ()
    )
    config = dataclasses.replace(config, data=claimed.data, method=claimed.method)
    method = rpt.rpt(config.method)
    if config.warm_start:
        rpt.check_warm_start(config.method)
    baseline = _baseline(config, text) if config.baseline and not prompt else None
    splits = rpt_targets.unscored(config, text)
    for name in (rpt_targets.TRAIN, "validation"):  # enough of them, before the scoring
        rpt_targets.batches(config, splits[name])
    if here.dry_run:
        return _describe(method, config, splits)
    with phases("targets"):
        tables, facts = rpt_targets.tables(
            config, splits, text, reference, here.workdir
        )
    with phases("train"):
        params = _train(method, config, tables, given, here)
    runs.leave_to_first()
    if prompt:
        return rpt_generation.continue_text(config, text, prompt, params)
    return rpt_evaluation.evaluate(
        config, here, phases, text, tables, facts, params, baseline
    )


def _models(config: Config) -> tuple[BaseLM | None, BaseLM | None]:
    """(the decoder that the run begins with, the reference)."""
    decoder, given, reference = config.method.decoder, None, None
    if config.init_from:
        given = base_lm.to_start_from(config.init_from, config.data, decoder)
        assert given.decoding is not None
        taken = dataclasses.replace(
            given.decoding.config, attention_window=decoder.attention_window
        )
        given = given._replace(decoding=Decoding(taken, given.decoding.params))
    if config.targets.reference:
        reference = base_lm.load(config.targets.reference, config.data)
    return given, reference


def _tokens_of(given: BaseLM | None, reference: BaseLM | None) -> BaseLM | None:
    """Whose tokens the text is in; of a reference the decoder is not taken."""
    if given is not None or reference is None:
        return given
    return reference._replace(decoding=None)


def _baseline(config: Config, text: Text) -> Decoding:
    plain = base_lm.load(config.baseline, config.data)
    if (
        plain.decoding is None
        or plain.tokenizer.fingerprint != text.tokenizer.fingerprint
    ):
        raise UserError(
            f"The baseline {config.baseline} is no decoder over the same tokens; name "
            "a run of experiments.lm with this run's tokenizer."
        )
    return plain.decoding


def _describe(method: Method, config: Config, tables: dict[str, Targets]) -> None:
    if not processes.is_first():
        return
    for name, (given, _, _) in tables.items():
        tokens = int((given.stops - given.starts).sum())
        terminal.say(
            f"{name}: {len(given):,} documents, {tokens:,} tokens, "
            f"{given.num_chunks:,} chunks of {given.chunk_length}"
        )
    dry_run.describe(
        method, rpt_targets.batches(config, tables[rpt_targets.TRAIN]), config
    )


def _train(
    method: Method,
    config: Config,
    tables: dict[str, Targets],
    given: BaseLM | None,
    run: Run,
) -> Params:
    """Train to ``train.steps``, resuming from the workdir; the parameters."""
    initial: Any = None
    if given is not None and given.decoding is not None:
        init = jax.jit(method.init)(jax.random.key(config.train.seed))
        initial = retro.around(given.decoding.params, jax.device_get(init))
        if config.warm_start:
            initial = rpt.warm_started(config.method, initial)
    size, count = config.data.batch_size, config.evaluate.validation_batches
    train, validation = (
        rpt_targets.batches(config, tables[name])
        for name in (rpt_targets.TRAIN, "validation")
    )
    return fit.train(
        method,
        fit.from_batches(train, size, config.train),
        config.optim,
        config.train,
        run.workdir,
        initial_params=initial,
        validation=fit.validation_of(method, validation, size, count),
    )
