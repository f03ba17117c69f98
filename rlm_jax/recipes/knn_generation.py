"""Continuations by kNN-LM: every token is drawn from the mixture, and says from what.

A run of kNN-LM has a datastore of its training tokens in its workdir. For each new
token its nearest neighbours are searched anew:

    p(y | x) = lambda p_kNN(y | x) + (1 - lambda) p_LM(y | x)

Khandelwal et al. 2020, eq. 3, with the k, temperature and lambda that the run chose on
its validation text.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rlm_jax.data import tokenizers
from rlm_jax.data.tokenizers import Tokenizer
from rlm_jax.errors import UserError
from rlm_jax.evaluate import knn
from rlm_jax.evaluate.token_search import Searched
from rlm_jax.methods import knn_lm
from rlm_jax.models import generation
from rlm_jax.models.generation import Sampling
from rlm_jax.recipes import runs
from rlm_jax.recipes.base_lm import BaseLM
from rlm_jax.recipes.language_models import token_search
from rlm_jax.report import report
from rlm_jax.retrieval import datastore


@dataclasses.dataclass
class NeighboursConfig:
    """Which neighbours of a new token are shown, and how much of their text."""

    shown: int = 2  # of each new token; 0: none
    context: int = 12  # tokens before a neighbour


class Memory(NamedTuple):
    """A run's datastore, and how its neighbours are mixed in."""

    searched: Searched
    mixture: knn.Mixture
    recompute: bool


class Step(NamedTuple):
    """One new token, and what spoke for it."""

    token: int
    alone: float  # its probability by the language model
    mixed: float  # and with the neighbours
    ids: np.ndarray  # int32 [K], the neighbours
    weights: np.ndarray  # float32 [K], theirs


def open_memory(workdir: str, model: BaseLM) -> Memory:
    """The datastore of a run of kNN-LM.

    Raises:
      UserError: there is none, or it is of another model.
    """
    folder, stored = pathlib.Path(workdir), runs.stored(workdir)
    if stored.get("system") != "knn_lm" or not (folder / "datastore").is_dir():
        raise UserError(
            f"There is no datastore in {workdir}; name the workdir of a finished run "
            "of experiments.knn_lm."
        )
    store = token_search.DatastoreConfig(**stored["datastore"])
    keys = datastore.open(folder / "datastore", identity={"model": model.fingerprint})
    mixture = _mixture(folder, stored["method"])
    metric = stored["method"]["metric"]
    searched = token_search.open_index(keys, store, k=mixture.k, metric=metric)
    return Memory(searched, mixture._replace(k=searched.k), store.recompute)


def _mixture(folder: pathlib.Path, method: dict[str, Any]) -> knn.Mixture:
    """What the run has tuned, or else what it was configured with."""
    chosen = method
    if (folder / "report.json").is_file():
        chosen = report.read(folder / "report.json").get("protocol", method)
    return knn.Mixture(chosen["k"], chosen["temperature"], chosen["weight"])


def continuer(
    model: BaseLM,
    memory: Memory,
    sampling: Sampling,
    *,
    window: int,
    max_new_tokens: int,
) -> Callable[[np.ndarray, jax.Array], list[Step]]:
    """``(prompt int32 [n], key)`` -> its continuation, without the end of the text.

    Of a prompt longer than the window with the new tokens the last ones are read.

    Raises:
      UserError: no token of a prompt would fit into the window.
    """
    room = window - max_new_tokens
    if room < 1:
        raise UserError(
            f"A window of {window} tokens does not hold {max_new_tokens} new ones and "
            "one of the prompt; make it longer."
        )
    assert model.decoding is not None
    params = jax.device_put(model.decoding.params)
    make = generation.generator(model.decoding.config)
    predict = jax.jit(
        generation.predict_with_keys(model.decoding.config), donate_argnums=3
    )
    ends = {model.tokenizer.end_of_document, *model.tokenizer.ends}
    searched, mixture = memory.searched, memory.mixture
    values = searched.keys.values(0, searched.keys.num_entries)
    mix = jax.jit(knn_lm.next_token_log_probs)
    chosen = {"temperature": mixture.temperature, "weight": mixture.weight}

    def look_up(query: np.ndarray) -> tuple[knn.NeighbourValues, np.ndarray]:
        ids = []

        def search(queries: np.ndarray, k: int):
            found = searched.index.search(queries, k)
            ids.append(found.ids)
            return found

        found = knn.look_up(
            search,
            query,
            searched.k,
            values=values,
            gather_keys=searched.keys.gather_keys if memory.recompute else None,
            metric=searched.metric,
        )
        return found, ids[0][0]

    def go_on(prompt: np.ndarray, key: jax.Array) -> list[Step]:
        cache, made = make.empty(1, window), []
        tokens = np.zeros((1, room), np.int32)
        given = prompt[-room:]
        tokens[0, room - len(given) :] = given
        mask = (np.arange(room) >= room - len(given)).astype(np.int32)[None]
        for number in range(max_new_tokens):
            log_probs, query, cache = predict(params, tokens, mask, cache)
            found, ids = look_up(np.asarray(query))
            mixed = mix(log_probs, *found, **chosen)
            step_key = jax.random.fold_in(key, number)
            token = int(generation.draw(step_key[None], mixed, sampling)[0])
            if token in ends:
                break
            alone, together = (float(np.exp(x[0, token])) for x in (log_probs, mixed))
            weights = knn.neighbour_weights(found, mixture.temperature)[0]
            made.append(Step(token, alone, together, ids, weights))
            tokens, mask = np.full((1, 1), token, np.int32), np.ones((1, 1), np.int32)
        return made

    return go_on


def used(
    steps: Sequence[Step],
    memory: Memory,
    tokenizer: Tokenizer,
    config: NeighboursConfig,
) -> str:
    """The neighbours of a continuation as text, token by token, the heaviest first."""
    keys, lines = memory.searched.keys, ["\nneighbours used"]
    for step in steps:
        lines.append(
            f"{_piece(tokenizer, step.token)}  p {step.mixed:.3f}, without neighbours "
            f"{step.alone:.3f}"
        )
        for place in np.argsort(-step.weights, kind="stable")[: config.shown]:
            number = int(step.ids[place])
            if number < 0:
                continue
            # An entry's value follows that of the entry before it in the text.
            before = keys.values(max(0, number - config.context), number)
            value = int(keys.values(number, number + 1)[0])
            text = " ".join(tokenizer.decode(before).split())
            lines.append(
                f"    {step.weights[place]:.3f}  ...{text} [{_piece(tokenizer, value)}]"
            )
    return "\n".join(lines) + "\n\n"


def _piece(tokenizer: Tokenizer, token: int) -> str:
    return repr(tokenizers.piece(tokenizer, token))
