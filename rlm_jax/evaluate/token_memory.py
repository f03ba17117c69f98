"""TRIME's memories at evaluation: a stream's own past, and a datastore.

A trained model's keys do not depend on the memory, so one pass over the stream
(`rlm_jax.evaluate.perplexity.score_stream`) serves every memory, size, temperature and
control. Each segment sees the last ``size`` tokens before it (a first-in first-out
memory, moved on segment by segment) and the earlier tokens of its own; the temperature
divides memory logits only (released TRIME, ``--softmax-temp``).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.evaluate import controls
from rlm_jax.evaluate.knn import NeighbourValues
from rlm_jax.evaluate.perplexity import StreamScores
from rlm_jax.methods import trime
from rlm_jax.ops.memory import LogSums


class TokenMemory(NamedTuple):
    """What a prediction remembers of its own stream."""

    size: int
    """Tokens of finished segments kept; 0 is TRIME's local memory."""
    segment: int
    """Predictions after which the memory moves on; earlier ones of the running segment
    are always seen."""
    temperature: float = 1.0
    """Divides the memory's logits h.h_j / sqrt(D)."""


def stream_log_sums(
    stream: StreamScores,
    memory: TokenMemory,
    *,
    control: str = controls.REAL,
    seed: int = 0,
) -> LogSums:
    """Log-sum-exps of each prediction over its own past, float32 [N] twice.

    Args:
      stream: the scored stream.
      memory: its size, segment and temperature.
      control: real, shuffled or foreign.
      seed: of the shuffle.
    """
    if memory.size < 0 or memory.segment < 1 or memory.temperature <= 0:
        raise UserError(
            f"A memory of {memory.size} tokens, segments of {memory.segment} and "
            f"temperature {memory.temperature} cannot be; choose a size of 0 or more, "
            "a segment of 1 or more and a temperature above 0."
        )
    n, width = stream.keys.shape
    rng = np.random.default_rng(seed)
    size, segment, temperature = memory
    size = min(size, n)  # there is nothing before the stream
    scale = jnp.float32(trime.scale(width, temperature))
    out = LogSums(np.empty(n, np.float32), np.empty(n, np.float32))
    for start in range(0, n, segment):
        at = np.arange(start - size, start + segment)
        key_at, value_at = controls.slot_sources(control, at, start, n, rng)
        values = np.where(value_at < 0, -1, stream.targets[value_at]).astype(np.int32)
        queries = np.minimum(np.arange(start, start + segment), n - 1)
        sums = _segment_log_sums(
            stream.keys[queries],
            stream.targets[queries],
            stream.keys[np.maximum(key_at, 0)],
            values,
            scale,
        )
        count = min(segment, n - start)
        for whole, part in zip(out, sums, strict=True):
            whole[start : start + count] = np.asarray(part)[:count]
    return out


@jax.jit
def _segment_log_sums(queries, targets, keys, values, scale):
    slots = jnp.arange(keys.shape[0], dtype=jnp.int32)
    return trime.log_sums(
        queries,
        keys,
        {"value": targets, "position": slots[-queries.shape[0] :]},
        {"value": values, "position": slots},
        visible=trime.before,
        scale=scale,
    )


@jax.jit
def _neighbour_log_sums(similarities, values, targets, temperature):
    return trime.neighbour_log_sums(similarities, values, targets, temperature)


def external_log_sums(
    neighbours: NeighbourValues, targets: np.ndarray, *, temperature: float = 1.0
) -> LogSums:
    """Log-sum-exps over the neighbours found in a datastore, float32 [N] twice.

    Args:
      neighbours: inner products already divided by sqrt(D), and values, [N, K].
      targets: int32 [N].
      temperature: as for `stream_log_sums`.
    """
    parts = [
        _neighbour_log_sums(*x, temperature)
        for x in _chunks(neighbours.similarities, neighbours.values, targets)
    ]
    return LogSums(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def _chunks(*arrays, size: int = 8192):
    for i in range(0, len(arrays[0]), size):
        yield tuple(x[i : i + size] for x in arrays)


def joint_log_probs(stream: StreamScores, *memories: LogSums) -> np.ndarray:
    """log p(target) normalised over the vocabulary and all the memories, float32 [N].

    A slot in two memories counts twice, as in the released code.
    """
    both = LogSums(*(np.logaddexp.reduce(x) for x in zip(*memories, strict=True)))
    return -np.asarray(trime.nll(stream.target_score, stream.log_normaliser, both))


def log_probs_by_control(
    stream: StreamScores,
    memory: TokenMemory,
    neighbours: dict[str, NeighbourValues] | None = None,
    *,
    external_temperature: float | None = None,
) -> dict[str, np.ndarray]:
    """Log-probabilities with the real memory, without one, and under each control.

    Args:
      stream: the scored stream.
      memory: its own past.
      neighbours: what a datastore adds, by control (all three at least); None: nothing.
      external_temperature: of the neighbours; None: the memory's.

    Returns:
      float32 [N] under "real", "off", "shuffled" and "foreign", and under what other
      names ``neighbours`` has (such as "exact"), which go with the real past.
    """
    pasts = {
        name: stream_log_sums(stream, memory, control=name)
        for name in (controls.REAL, controls.SHUFFLED, controls.FOREIGN)
    }
    out = {"off": stream.log_probs}
    for name in pasts | (neighbours or {}):
        memories = [pasts.get(name, pasts[controls.REAL])]
        if neighbours is not None:
            temperature = external_temperature or memory.temperature
            memories.append(
                external_log_sums(
                    neighbours[name], stream.targets, temperature=temperature
                )
            )
        out[name] = joint_log_probs(stream, *memories)
    return out


def tune_temperature(
    stream: StreamScores, memory: TokenMemory, temperatures: Sequence[float]
) -> TokenMemory:
    """The memory with the temperature of lowest perplexity; for validation data."""
    return _tune(stream, memory, temperatures, None)[0]


def tune_temperatures(
    stream: StreamScores,
    memory: TokenMemory,
    temperatures: Sequence[float],
    neighbours: NeighbourValues,
) -> tuple[TokenMemory, float]:
    """As `tune_temperature`, and the temperature of a datastore's neighbours.

    The two differ: a model has seen the texts of its datastore in training, and is more
    certain of them than of a text's own past. The released code has one for both.
    """
    return _tune(stream, memory, temperatures, neighbours)


def _tune(stream, memory, temperatures, neighbours) -> tuple[TokenMemory, float]:
    if not temperatures:
        raise UserError("There is no temperature to choose from; give at least one.")
    candidates = [memory._replace(temperature=t) for t in temperatures]
    pasts = {x: [stream_log_sums(stream, x)] for x in candidates}
    outsides: dict[float, list[LogSums]] = {memory.temperature: []}
    if neighbours is not None:
        outsides = {
            t: [external_log_sums(neighbours, stream.targets, temperature=t)]
            for t in temperatures
        }

    def mean(pair):
        memories = pasts[pair[0]] + outsides[pair[1]]
        return float(joint_log_probs(stream, *memories).mean(dtype=np.float64))

    return max(itertools.product(candidates, outsides), key=mean)


class Slots(NamedTuple):
    """The memory slots that weigh most in some predictions, heaviest first."""

    positions: np.ndarray  # int64 [P, K], predictions of the stream; -1 where absent
    similarities: np.ndarray  # float32 [P, K], h.h_j / sqrt(D)
    weights: np.ndarray  # float32 [P, K], shares of the memory's own distribution
    target_probability: np.ndarray  # float32 [P], of the target by the memory alone


def heaviest_slots(
    stream: StreamScores, memory: TokenMemory, predictions: np.ndarray, k: int
) -> Slots:
    """What the memory answered at some predictions; for looking at, one by one."""
    parts = []
    for i in predictions:
        start = i // memory.segment * memory.segment
        at = np.arange(max(0, start - memory.size), i)
        logits = stream.keys[at] @ stream.keys[i] / stream.keys.shape[1] ** 0.5
        scaled = logits / memory.temperature
        weights = np.exp(scaled - scaled.max(initial=-np.inf))
        weights = weights / max(weights.sum(), 1e-30)
        best = np.argsort(-weights, kind="stable")[:k]
        hit = float(weights[stream.targets[at] == stream.targets[i]].sum())
        pad = (0, k - len(best))
        parts.append(
            (
                np.pad(at[best], pad, constant_values=-1),
                np.pad(logits[best], pad, constant_values=-np.inf),
                np.pad(weights[best], pad),
                hit,
            )
        )
    return Slots(*(np.stack(x) for x in zip(*parts, strict=True)))
