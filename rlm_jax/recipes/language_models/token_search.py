"""What kNN-LM and TRIME_ext share: a datastore of training tokens, searched."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from rlm_jax import terminal
from rlm_jax.data.texts import Text
from rlm_jax.evaluate import knn, token_search
from rlm_jax.evaluate.perplexity import Scored
from rlm_jax.evaluate.token_search import Searched
from rlm_jax.method import Method, Params
from rlm_jax.recipes import language_model, runs
from rlm_jax.recipes.runs import Run
from rlm_jax.retrieval import auto_index, datastore, encode_stream

TUNED_ON = 2048  # validation tokens by whose states an approximate search is tuned


@dataclasses.dataclass
class DatastoreConfig:
    """A datastore over the training tokens, and how it is searched."""

    max_tokens: int = 0  # from the start of the training split; 0: all
    dtype: Literal["float16", "float32", "int8"] = (
        "float16"  # of the keys: float16, float32 or int8
    )
    index: auto_index.Kind = "auto"  # auto (by the number of keys), exact or scann
    recompute: bool = True  # similarities from the stored keys, not from the index
    exact_queries: int = 2048  # tokens for which exact search is compared


def build(
    method: Method,
    params: Params,
    config: language_model.Experiment,
    store: DatastoreConfig,
    text: Text,
    run: Run,
) -> datastore.Datastore:
    """The datastore of a trained model in the workdir, built or opened."""
    auto_index.check_kind(store.index, "datastore.index")
    tokens = text.store.split("train").tokens
    score = method.score
    assert score is not None
    return encode_stream.build_datastore(
        lambda params, batch: score(params, batch).keys,
        params,
        tokens[: store.max_tokens or len(tokens)],
        run.workdir / "datastore",
        window=config.evaluate.window,
        stride=config.evaluate.stride,
        batch_size=config.evaluate.batch_size,
        dtype=store.dtype,
        identity={
            "model": encode_stream.fingerprint(params),
            "text": text.store.fingerprint,
        },
        wrap=terminal.bar("building the datastore", "batch"),
    )


def open_index(
    keys: datastore.Datastore,
    config: DatastoreConfig,
    *,
    k: int,
    metric: str,
    scale: float = 1.0,
    queries: Callable[[], np.ndarray] | None = None,
) -> Searched:
    """The configured index over a datastore; a ScaNN index is kept in the workdir.

    ``queries`` gives states of other tokens, float32 [N, D], for ScaNN to be tuned on.
    """
    kind = auto_index.resolve(config.index, keys.num_entries, field="datastore.index")
    terminal.say(f"opening an index over {keys.num_entries:,} keys")
    k = min(k, keys.num_entries)
    states = None
    if queries is not None and kind == "scann":
        states = queries() * np.float32(scale)
    index = auto_index.choose(keys, metric, kind=kind, queries=states)
    return Searched(keys, index, k, metric, scale)


def build_and_open(
    method: Method,
    params: Params,
    config: language_model.Experiment,
    store: DatastoreConfig,
    text: Text,
    run: Run,
    phases: runs.Phases,
    *,
    k: int,
    metric: str,
    scale: Callable[[int], float] = lambda width: 1.0,
) -> Searched:
    """The datastore of a trained model in the workdir, and its index.

    ``scale(width)`` multiplies the queries, whose width is the keys'.
    """
    with phases("datastore"):
        keys = build(method, params, config, store, text, run)
    states = functools.partial(validation_states, method, params, config, text)
    with phases("index"):
        return open_index(
            keys, store, k=k, metric=metric, scale=scale(keys.dim), queries=states
        )


def validation_states(
    method: Method,
    params: Params,
    config: language_model.Experiment,
    text: language_model.Text,
) -> np.ndarray:
    """The queries of the first validation tokens, float32 [N, D], to tune a search."""
    scored = language_model.score_split(
        method, params, config, text, "validation", limit=TUNED_ON
    )
    return scored.stream.keys


def look_up(
    scored: Scored, searched: Searched, config: DatastoreConfig
) -> tuple[knn.NeighbourValues, np.ndarray]:
    """The neighbours of a split's tokens, and their ids."""
    return token_search.look_up(
        scored.stream,
        searched,
        recompute=config.recompute,
        wrap=terminal.bar("searching", "batch"),
    )


def compared_with_exact(
    scored: Scored,
    searched: Searched,
    config: DatastoreConfig,
    log_probs: Callable[[knn.NeighbourValues, int], np.ndarray],
) -> dict[str, Any]:
    """`evaluate.token_search.compared_with_exact`, as configured."""
    return token_search.compared_with_exact(
        scored.stream,
        searched,
        log_probs,
        num_tokens=config.exact_queries,
        recompute=config.recompute,
        wrap=terminal.bar("searching", "batch"),
    )
