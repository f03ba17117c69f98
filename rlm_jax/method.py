"""The contract: what a system is to the trainer, the evaluator and the search side.

A method is a value, a tuple of pure functions, as ``optax.adam(lr)`` is. The trainer
knows this file and nothing of any particular method.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

Params = Any
"""A pytree of float32 arrays; for Linen models a nested dict."""

Batch = Mapping[str, Any]
"""Arrays by name; every array has the examples as its leading axis."""

Sums = dict[str, tuple[jax.Array, jax.Array]]
"""Name -> (sum, weight), both float32 scalars; ``"loss"`` is what is optimised.

Sums and weights, never means: the caller adds all of them up (over micro-batches,
devices, evaluation batches) and then divides once. The mean of masked means is another
number."""


class TokenScores(NamedTuple):
    """What a language model says of each target, before any retrieval.

    ``log p(target) = target_score - log_normaliser``. The two stay apart because TRIME
    (Zhong et al. 2022, eq. 4) adds memory terms to each of them. For an adaptive
    softmax ``target_score`` holds the cluster's logit plus the word's log-probability
    inside it, and ``log_normaliser`` is the log-sum-exp of the head alone.
    """

    target_score: jax.Array  # float32 [B, T], nats
    log_normaliser: jax.Array  # float32 [B, T], nats
    keys: jax.Array  # float32 [B, T, D], the input of the last feed-forward layer


class Neighbours(NamedTuple):
    """What a search returns, best first; ids are -1 where fewer than k were found."""

    scores: np.ndarray  # float32 [N, K]; larger is nearer (squared L2 comes negated)
    ids: np.ndarray  # int32 [N, K]; rows of the index


class Retrieval(NamedTuple):
    """Which parameters encode what, where neighbours come from a search on the host.

    ``query_params(params)`` and ``passage_params(params)`` are the parts of the
    method's parameters that ``encode_queries(query_params, batch)`` and
    ``encode_keys(passage_params, batch)`` take, [N, D] each. An index depends on the
    passages' part alone: it is stale when that part has moved. How neighbours come into
    a batch is the recipe's.
    """

    k: int  # neighbours of a query
    query_params: Callable[[Params], Params]
    passage_params: Callable[[Params], Params]
    encode_queries: Callable[[Params, Batch], jax.Array]
    encode_keys: Callable[[Params, Batch], jax.Array]


def shared(k: int, encode: Callable[[Params, Batch], jax.Array]) -> Retrieval:
    """The `Retrieval` of one encoder for queries and keys, whose parameters are all."""
    whole = lambda params: params
    return Retrieval(k, whole, whole, encode, encode)


class MovingState(NamedTuple):
    """State that every step moves without a gradient: a momentum encoder, a queue.

    ``init(params, key)`` gives the state that belongs to fresh parameters, a pytree of
    arrays. ``update(params, state, batch, key, *, axis=None)`` returns the next state
    and the batch with what the loss needs of it; it runs once a micro-batch, before the
    gradient, which sees its results as constants. The state must come out equal on
    every device: what is kept of the batch is gathered first. What it adds to the batch
    may have any shape, since nothing splits that batch any more.
    """

    init: Callable[[Params, jax.Array], Any]
    update: Callable[..., tuple[Any, Batch]]


class Method(NamedTuple):
    """A retrieval-based language model, as pure functions.

    ``loss(params, batch, key, *, axis=None)`` and ``evaluate`` (the same,
    deterministic: the key is ignored) return `Sums`. ``axis`` is None or the name of
    the mapped axis of devices; methods meet it through `rlm_jax.ops.collectives` alone.
    ``key`` is the same on every device. ``score(params, batch)`` gives the per-token
    view that perplexity, datastores and controls are made of; it is None for a method
    that is not a language model over tokens. With ``moving`` the batch that ``loss``
    gets has passed ``moving.update``; ``evaluate`` takes plain batches all the same.
    """

    init: Callable[[jax.Array], Params]
    loss: Callable[..., Sums]
    evaluate: Callable[..., Sums]
    score: Callable[[Params, Batch], TokenScores] | None = None
    retrieval: Retrieval | None = None
    moving: MovingState | None = None


Rows = slice | np.ndarray
"""Which rows of a batch: a slice, or their numbers."""


class _BatchAt(Protocol):
    def __call__(self, seed: int, step: int, *, rows: Rows | None = None) -> Batch: ...


@dataclass(frozen=True)
class Batches:
    """An order over a split.

    Attributes:
      batch_at: ``batch_at(seed, step, *, rows=None)`` -> one batch, or only the `rows`
        of it that this process feeds; the same arguments give the same arrays.
      num_segments: segments in an epoch.
      num_batches: batches in an epoch; step s is in epoch ``s // num_batches``.
    """

    batch_at: _BatchAt
    num_segments: int
    num_batches: int
