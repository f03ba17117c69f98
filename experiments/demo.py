"""The demonstration: plain language models, kNN-LM and TRIME, on equal terms.

    python -m experiments.demo --workdir runs/demo

One cross-entropy warm-up is shared. The plain model and TRIME go on from it for equally
many steps of equally many tokens, and so does a plain model whose segments and windows
are as long as all that TRIME's memory sees. A continuous cache (as large as that
memory) and kNN-LM take the plain model. What was interrupted goes on when it is started
again; what is finished is not done twice.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments import knn_lm as knn_lm_presets
from experiments import launch, presets
from experiments import trime as trime_presets
from rlm_jax import terminal
from rlm_jax.methods.knn_lm import KnnLMConfig
from rlm_jax.methods.lm import LMConfig
from rlm_jax.methods.lm import lm as build_lm
from rlm_jax.methods.trime import TrimeConfig
from rlm_jax.models.decoder import DecoderConfig
from rlm_jax.recipes import language_model, runs
from rlm_jax.recipes.language_models import (
    continuous_cache,
    knn_lm,
    lm,
    token_search,
    trime,
)
from rlm_jax.recipes.runs import Recipe, Run, recipe
from rlm_jax.report import plots, report, tables
from rlm_jax.train import checkpoint, metrics

NAMES = {
    "lm": "plain LM",
    "lm_long": "plain LM, equal context",
    "cache": "continuous cache",
    "knn_lm": "kNN-LM",
    "trime": "TRIME",
}


@dataclasses.dataclass
class Config(language_model.Experiment):
    """All runs of the demonstration; what they share stands here once."""

    decoder: DecoderConfig = dataclasses.field(default_factory=presets.tiny_decoder)
    warmup_steps: int = 250  # the first of train.steps, shared
    neighbours: KnnLMConfig = dataclasses.field(
        default_factory=lambda: knn_lm_presets.tiny().method
    )
    datastore: token_search.DatastoreConfig = dataclasses.field(
        default_factory=lambda: knn_lm_presets.tiny().datastore
    )
    tune: knn_lm.TuneConfig = dataclasses.field(
        default_factory=lambda: knn_lm_presets.tiny().tune
    )
    memory: trime.MemoryConfig = dataclasses.field(
        default_factory=lambda: trime_presets.tiny().memory
    )


def tiny() -> Config:
    """The embedded corpus on 2 CPU cores.

    Command: python -m experiments.demo --workdir runs/demo
    Corpus: stdlib, BPE of 4,096. Hardware: 2 CPU cores. Time: about 10 minutes.
    Figure: see the table it prints.
    """
    config = Config(**presets.tiny())
    config.train.eval_every = 50
    return config


PRESETS = {"tiny": tiny}

RUNS = 1 + len(NAMES)


@recipe("demo")
def run(config: Config, here: Run):
    """Run everything that is not finished yet, and compare."""
    data = language_model.inherited(config.data, "")
    config = dataclasses.replace(config, data=data)
    text = language_model.load_text(config.data)
    same = tuple(f.name for f in dataclasses.fields(config))
    runs.claim(here, config, text.fingerprint, same=same)
    warmup = _warm_up(config, text, here)
    if here.dry_run:
        return None
    reports = {}
    for number, (name, (system, its)) in enumerate(
        systems(config, here.workdir).items(), 2
    ):
        there = here._replace(system=system.system, workdir=here.workdir / name)
        terminal.say(f"\n── {number} of {RUNS}: {NAMES[name]} → {there.workdir}")
        reports[name] = runs.finished(there, its, text.fingerprint) or system(
            its, there.workdir, preset=here.preset
        )
    return _compare(config, here, warmup, reports)


def _shared(config: Config) -> dict[str, Any]:
    """What all runs have in common: text, optimiser, budget, protocol."""
    fields = ("data", "optim", "train", "evaluate")
    return {name: getattr(config, name) for name in fields}


def _warm_up(config: Config, text: language_model.Text, run: Run) -> Run:
    """The shared first steps, in a workdir of their own."""
    there = run._replace(system="lm", workdir=run.workdir / "warmup")
    terminal.say(
        f"\n── 1 of {RUNS}: cross-entropy warm-up, {config.warmup_steps} of "
        f"{config.train.steps} steps → {there.workdir}"
    )
    warmup = lm.Config(**_shared(config), method=LMConfig(config.decoder))
    runs.claim(there, warmup, text.fingerprint, same=language_model.SAME)
    warmup = language_model.with_vocabulary(warmup, text)
    method = build_lm(warmup.method)
    if run.dry_run:
        language_model.describe(method, warmup, text)
    elif checkpoint.latest_step(there.workdir / "checkpoints") < config.warmup_steps:
        language_model.train(method, warmup, text, there, steps=config.warmup_steps)
    return there


def systems(config: Config, workdir: pathlib.Path) -> dict[str, tuple[Recipe, Any]]:
    """System -> (recipe, its configuration), in the order in which they run."""
    warmup, its = str(workdir / "warmup"), config.memory
    plain = lm.Config(
        **_shared(config), method=LMConfig(config.decoder), continue_from=warmup
    )
    cache = continuous_cache.Config(
        **_shared(config),
        method=LMConfig(config.decoder),
        cache=continuous_cache.CacheConfig(its.size, its.segment, its.tune_tokens),
        params_from=str(workdir / "lm"),
    )
    neighbours = knn_lm.Config(
        **_shared(config),
        method=dataclasses.replace(config.neighbours, decoder=config.decoder),
        params_from=str(workdir / "lm"),
        datastore=config.datastore,
        tune=config.tune,
    )
    memory = trime.Config(
        **_shared(config),
        method=TrimeConfig(config.decoder, memory="long"),
        continue_from=warmup,
        warmup_steps=config.warmup_steps,
        memory=config.memory,
    )
    memory.data = dataclasses.replace(config.data, order="consecutive")
    return {
        "lm": (lm.run, plain),
        "lm_long": (lm.run, _of_equal_context(config, plain)),
        "cache": (continuous_cache.run, cache),
        "knn_lm": (knn_lm.run, neighbours),
        "trime": (trime.run, memory),
    }


def _of_equal_context(config: Config, plain: lm.Config) -> lm.Config:
    """The plain model with what TRIME sees as context: its memory and its segment.

    Steps of about as many tokens, and equally many tokens in all.
    """
    length = config.memory.size + config.memory.segment
    step = plain.data.batch_size * plain.data.length
    rows = max(1, step // length)
    more = round((config.train.steps - config.warmup_steps) * step / (rows * length))
    scored = plain.evaluate.batch_size * plain.evaluate.window
    return dataclasses.replace(
        plain,
        data=dataclasses.replace(plain.data, length=length, batch_size=rows),
        train=dataclasses.replace(plain.train, steps=config.warmup_steps + more),
        evaluate=dataclasses.replace(
            plain.evaluate,
            window=length,
            stride=config.memory.segment,
            batch_size=max(1, scored // length),
        ),
    )


def _compare(
    config: Config,
    run: Run,
    warmup: Run,
    reports: Mapping[str, report.Report],
) -> Mapping[str, report.Report]:
    """One table and the plots that need several runs; `summary.json` keeps it all."""
    rows = [
        tables.row_of_text(made)._replace(system=NAMES[name])
        for name, made in reports.items()
    ]
    report.write(run.workdir / "summary.json", dict(reports))
    folder = run.workdir / "plots"
    folder.mkdir(exist_ok=True)
    curves = {"warm-up": metrics.read(warmup.workdir)}
    for name in ("lm", "lm_long", "trime"):
        curves[NAMES[name]] = metrics.read(run.workdir / name)
    plots.training_curves(
        folder / "training.png", curves, title="A shared warm-up, then equal budgets"
    )
    plots.control_bars(folder / "controls.png", rows)
    tokens = config.train.steps * config.data.batch_size * config.data.length
    title = (
        f"\nEach trained on {tokens:,} tokens of {config.data.corpus} "
        f"(the first {config.warmup_steps} of {config.train.steps} steps shared), "
        "scored on its test split"
    )
    terminal.say(tables.terminal(rows, title=title))
    terminal.say("What to look at:")
    for path, what in (
        ("plots/training.png", "the training of all runs"),
        ("plots/controls.png", "perplexity by system and control"),
        ("trime/plots/gains_text.png", "where TRIME's memory helped, token by token"),
        ("trime/neighbours.html", "what TRIME's memory answered"),
        ("cache/neighbours.html", "what the continuous cache answered"),
        ("knn_lm/neighbours.html", "what kNN-LM's datastore answered"),
        ("summary.json", "all figures, with versions and device"),
    ):
        terminal.say(f"  {run.workdir / path!s:<{len(str(run.workdir)) + 28}} {what}")
    return reports


if __name__ == "__main__":
    launch.main(PRESETS, run)
