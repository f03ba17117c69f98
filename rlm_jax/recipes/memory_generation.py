"""Continuing a text with the memory of a run of kNN-LM, TRIME or a continuous cache.

Token by token: the model reads, its state asks the memory, and the next token is drawn
from what both say together. The memory is the run's datastore of training tokens and,
for TRIME and the cache, the text's own past; temperatures and weights are those that
the run tuned.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlm_jax.data import tokenizers
from rlm_jax.data.tokenizers import Tokenizer
from rlm_jax.errors import UserError
from rlm_jax.evaluate import knn
from rlm_jax.evaluate.next_token import Datastore, Near, RunMemory, Text, log_probs
from rlm_jax.evaluate.token_memory import TokenMemory
from rlm_jax.models import generation
from rlm_jax.models.decoder import DecoderConfig
from rlm_jax.models.generation import Sampling
from rlm_jax.recipes import base_lm, runs
from rlm_jax.recipes.language_models import token_search as searches
from rlm_jax.report import report
from rlm_jax.retrieval import datastore
from rlm_jax.storage import sealed


@dataclasses.dataclass
class NeighboursConfig:
    """Which neighbours of a new token are shown, and how much of their text."""

    shown: int = 2  # neighbours of each new token from a datastore; 0: none
    context: int = 12  # tokens before a neighbour


class Step(NamedTuple):
    """One new token, and what spoke for it."""

    token: int
    alone: float  # its probability by the language model
    mixed: float  # and with the memory
    near: Near | None  # of a datastore


def load(workdir: pathlib.Path) -> RunMemory:
    """The memory of a run.

    Raises:
      UserError: the run has none, or has not ended.
    """
    stored = runs.stored(workdir)
    system = stored.get("system")
    if system not in base_lm.WITH_MEMORY:
        told = f"one of {system}" if system else "a published model"
        raise UserError(
            f"{workdir} has no memory to continue a text with: it is {told}. Name a "
            "run of experiments.knn_lm, .trime or .continuous_cache, or take "
            "--config.retrieval=none, in_context or replug."
        )
    if not (workdir / "report.json").exists():
        raise UserError(
            f"The run in {workdir} has not ended, and its memory is not tuned yet; "
            "start it again to go on."
        )
    told = report.read(workdir / "report.json").get("protocol", {})
    _require(workdir, stored, told)
    if system == "continuous_cache":
        size, temperature = told["memory_size"], told["memory_temperature"]
        past = TokenMemory(size, stored["cache"]["segment"], temperature)
        return RunMemory(past, None, None, told["weight"])
    config = runs.group(workdir, stored, "datastore", searches.DatastoreConfig)
    if system == "knn_lm":
        mixture = knn.Mixture(told["k"], told["temperature"], told["weight"])
        store = _store(workdir, config, mixture.k, told["metric"], mixture.temperature)
        return RunMemory(None, store, mixture)
    memory = stored["memory"]
    past = TokenMemory(
        told["memory_size"], memory["segment"], told["memory_temperature"]
    )
    if not memory["k"]:
        return RunMemory(past, None, None)
    store = _store(
        workdir, config, told["k"], "ip", told["external_temperature"], logits=True
    )
    interpolated = told.get("interpolation")
    mixture = knn.Mixture(**interpolated) if interpolated else None
    return RunMemory(past, store, mixture)


def _require(
    workdir: pathlib.Path, stored: dict[str, Any], told: dict[str, Any]
) -> None:
    """Raises UserError where the run's files lack what its memory needs."""
    of_report = {"k": int, "metric": str, "temperature": float, "weight": float}
    if stored["system"] == "continuous_cache":
        runs.require(workdir, stored, {"cache": {"segment": int}})
        of_report = {"memory_size": int, "memory_temperature": float, "weight": float}
    if stored["system"] == "trime":
        runs.require(workdir, stored, {"memory": {"segment": int, "k": int}})
        of_report = {"memory_size": int, "memory_temperature": float}
        if stored["memory"]["k"]:
            of_report |= {"k": int, "external_temperature": float}
            of_report["interpolation"] = sealed.Maybe(dict[str, float] | None)
    path, remedy = workdir / "report.json", "start the run again, which writes it"
    sealed.require(told, of_report, path, remedy, "protocol")


def _store(
    workdir: pathlib.Path,
    config: searches.DatastoreConfig,
    k: int,
    metric: str,
    temperature: float,
    *,
    logits: bool = False,
) -> Datastore:
    """``logits``: whether inner products are divided by sqrt(D), as TRIME's are."""
    keys = datastore.open(workdir / "datastore")
    scale = keys.dim**-0.5 if logits else 1.0
    searched = searches.open_index(keys, config, k=k, metric=metric, scale=scale)
    return Datastore(searched, config.recompute, temperature)


def continuer(
    decoder: DecoderConfig,
    params: Any,
    memory: RunMemory,
    *,
    window: int,
    max_new_tokens: int,
    num_samples: int,
    sampling: Sampling,
    end_ids: Sequence[int],
) -> Callable[[np.ndarray, jax.Array], list[list[Step]]]:
    """(prompt int32 [n], key) -> the steps of each continuation, without its end.

    The model reads the last ``window`` tokens; when they are full it reads the last
    half of them again. What it had seen before stays in the memory.
    """
    params = jax.device_put(params)
    make = generation.generator(decoder)
    context = max(1, window // 2)
    step = max(1, context // 2)  # so that every token is read after others
    read = jax.jit(lambda p, t, m: make.tell(p, t, m, make.empty(1, window)))
    read_on = jax.jit(make.tell, donate_argnums=3)
    one = jnp.ones((1, 1), jnp.int32)
    pick = jax.jit(lambda k, logs: generation.draw(k[None], logs[None], sampling)[0])

    def reread(text: Text) -> tuple[Any, ...]:
        """Reads the last tokens; the keys of those that have none yet are kept."""
        rows = np.zeros((2, 1, context), np.int32)
        told: tuple[Any, ...] = ()
        for start in range(len(text.keys), len(text.tokens), step):
            until = min(start + step, len(text.tokens))
            part = text.tokens[max(0, until - context) : until]
            rows[:] = 0
            rows[0, 0, context - len(part) :], rows[1, 0, context - len(part) :] = (
                part,
                1,
            )
            told = read(params, *rows)
            keys = np.asarray(told[2])[0, context - (until - start) :]
            text.keys += list(keys)
        return told

    def one_text(prompt: np.ndarray, key: jax.Array) -> list[Step]:
        text, steps = Text([int(x) for x in prompt]), []
        plain, normaliser, _, cache = reread(text)
        more = 0
        for number in range(max_new_tokens):
            both = log_probs(
                memory, text, np.asarray(plain)[0], float(np.asarray(normaliser)[0])
            )
            drawn = pick(jax.random.fold_in(key, number), both.astype(np.float32))
            token = int(drawn)
            text.tokens.append(token)
            if token in end_ids:
                break
            alone = float(np.exp(np.asarray(plain)[0, token]))
            steps.append(Step(token, alone, float(np.exp(both[token])), text.near))
            if number + 1 == max_new_tokens:
                break
            if more < window - context:
                last = jnp.full((1, 1), token, jnp.int32)
                plain, normaliser, keys, cache = read_on(params, last, one, cache)
                text.keys.append(np.asarray(keys)[0, 0])
                more += 1
            else:
                plain, normaliser, _, cache = reread(text)
                more = 0
        return steps

    def go_on(prompt: np.ndarray, key: jax.Array) -> list[list[Step]]:
        keys = [jax.random.fold_in(key, row) for row in range(num_samples)]
        return [one_text(prompt, own) for own in keys]

    return go_on


def used(
    steps: Sequence[Step],
    memory: RunMemory,
    tokenizer: Tokenizer,
    config: NeighboursConfig,
) -> str:
    """A continuation's neighbours as text, token by token, the heaviest first.

    Empty where the memory has no datastore.
    """
    if memory.store is None or not config.shown:
        return ""
    keys, lines = memory.store.searched.keys, ["\nneighbours used"]
    for token, alone, mixed, near in steps:
        lines.append(
            f"{_piece(tokenizer, token)}  p {mixed:.3f}, without the memory {alone:.3f}"
        )
        weights = memory.weights(near) if near else np.zeros(0)
        for place in np.argsort(-weights, kind="stable")[: config.shown]:
            number = int(near.ids[place]) if near else -1
            if number < 0:
                continue
            # An entry's value follows that of the entry before it in the text.
            before = keys.values(max(0, number - config.context), number)
            value = int(keys.values(number, number + 1)[0])
            text = " ".join(tokenizer.decode(before).split())
            lines.append(
                f"    {weights[place]:.3f}  ...{text} [{_piece(tokenizer, value)}]"
            )
    return "\n".join(lines) + "\n\n"


def _piece(tokenizer: Tokenizer, token: int) -> str:
    return repr(tokenizers.piece(tokenizer, token))
