"""How a recipe ends: report.json, a table, plots, a language model's page."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rlm_jax import terminal
from rlm_jax.data import tokenizers
from rlm_jax.data.texts import DataConfig, Text
from rlm_jax.evaluate.perplexity import Scored
from rlm_jax.recipes.language_model import EvaluateConfig
from rlm_jax.recipes.runs import Run
from rlm_jax.report import inspector, plots, report, tables, token_gain_plots
from rlm_jax.train import metrics


class Evaluates(Protocol):
    """The fields of a configuration that say what was evaluated, and how."""

    @property
    def data(self) -> DataConfig: ...
    @property
    def evaluate(self) -> EvaluateConfig: ...


def finish(
    run: Run,
    config: Evaluates,
    text: Text,
    scored: Scored,
    log_probs: Mapping[str, np.ndarray],
    seconds: Mapping[str, float],
    *,
    split: str = "test",
    protocol: Mapping[str, Any] | None = None,
    positions: Sequence[inspector.Position] = (),
) -> report.Report:
    """Write and show what a run measured.

    Args:
      log_probs: float32 [N] of the split's tokens under "real" and each control.
      seconds: by phase.
      protocol: what the figures depend on, beside the windows (tuned temperatures...).
      positions: for the neighbour inspector; none, no page.
    """
    figures = {name: scored.metrics(x) for name, x in log_probs.items()}
    result = report.build(
        system=run.system,
        preset=run.preset,
        corpus=config.data.corpus,
        metrics=figures.pop("real"),
        controls=figures,
        seconds=seconds,
        commit=report.commit_of(pathlib.Path(__file__).parent),
        protocol={
            "split": split,
            "tokens": len(scored.stream.targets),
            "words": scored.num_words,
            "bytes": scored.num_bytes,
            "tokenizer": config.data.tokenizer,
            "vocabulary": text.tokenizer.vocab_size,
            **({"text": dict(text.facts)} if text.facts else {}),
            **dataclasses.asdict(config.evaluate),
            **(protocol or {}),
        },
    )
    report.write(run.workdir / "report.json", result)
    _plots(run, text, scored, log_probs, result)
    if positions:
        inspector.write(
            run.workdir / "neighbours.html",
            positions,
            title=f"{run.system} on {config.data.corpus}, {run.preset}",
            caption=f"Predictions of the {split} split and what the memory answered.",
        )
    row = tables.row_of_text(result)
    terminal.say(tables.terminal([row], title=f"\n{run.system}, {split} split"))
    terminal.say(f"report, plots and checkpoints: {run.workdir}")
    return result


def show(
    run: Run,
    row: tables.Row,
    *,
    metric: str,
    bars: str,
    curves: Mapping[str, pathlib.Path],
    loss: str,
    title: str,
    left: str,
) -> None:
    """Draw and tell what a run that is no language model's achieves.

    Args:
      row: of its report.
      metric: the one that is drawn under each control, below the title ``bars``.
      curves: name -> workdir of what was trained, if anything; ``loss`` labels them.
      title: of the table, after the system.
      left: what is in the workdir beside report and plots.
    """
    folder = run.workdir / "plots"
    folder.mkdir(exist_ok=True)
    plots.control_bars(folder / "controls.png", [row], metric=metric, title=bars)
    if curves:
        records = {name: metrics.read(path) for name, path in curves.items()}
        plots.training_curves(folder / "training.png", records, label=loss)
    terminal.say(tables.terminal([row], title=f"\n{run.system}: {title}"))
    terminal.say(f"report, plots and {left}: {run.workdir}")


def _plots(
    run: Run,
    text: Text,
    scored: Scored,
    log_probs: Mapping[str, np.ndarray],
    result: report.Report,
) -> None:
    folder = run.workdir / "plots"
    folder.mkdir(exist_ok=True)
    if (run.workdir / "metrics.jsonl").exists():
        records = metrics.read(run.workdir)
        plots.training_curves(folder / "training.png", {run.system: records})
    if result["controls"]:
        plots.control_bars(folder / "controls.png", [tables.row_of_text(result)])
    if "off" in log_probs:
        token_gain_plots.of_text(
            folder,
            scored.stream.targets,
            functools.partial(tokenizers.piece, text.tokenizer),
            log_probs["off"],
            log_probs["real"],
        )
