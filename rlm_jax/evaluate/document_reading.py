"""A language model's passes over whole documents that retrieve from themselves."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

from rlm_jax import processes
from rlm_jax.evaluate.self_retrieval import Retrieved
from rlm_jax.method import Params
from rlm_jax.methods.rpt_reading import Reader


class Step(Protocol):
    """A window of some documents: `data.document_rows.Step`."""

    @property
    def documents(self) -> np.ndarray: ...
    @property
    def numbers(self) -> np.ndarray: ...
    @property
    def first(self) -> bool: ...
    @property
    def batch(self) -> dict[str, np.ndarray]: ...


class Read(NamedTuple):
    """What was read of the documents: N tokens, Q chunks."""

    log_probs: np.ndarray  # float32 [N], of all targets, document after document
    neighbours: np.ndarray  # int32 [Q, K], chunks back; 0 = none
    retrieved: Retrieved | None  # of the model's own scores


class Sizes(NamedTuple):
    """What a pass is made of."""

    inputs: np.ndarray  # int64 [D], targets of each document
    chunks: int  # Q
    k: int  # neighbours of a chunk
    ranked: int  # chunks of its ranking that are kept


def read(
    reader: Reader,
    params: Params,
    steps: Iterable[Step],
    sizes: Sizes,
    *,
    neighbours: np.ndarray | None = None,
    candidates: np.ndarray | None = None,
    advance: Callable[[int], Any] = lambda count: None,
) -> Read:
    """Reads all documents window by window.

    Args:
      reader: its functions.
      params: the model's.
      steps: the windows of all documents, a few documents at a time.
      sizes: of the documents.
      neighbours: int32 [Q, K], what each chunk is given; None: it retrieves.
      candidates: int32 [Q, S], chunks back, whose scores are wanted.
      advance: called with 1 when a window is done.
    """
    first = np.concatenate([[0], np.cumsum(sizes.inputs)])
    log_probs = np.zeros(first[-1], np.float32)
    read_by = np.zeros((sizes.chunks, sizes.k), np.int32)
    best = np.zeros((sizes.chunks, sizes.ranked), np.int32)
    width = 0 if candidates is None else candidates.shape[1]
    scores = np.full((sizes.chunks, width), -np.inf, np.float32)
    params = processes.replicated(params)
    state, position = None, 0
    for step in steps:
        rows, window = step.batch["tokens"].shape
        if step.first:
            state, position = reader.empty(rows), 0
        batch = {x: step.batch[x] for x in ("tokens", "targets")}
        there = step.numbers >= 0
        if neighbours is not None:
            found = neighbours[np.maximum(step.numbers, 0)]
            batch["neighbours"] = np.where(there[..., None], found, 0)
        out, state = reader.read(params, processes.spread(batch), state)
        values, of_window = np.asarray(out.log_probs), np.asarray(out.neighbours)
        keep = step.batch["mask"] > 0
        places = first[step.documents][:, None] + position + np.arange(window)
        log_probs[places[keep]] = values[keep]
        numbers = step.numbers[there]
        read_by[numbers] = of_window[there]
        if candidates is not None:
            pool = np.asarray(out.scores)
            best[numbers], scores[numbers] = _ranked(
                pool, there, candidates[numbers], sizes.ranked
            )
        position += window
        advance(1)
    return Read(
        log_probs, read_by, None if candidates is None else Retrieved(best, scores)
    )


def _ranked(pool, there, candidates, num):
    """(the best chunks, how the candidates score) of the chunks that there are."""
    count, size = pool.shape[1:]
    own = np.broadcast_to(np.arange(size - count, size), there.shape)[there]
    rows = pool[there]
    order = np.argsort(-rows, axis=1, kind="stable")[:, :num]
    seen = np.isfinite(np.take_along_axis(rows, order, axis=1))
    best = np.zeros((len(rows), num), np.int32)
    best[:, : order.shape[1]] = np.where(seen, own[:, None] - order, 0)
    places = np.maximum(own[:, None] - candidates, 0)
    values = np.take_along_axis(rows, places, axis=1)
    return best, np.where(candidates > 0, values, -np.inf)
