"""In-context RALM: a language model reads a retrieved document before each stride.

    python -m experiments.in_context --preset tiny --workdir runs/in_context

trains a small language model first, unless ``--config.model`` names one: the workdir of
a run, a folder in Hugging Face's layout (GPT-2, Llama), or call:MODULE:FUNCTION.
Documents come by BM25 or, with ``--config.documents.retriever=FOLDER``, by an encoder.
"""

import dataclasses

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.evaluate import in_context
from rlm_jax.method import Neighbours
from rlm_jax.methods import in_context as ralm
from rlm_jax.recipes import inspection, language_model, reporting, runs
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.recipes.with_passages import documents, reranking
from rlm_jax.retrievers import passage_search

CHOICES = ("first", "reranked", "trained")


@dataclasses.dataclass
class Config(documents.Experiment):
    """A run of in-context RALM."""

    # The retriever's first document, or of its ``documents.num`` the one under which
    # the tokens before the stride are likeliest, or a trained reranker's.
    choice: str = "first"
    reranker: reranking.TrainingConfig = dataclasses.field(
        default_factory=reranking.TrainingConfig
    )


@recipe("in_context")
def run(config: Config, here: Run):
    """Retrieve for every stride of the test split, score, choose, report."""
    if config.choice not in CHOICES:
        raise UserError(
            f"choice is {config.choice!r}; choose one of {', '.join(CHOICES)}."
        )
    if config.choice == "reranked" and config.documents.rank_tokens < 1:
        raise UserError(
            "documents.rank_tokens is 0, and choice 'reranked' goes by these tokens; "
            "choose 1 or more."
        )
    phases = runs.Phases()
    setting = documents.prepare(config, here, phases)
    if setting is None:
        return None
    config, model, text, passages, why = setting
    if config.choice != "trained":
        runs.leave_to_first()
    with phases("index"):
        shelf = passage_search.load(config, passages, text.tokenizer, here.workdir)
    if config.choice == "trained":
        with phases("reranker"):
            ranker = reranking.train(
                config.reranker, config, setting, shelf, here.workdir / "reranker"
            )
    limit, rank_tokens = config.evaluate.max_tokens, config.documents.rank_tokens
    with phases("retrieve"):
        some = documents.part(config, text, "test", limit)
        found = documents.ask(config, text, some, shelf, why.out)
    with phases("score"):
        plain = documents.plain(config, model, some)
        values = documents.scores(config, model, some, shelf, found)
    with phases("controls"):
        others = documents.shuffled(found)
        if config.choice == "first":
            others = Neighbours(*(x[:, :1] for x in others))
        foreign = documents.scores(config, model, some, shelf, others)
        answered = documents.answered(config, model, some)

    def judged(values: np.ndarray, found: Neighbours) -> np.ndarray:
        """What the choice goes by, [S, K]."""
        if config.choice == "trained":
            with phases("reranker"):
                return reranking.scores(
                    config.reranker, config.search, ranker, setting, shelf, some, found
                )
        if config.choice == "reranked":
            return ralm.likelihood_before(values, rank_tokens)
        return np.broadcast_to(-np.arange(found.ids.shape[1]), found.ids.shape)

    by = judged(values, found)
    chosen = {
        "first": ralm.first(values, rank_tokens),
        "reranked": ralm.reranked(values, rank_tokens),
        "oracle": ralm.oracle(values, rank_tokens),
        "answer": answered,
        # By the same choice: what choosing alone gains is no gain of retrieval.
        "shuffled": ralm.ranked_by(foreign, judged(foreign, others), rank_tokens),
    }
    if config.choice == "trained":
        chosen["trained"] = ralm.ranked_by(values, by, rank_tokens)
    log_probs = {
        name: in_context.replaced(plain, some.at, x) for name, x in chosen.items()
    }
    log_probs = {"real": log_probs.pop(config.choice), **log_probs, "off": plain}
    weights = np.eye(found.ids.shape[1])[ralm.best(values, by)]
    return reporting.finish(
        here,
        config,
        text,
        language_model.as_scored(some.tokens, plain, some.size),
        log_probs,
        phases.seconds,
        protocol={
            "choice": config.choice,
            **documents.facts(some, found, why, shelf, config),
        },
        positions=inspection.of_documents(text, some, found, log_probs, weights, shelf),
    )
