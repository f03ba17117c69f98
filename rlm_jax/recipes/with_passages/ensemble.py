"""REPLUG's ensemble over a collection: tuned, judged beside its controls, reported."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.evaluate import in_context
from rlm_jax.methods import in_context as ralm
from rlm_jax.recipes import language_model, runs
from rlm_jax.recipes.with_passages import documents
from rlm_jax.report import report
from rlm_jax.retrievers.passage_search import PassageSearch


@dataclasses.dataclass
class EnsembleConfig:
    """How many documents are mixed, and how unequally."""

    ks: tuple[int, ...] = (1, 2, 5, 10)  # told beside documents.num, those below it
    # Of the scores; the best on validation is taken. Released: 1.
    temperatures: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    tune_tokens: int = 8192  # of the validation split; 0: the first temperature


@dataclasses.dataclass
class Config(documents.Experiment):
    """A run over an ensemble of documents."""

    ensemble: EnsembleConfig = dataclasses.field(default_factory=EnsembleConfig)


def evaluate(
    run: runs.Run,
    phases: runs.Phases,
    setting: documents.Setting,
    searcher: PassageSearch,
    before: Mapping[str, PassageSearch],
    facts: Mapping[str, Any],
) -> report.Report:
    """REPLUG over a collection, beside its controls and other retrievers; the report.

    Args:
      before: control -> the same collection with another retriever.
      facts: for the report's protocol.
    """
    config, model, text, _, excluded = setting
    num, rank_tokens = config.documents.num, config.documents.rank_tokens
    with phases("tune"):
        temperatures = tuned(setting, {"real": searcher, **before})
    with phases("retrieve"):
        part = documents.part(config, text, "test", config.evaluate.max_tokens)
        neighbours = documents.ask(config, text, part, searcher, excluded.out)
    with phases("score"):
        plain = documents.plain(config, model, part)
        values = documents.scores(config, model, part, searcher, neighbours)

    def mixed(
        values: np.ndarray, scores: np.ndarray, k: int = num, name: str = "real"
    ) -> np.ndarray:
        t = temperatures[name]
        of_strides = in_context.ensemble(
            values, scores, rank_tokens, k=k, temperature=t
        )
        return in_context.replaced(plain, part.at, of_strides)

    log_probs = {"real": mixed(values, neighbours.scores)}
    with phases("controls"):
        for name, other in before.items():
            theirs = documents.ask(config, text, part, other, excluded.out)
            each = documents.scores(config, model, part, other, theirs)
            log_probs[name] = mixed(each, theirs.scores, name=name)
        others = documents.shuffled(neighbours)
        foreign = documents.scores(config, model, part, searcher, others)
        log_probs["shuffled"] = mixed(foreign, others.scores)
        answered = documents.answered(config, model, part)
        log_probs["answer"] = in_context.replaced(plain, part.at, answered)
    oracle = ralm.oracle(values, rank_tokens)
    log_probs |= {
        "oracle": in_context.replaced(plain, part.at, oracle),
        "off": plain,
        **{
            f"k={k}": mixed(values, neighbours.scores, k)
            for k in config.ensemble.ks
            if k < num
        },
    }
    weights = in_context.log_weights(
        values, neighbours.scores, k=num, temperature=temperatures["real"]
    )
    protocol = {"temperatures": temperatures, **facts}
    return documents.finish(
        run, phases, setting, part, neighbours, searcher, log_probs, np.exp(weights),
        protocol,
    )  # fmt: skip


def tuned(
    setting: documents.Setting, searchers: Mapping[str, PassageSearch]
) -> dict[str, float]:
    """Each retriever's best temperature on the head of the validation split."""
    config, model, text, passages, _ = setting
    limit, temperatures = tune_tokens(config), config.ensemble.temperatures
    if not limit:
        return {name: temperatures[0] for name in searchers}
    out = documents.excluded(config, passages, text, "validation").out
    part = documents.part(config, text, "validation", limit)
    plain = documents.plain(config, model, part)

    def best(searcher: PassageSearch) -> float:
        neighbours = documents.ask(config, text, part, searcher, out)
        chosen = in_context.tune_temperature(
            plain,
            part.at,
            documents.scores(config, model, part, searcher, neighbours),
            neighbours.scores,
            config.documents.rank_tokens,
            k=config.documents.num,
            temperatures=temperatures,
        )
        language_model.note_grid_end("ensemble.temperatures", chosen, temperatures)
        return chosen

    return {name: best(searcher) for name, searcher in searchers.items()}


def tune_tokens(config: Config) -> int:
    """Tokens of the validation split on which the temperature is chosen; 0: none."""
    several = len(config.ensemble.temperatures) > 1
    return config.ensemble.tune_tokens if several else 0


def check(config: EnsembleConfig) -> None:
    """Raises UserError where a number is out of range."""
    if not config.temperatures or min(config.temperatures) <= 0:
        raise UserError(
            f"ensemble.temperatures are {config.temperatures}; give at least one, all "
            "above 0."
        )
    if config.ks and min(config.ks) < 1:
        raise UserError(f"ensemble.ks are {config.ks}; choose 1 or more for each.")
