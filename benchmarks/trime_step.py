"""What TRIME's local memory adds to a training step of the plain language model.

    python -m benchmarks.trime_step

12 layers of width 512 on segments of 512 tokens, AdamW with clipping, through the same
train step. The vocabulary is the 4,096 of the tiny presets: the smaller it is, the more
the memory weighs.
"""

import functools

import jax
import numpy as np

from benchmarks import record
from rlm_jax.method import Method
from rlm_jax.methods import lm, trime
from rlm_jax.models.decoder import modern
from rlm_jax.train import optim, parallel, step

SIZES = {
    "num_layers": 12, "width": 512, "num_heads": 8, "feed_forward_width": 2048,
    "vocab_size": 4096,
}  # fmt: skip
QUICK = {
    "num_layers": 2, "width": 64, "num_heads": 2, "feed_forward_width": 128,
    "vocab_size": 256,
}  # fmt: skip


def random_batch(batch_size: int, length: int, vocab_size: int) -> dict:
    """A language-model batch of random tokens in which none is masked."""
    shape = (batch_size, length + 1)
    ids = np.random.default_rng(0).integers(0, vocab_size, shape, np.int32)
    rows = np.arange(batch_size, dtype=np.int32)
    return {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "mask": np.ones((batch_size, length), np.float32),
        "segment": rows,
        "group": rows,
    }


def stepper(method: Method, batch: dict):
    """() -> sums; each call is a train step."""
    optimizer = optim.optimizer(optim.OptimConfig(), total_steps=1000)
    run = parallel.parallelise(
        functools.partial(step.train_step, method=method, optimizer=optimizer, seed=0)
    )
    params = jax.jit(method.init)(jax.random.key(0))
    carried = [parallel.replicate(step.init(params, optimizer))]

    def one_step():
        carried[0], sums = run(carried[0], batch)
        return carried[0], sums

    return one_step


def measure(quick: bool) -> dict:
    sizes = QUICK if quick else SIZES
    batch_size, length = (2, 64) if quick else (4, 512)
    decoder = modern(**sizes)
    batch = random_batch(batch_size, length, decoder.vocab_size)
    steppers = {
        "TRIME_local": stepper(trime.trime(trime.TrimeConfig(decoder)), batch),
        "plain": stepper(lm.lm(lm.LMConfig(decoder)), batch),
    }
    for one_step in steppers.values():
        jax.block_until_ready(one_step())  # compiles
    time = record.interleaved(
        {name: record.timed(one_step) for name, one_step in steppers.items()},
        rounds=2 if quick else 11,
    )
    return {
        "sizes": {**sizes, "batch_size": batch_size, "length": length},
        "claims": {
            "step time, TRIME_local / plain": record.claim(
                time["ratio"]["median"], at_most=1.15
            )
        },
        "time": time,
    }


if __name__ == "__main__":
    record.main("trime_step", measure)
