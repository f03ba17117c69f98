"""TRIME's memories at evaluation: log-sum-exps over a stream's own past and a datastore.

A trained model's keys do not depend on the memory, so one pass over the stream
(`rlm_jax.evaluate.perplexity.score_stream`) serves every memory, size, temperature and
control. Each segment sees the last ``size`` tokens before it (a first-in first-out memory,
moved on segment by segment) and the earlier tokens of its own; the temperature divides
memory logits only (released TRIME, ``--softmax-temp``).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlm_jax.evaluate import controls
from rlm_jax.evaluate.knn import NeighbourValues
from rlm_jax.evaluate.perplexity import StreamScores
from rlm_jax.ops import losses
from rlm_jax.ops.memory import LogSums, log_sums


def stream_log_sums(
    stream: StreamScores,
    *,
    size: int,
    segment: int,
    temperature: float = 1.0,
    control: str = controls.REAL,
    seed: int = 0,
) -> LogSums:
    """Log-sum-exps of each prediction over its own past: float32 [N] twice, on the host.

    Args:
      stream: the scored stream.
      size: tokens of finished segments in memory; 0 is TRIME's local memory.
      segment: predictions after which the memory moves on.
      temperature: of the memory logits h.h_j / sqrt(D).
      control: real, shuffled or foreign.
      seed: of the shuffle.
    """
    n, width = stream.keys.shape
    rng = np.random.default_rng(seed)
    scale = width**-0.5 / temperature
    out = LogSums(np.empty(n, np.float32), np.empty(n, np.float32))
    for start in range(0, n, segment):
        at = np.arange(start - size, start + segment)
        present = (at >= 0) & (at < n)
        key_at, value_at = np.where(
            present, controls.slot_sources(control, at, start, n, rng), 0
        )
        values = np.where(present, stream.targets[value_at], -1).astype(np.int32)
        queries = np.minimum(np.arange(start, start + segment), n - 1)
        sums = _segment_log_sums(
            stream.keys[queries],
            stream.targets[queries],
            stream.keys[key_at],
            values,
            jnp.float32(scale),
        )
        count = min(segment, n - start)
        for whole, part in zip(out, sums, strict=True):
            whole[start : start + count] = np.asarray(part)[:count]
    return out


def _earlier(query, slot):
    return (slot["value"] >= 0) & (slot["position"] < query["position"])


def _same_value(query, slot):
    return slot["value"] == query["value"]


@jax.jit
def _segment_log_sums(queries, targets, keys, values, scale):
    slots = jnp.arange(keys.shape[0], dtype=jnp.int32)
    return log_sums(
        queries,
        keys,
        {"value": targets, "position": slots[-queries.shape[0] :]},
        {"value": values, "position": slots},
        visible=_earlier,
        positive=_same_value,
        scale=scale,
    )


@partial(jax.jit, static_argnames="temperature")
def _neighbour_log_sums(similarities, values, targets, temperature):
    logits = similarities / temperature
    hit = values == targets[:, None]
    return LogSums(
        jax.nn.logsumexp(logits, axis=-1),
        jax.nn.logsumexp(jnp.where(hit, logits, -jnp.inf), axis=-1),
    )


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
    nll = losses.joint_nll(stream.target_score, stream.log_normaliser, both)
    return -np.asarray(nll)
