"""What kNN-LM and TRIME_ext share: a datastore of training tokens, searched."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments import language_model, launch
from experiments.launch import Run
from rlm_jax.evaluate import controls, knn
from rlm_jax.method import Method, Params
from rlm_jax.retrieval import auto_index, datastore, encode, exact, index, scann
from rlm_jax.train import progress

TUNED_ON = 2048  # validation tokens by whose states an approximate search is tuned


@dataclasses.dataclass
class DatastoreConfig:
    """A datastore over the training tokens, and how it is searched."""

    max_tokens: int = 0  # from the start of the training split; 0: all
    dtype: str = "float16"  # of the keys: float16, float32 or int8
    index: str = "auto"  # auto (by the number of keys), exact or scann
    recompute: bool = True  # similarities from the stored keys, not from the index
    exact_queries: int = 2048  # tokens on which an approximate index is held to exact


class Searched(NamedTuple):
    """A datastore with its index, and how queries meet it."""

    keys: datastore.Datastore
    index: index.Index
    k: int  # neighbours a token
    metric: str  # l2 (negated squared distance) or ip (inner product)
    scale: float  # multiplies the queries


def build(
    method: Method,
    params: Params,
    config: language_model.Experiment,
    store: DatastoreConfig,
    text: language_model.Text,
    run: Run,
) -> datastore.Datastore:
    """The datastore of a trained model in the workdir, built or opened."""
    auto_index.check_kind(store.index, "datastore.index")
    tokens = text.store.split("train").tokens
    score = method.score
    assert score is not None
    return encode.build_datastore(
        lambda params, batch: score(params, batch).keys,
        params,
        tokens[: store.max_tokens or len(tokens)],
        run.workdir / "datastore",
        window=config.evaluate.window,
        stride=config.evaluate.stride,
        batch_size=config.evaluate.batch_size,
        dtype=store.dtype,
        identity={
            "model": encode.fingerprint(params),
            "text": text.store.fingerprint,
        },
        wrap=launch.bar("building the datastore", "batch"),
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
    progress.say(f"opening an index over {keys.num_entries:,} keys")
    k = min(k, keys.num_entries)
    states = None
    if queries is not None and kind == "scann":
        states = queries() * np.float32(scale)
    chosen = auto_index.choose(keys, metric, kind=kind, queries=states)
    return Searched(keys, chosen, k, metric, scale)


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
    scored: language_model.Scored,
    searched: Searched,
    config: DatastoreConfig,
    *,
    limit: int | None = None,
) -> tuple[knn.NeighbourValues, np.ndarray]:
    """The neighbours of a split's (first ``limit``) tokens, and their ids."""
    keys = searched.keys
    ids = []

    def search(queries, k):
        found = searched.index.search(queries, k)
        ids.append(found.ids)
        return found

    found = knn.look_up(
        search,
        scored.stream.keys[:limit] * np.float32(searched.scale),
        searched.k,
        values=keys.values(0, keys.num_entries),
        gather_keys=keys.gather_keys if config.recompute else None,
        metric=searched.metric,
        wrap=launch.bar("searching", "batch"),
    )
    return found, np.concatenate(ids)


def by_control(
    found: knn.NeighbourValues, ids: np.ndarray, keys: datastore.Datastore
) -> dict[str, knn.NeighbourValues]:
    """The neighbours as they are, with values permuted among all keys, and with each
    token given the neighbours of a token half the split away."""
    shuffled = controls.shuffled_values(keys.values(0, keys.num_entries))
    elsewhere = controls.foreign_positions(len(ids))
    return {
        controls.REAL: found,
        controls.SHUFFLED: found._replace(
            values=np.where(ids < 0, -1, shuffled[np.maximum(ids, 0)])
        ),
        controls.FOREIGN: knn.NeighbourValues(*(x[elsewhere] for x in found)),
    }


def held_to_exact(
    scored: language_model.Scored,
    searched: Searched,
    config: DatastoreConfig,
    log_probs: Callable[[knn.NeighbourValues, int], np.ndarray],
) -> dict[str, Any]:
    """An approximate index against exact search on some tokens.

    ``log_probs(neighbours, count)`` gives the final log-probabilities of the first
    ``count`` tokens. Empty for an exact index.
    """
    if isinstance(searched.index, exact.Exact):
        return {}
    count = min(config.exact_queries, len(scored.stream.targets))
    truth = exact.build(searched.keys, metric=searched.metric)
    results = {}
    for name, one in (("approximate", searched.index), ("exact", truth)):
        found, _ = look_up(scored, searched._replace(index=one), config, limit=count)
        mean = log_probs(found, count).mean(dtype=np.float64)
        results[f"perplexity_{name}"] = float(np.exp(-mean))
    queries = scored.stream.keys[: min(count, 256)] * np.float32(searched.scale)
    for k in (10, 100):
        results[f"recall@{k}"] = scann.measure_recall(
            searched.index, truth, queries, min(k, searched.keys.num_entries)
        )
    return {"tokens": count, **results}
