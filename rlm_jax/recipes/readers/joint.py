"""A retriever that is trained with its reader: its batches, and how it is judged."""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlm_jax.data.batching import Batch
from rlm_jax.data.passages import Passages
from rlm_jax.evaluate.answers import has_answer
from rlm_jax.method import Batches, Method, Params, Rows
from rlm_jax.recipes.stale_training import Judge
from rlm_jax.retrievers import trained_towers
from rlm_jax.train import fit, parallel
from rlm_jax.train import step as step_lib


def judge(
    method: Method,
    texts: Sequence[str],
    own: Sequence[np.ndarray],
    batch_of: Callable[[np.ndarray, np.ndarray], Batch],
    passages: Passages,
    answers: Sequence[Sequence[str]] | None,
    *,
    k: int,
    asked: int,
    batch_size: int,
) -> Judge | None:
    """By what training is judged: the method's own figures, and answer recall.

    Args:
      texts: what each problem asks the index; without any there is nothing to judge by.
      own: of each the passages that may not be read.
      batch_of: (places of problems, int32 [B, K] that they read) -> the method's batch.
      answers: of each problem; None: not known.
      k: passages that are read, among which answers are looked for.
      asked: candidates of each problem that the method gets.
    """
    number = len(texts)
    if not number:
        return None
    run = parallel.parallelise(
        functools.partial(step_lib.eval_step, method=method), donate=False
    )

    def figures(params: Params, found: np.ndarray) -> Mapping[str, float]:
        ids = trained_towers.without_own(found, own, asked)

        def batch_at(seed: int, step: int, *, rows: Rows | None = None) -> Batch:
            del seed
            places = np.arange(batch_size)[rows if rows is not None else slice(None)]
            places = places + step * batch_size
            filled = np.minimum(places, number - 1)
            made = batch_of(filled, ids[filled])
            return {**made, "weight": made["weight"] * (places < number)}

        judged = Batches(batch_at, number, -(-number // batch_size))
        told = dict(fit.figures_of(run, judged, batch_size)(params))
        if answers is not None:
            right = [
                any(has_answer(passages[i].joined, own) for i in row if i >= 0)
                for row, own in zip(ids[:, :k].tolist(), answers, strict=True)
            ]
            told["answer_recall"] = float(np.mean(right))
        return told

    return Judge(texts, figures)
