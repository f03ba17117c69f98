"""The continuous cache at evaluation: a stream's own past, mixed in and tuned.

The past is that of TRIME (`token_memory.stream_log_sums`): each segment sees the last
``size`` tokens before it and the earlier tokens of its own.
"""

from collections.abc import Sequence

import jax
import numpy as np

from rlm_jax.errors import UserError
from rlm_jax.evaluate import controls, token_memory
from rlm_jax.evaluate.perplexity import StreamScores
from rlm_jax.evaluate.token_memory import TokenMemory
from rlm_jax.methods import continuous_cache

_mix = jax.jit(continuous_cache.mix)


def log_probs(
    stream: StreamScores,
    memory: TokenMemory,
    weight: float,
    *,
    control: str = controls.REAL,
) -> np.ndarray:
    """log p of every target, float32 [N], with the real past or a control's."""
    sums = token_memory.stream_log_sums(stream, memory, control=control)
    return np.asarray(_mix(stream.log_probs, sums, weight))


def by_control(
    stream: StreamScores, memory: TokenMemory, weight: float
) -> dict[str, np.ndarray]:
    """`log_probs` under "real", "shuffled" and "foreign"; under "off" the model's."""
    names = (controls.REAL, controls.SHUFFLED, controls.FOREIGN)
    told = {name: log_probs(stream, memory, weight, control=name) for name in names}
    return {"off": stream.log_probs, **told}


def tune(
    stream: StreamScores,
    memory: TokenMemory,
    temperatures: Sequence[float],
    weights: Sequence[float],
) -> tuple[TokenMemory, float]:
    """The temperature and lambda of lowest perplexity; for validation data.

    Raises:
      UserError: a grid is empty.
    """
    best = None
    for temperature in temperatures:
        candidate = memory._replace(temperature=temperature)
        sums = token_memory.stream_log_sums(stream, candidate)
        for weight in weights:
            mixed = np.asarray(_mix(stream.log_probs, sums, weight))
            mean = float(mixed.mean(dtype=np.float64))
            if best is None or mean > best[0]:
                best = mean, (candidate, weight)
    if best is None:
        raise UserError(
            "A grid to tune on is empty; give at least one temperature and weight."
        )
    return best[1]
