"""REPLUG's ensemble over a collection: tuned, judged beside its controls, reported."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.evaluate import in_context
from rlm_jax.evaluate.perplexity import text_metrics
from rlm_jax.methods import in_context as ralm
from rlm_jax.recipes import inspection, language_model, reporting, runs
from rlm_jax.recipes.with_passages import contamination, documents
from rlm_jax.report import report
from rlm_jax.retrievers import passage_search


@dataclasses.dataclass
class EnsembleConfig:
    """How many documents are mixed, and how unequally."""

    ks: tuple[int, ...] = (1, 2, 5, 10)  # told beside documents.num, those below it
    # Of the scores; the best on validation is taken. Released: 1.
    temperatures: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    tune_tokens: int = 8192  # of the validation split; 0: the first temperature


@dataclasses.dataclass
class Config(documents.Experiment):
    """A run of REPLUG."""

    ensemble: EnsembleConfig = dataclasses.field(default_factory=EnsembleConfig)


def evaluate(
    run: runs.Run,
    phases: runs.Phases,
    setting: documents.Setting,
    shelf: passage_search.PassageSearch,
    before: Mapping[str, passage_search.PassageSearch],
    facts: Mapping[str, Any],
) -> report.Report:
    """REPLUG over a library, beside its controls and other libraries; the report.

    Args:
      before: control -> the same collection with another retriever.
      facts: for the report's protocol.
    """
    config, model, text, _, why = setting
    num, rank_tokens = config.documents.num, config.documents.rank_tokens
    with phases("tune"):
        temperatures = tuned(setting, {"real": shelf, **before})
    with phases("retrieve"):
        some = documents.part(config, text, "test", config.evaluate.max_tokens)
        found = documents.ask(config, text, some, shelf, why.out)
    with phases("score"):
        plain = documents.plain(config, model, some)
        values = documents.scores(config, model, some, shelf, found)

    def whole(chosen: np.ndarray) -> np.ndarray:
        return in_context.replaced(plain, some.at, chosen)

    def mixed(values, scores, k=num, name="real") -> np.ndarray:
        t = temperatures[name]
        return whole(
            in_context.ensemble(values, scores, rank_tokens, k=k, temperature=t)
        )

    log_probs = {"real": mixed(values, found.scores)}
    with phases("controls"):
        for name, other in before.items():
            theirs = documents.ask(config, text, some, other, why.out)
            each = documents.scores(config, model, some, other, theirs)
            log_probs[name] = mixed(each, theirs.scores, name=name)
        others = documents.shuffled(found)
        foreign = documents.scores(config, model, some, shelf, others)
        log_probs["shuffled"] = mixed(foreign, others.scores)
        log_probs["answer"] = whole(documents.answered(config, model, some))
    log_probs |= {
        "oracle": whole(ralm.oracle(values, rank_tokens)),
        "off": plain,
        **{
            f"k={k}": mixed(values, found.scores, k)
            for k in config.ensemble.ks
            if k < num
        },
    }
    weights = in_context.log_weights(
        values, found.scores, k=num, temperature=temperatures["real"]
    )
    return reporting.finish(
        run,
        config,
        text,
        language_model.as_scored(some.tokens, plain, some.size),
        log_probs,
        phases.seconds,
        protocol={
            "temperatures": temperatures,
            **documents.facts(some, found, why, shelf, config),
            **facts,
        },
        positions=inspection.of_documents(
            text, some, found, log_probs, np.exp(weights), shelf
        ),
    )


def tuned(
    setting: documents.Setting, shelves: Mapping[str, passage_search.PassageSearch]
) -> dict[str, float]:
    """Each library's best temperature on the head of the validation split."""
    config, model, text, passages, _ = setting
    limit, chosen = tune_tokens(config), config.ensemble
    if not limit:
        return {name: chosen.temperatures[0] for name in shelves}
    out = contamination.excluded(config, passages, text, "validation").out
    some = documents.part(config, text, "validation", limit)
    plain = documents.plain(config, model, some)
    num_bytes, num_words = some.size

    def best(shelf: passage_search.PassageSearch) -> float:
        found = documents.ask(config, text, some, shelf, out)
        values = documents.scores(config, model, some, shelf, found)

        def bits(temperature: float) -> float:
            mixed = in_context.ensemble(
                values,
                found.scores,
                config.documents.rank_tokens,
                k=config.documents.num,
                temperature=temperature,
            )
            whole = in_context.replaced(plain, some.at, mixed)
            made = text_metrics(whole, num_bytes=num_bytes, num_words=num_words)
            return made["bits_per_byte"]

        return min(chosen.temperatures, key=bits)

    return {name: best(shelf) for name, shelf in shelves.items()}


def tune_tokens(config: Config) -> int:
    """Tokens of the validation split on which the temperature is chosen; 0: none."""
    chosen = config.ensemble
    return chosen.tune_tokens if len(chosen.temperatures) > 1 else 0


def check(config: EnsembleConfig) -> None:
    """Raises UserError where a number is out of range."""
    if not config.temperatures or min(config.temperatures) <= 0:
        raise UserError(
            f"ensemble.temperatures are {config.temperatures}; give at least one, all "
            "above 0."
        )
    if config.ks and min(config.ks) < 1:
        raise UserError(f"ensemble.ks are {config.ks}; choose 1 or more for each.")
