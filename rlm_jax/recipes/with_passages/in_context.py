"""In-context RALM: a language model reads a retrieved document before each stride.

Where ``model`` is empty, a small language model is trained first. Documents are found
by BM25 or by an encoder, as ``documents.retriever`` says.
"""

import dataclasses
from typing import Literal

import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.evaluate import in_context
from rlm_jax.method import Neighbours
from rlm_jax.methods import in_context as ralm
from rlm_jax.recipes import runs
from rlm_jax.recipes.runs import Run, recipe
from rlm_jax.recipes.with_passages import documents, reranking
from rlm_jax.retrievers import passage_search


@dataclasses.dataclass
class Config(documents.Experiment):
    """A run of in-context RALM."""

    # The retriever's first document, or of its ``documents.num`` the one under which
    # the tokens before the stride are likeliest, or a trained reranker's.
    choice: Literal["first", "reranked", "trained"] = "first"
    reranker: reranking.TrainingConfig = dataclasses.field(
        default_factory=reranking.TrainingConfig
    )


@recipe("in_context")
def run(config: Config, here: Run):
    """Retrieve for every stride of the test split, score, choose, report."""
    if config.choice == "reranked" and config.documents.rank_tokens < 1:
        raise UserError(
            "documents.rank_tokens is 0, and choice 'reranked' goes by these tokens; "
            "choose 1 or more."
        )
    phases = runs.Phases()
    setting = documents.prepare(config, here, phases)
    if setting is None:
        return None
    config, model, text, passages, excluded = setting
    if config.choice != "trained":
        runs.leave_to_first()
    with phases("index"):
        searcher = passage_search.load(config, passages, text.tokenizer, here.workdir)
    if config.choice == "trained":
        with phases("reranker"):
            ranker = reranking.train(
                config.reranker, config, setting, searcher, here.workdir / "reranker"
            )
    limit, rank_tokens = config.evaluate.max_tokens, config.documents.rank_tokens
    with phases("retrieve"):
        part = documents.part(config, text, "test", limit)
        neighbours = documents.ask(config, text, part, searcher, excluded.out)
    with phases("score"):
        plain = documents.plain(config, model, part)
        values = documents.scores(config, model, part, searcher, neighbours)
    with phases("controls"):
        others = documents.shuffled(neighbours)
        if config.choice == "first":
            others = Neighbours(*(x[:, :1] for x in others))
        foreign = documents.scores(config, model, part, searcher, others)
        answered = documents.answered(config, model, part)

    def judged(values: np.ndarray, neighbours: Neighbours) -> np.ndarray:
        """The scores by which one document is chosen, [S, K]."""
        if config.choice == "trained":
            with phases("reranker"):
                return reranking.scores(
                    config.reranker, config.search, ranker, setting, part, neighbours
                )
        if config.choice == "reranked":
            return ralm.likelihood_before(values, rank_tokens)
        shape = neighbours.ids.shape
        return np.broadcast_to(-np.arange(shape[1]), shape)

    scores = judged(values, neighbours)
    by_choice = {
        "first": ralm.first(values, rank_tokens),
        "reranked": ralm.reranked(values, rank_tokens),
        "oracle": ralm.oracle(values, rank_tokens),
        "answer": answered,
        # By the same choice: what choosing alone gains is no gain of retrieval.
        "shuffled": ralm.ranked_by(foreign, judged(foreign, others), rank_tokens),
    }
    if config.choice == "trained":
        by_choice["trained"] = ralm.ranked_by(values, scores, rank_tokens)
    log_probs = {
        name: in_context.replaced(plain, part.at, x) for name, x in by_choice.items()
    }
    log_probs = {"real": log_probs.pop(config.choice), **log_probs, "off": plain}
    weights = np.eye(neighbours.ids.shape[1])[ralm.best(values, scores)]
    return documents.finish(
        here, phases, setting, part, neighbours, searcher, log_probs, weights,
        {"choice": config.choice},
    )  # fmt: skip
