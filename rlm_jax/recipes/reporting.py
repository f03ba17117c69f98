"""How a launcher of a language model ends: report.json, a table, plots, a page."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlm_jax import terminal
from rlm_jax.recipes import language_model
from rlm_jax.recipes.runs import Run
from rlm_jax.report import inspector, plots, report, tables, token_gain_plots
from rlm_jax.train import metrics

STRIP_TOKENS = 400


def finish(
    run: Run,
    config: language_model.Experiment,
    text: language_model.Text,
    scored: language_model.Scored,
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
    made = report.build(
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
            **dataclasses.asdict(config.evaluate),
            **(protocol or {}),
        },
    )
    report.write(run.workdir / "report.json", made)
    _plots(run, text, scored, log_probs, made)
    if positions:
        inspector.write(
            run.workdir / "neighbours.html",
            positions,
            title=f"{run.system} on {config.data.corpus}, {run.preset}",
            caption=f"Predictions of the {split} split and what the memory answered.",
        )
    terminal.say(tables.terminal([row(made)], title=f"\n{run.system}, {split} split"))
    terminal.say(f"report, plots and checkpoints: {run.workdir}")
    return made


def row(made: Mapping[str, Any]) -> tables.Row:
    """A report's row of a table, without the figures that say nothing.

    Where tokens are words, per word is per token; and program text, which the embedded
    corpus is, has no words to speak of. report.json keeps the figure.
    """
    whole = tables.row_of(made)
    if made["corpus"] != "stdlib" and made["protocol"]["tokenizer"] != "word":
        return whole
    shown = {k: x for k, x in whole.metrics.items() if k != "word_perplexity"}
    return whole._replace(metrics=shown)


def _plots(run, text, scored, log_probs, made) -> None:
    folder = run.workdir / "plots"
    folder.mkdir(exist_ok=True)
    if (run.workdir / "metrics.jsonl").exists():
        records = metrics.read(run.workdir)
        plots.training_curves(folder / "training.png", {run.system: records})
    if made["controls"]:
        plots.control_bars(folder / "controls.png", [row(made)])
    if "off" in log_probs:
        token_gains(folder, text, scored, log_probs)


def token_gains(folder, text, scored, log_probs) -> None:
    """Per token: where retrieval helped, as a histogram and as a strip of text."""
    of_all = token_gain_plots.TokenGains(
        scored.stream.targets, log_probs["off"], log_probs["real"]
    )
    token_gain_plots.gain_histogram(folder / "token_gain_plots.png", of_all)
    # The stretch that gains most says most of how the memory works.
    size = min(STRIP_TOKENS, len(scored.stream.targets))
    gain = np.convolve(log_probs["real"] - log_probs["off"], np.ones(size), "valid")
    start = int(gain.argmax())
    where = slice(start, start + size)
    pieces = [piece(text, t) for t in scored.stream.targets[where]]
    token_gain_plots.gain_strip(
        folder / "gains_text.png",
        token_gain_plots.TokenGains(
            pieces, log_probs["off"][where], log_probs["real"][where]
        ),
    )


def piece(text: language_model.Text, token: int) -> str:
    """One token as text; words get their space back."""
    space = " " if text.tokenizer.kind == "word" else ""
    return text.tokenizer.decode([token]) + space
