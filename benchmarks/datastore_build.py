"""Building a datastore against the evaluation's forward pass over the same windows.

    python -m benchmarks.datastore_build

Both read a memory-mapped stream of random tokens through the decoder of the tiny
presets. The clock starts with the second batch, so that neither side is charged for
compilation, and stops when the last score is on the host, or the datastore published.
A build is repeated in fresh processes for a short and a long stream: its memory is
bounded by a shard.
"""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import record
from rlm_jax.methods import knn_lm
from rlm_jax.models.decoder import modern
from rlm_jax.retrieval import encode_stream

SIZES = {
    "num_layers": 4, "width": 256, "num_heads": 4, "feed_forward_width": 1024,
    "vocab_size": 4096,
}  # fmt: skip
WINDOWS: dict[str, Any] = {"window": 512, "stride": 256, "batch_size": 8}
SHARD = 16_384
QUICK_SIZES = SIZES | {"num_layers": 1, "width": 64, "feed_forward_width": 64}
QUICK_WINDOWS: dict[str, Any] = {"window": 32, "stride": 16, "batch_size": 4}
QUICK_SHARD = 512


def settings(quick: bool):
    """(sizes of the decoder, windows, entries a shard)."""
    if quick:
        return QUICK_SIZES, QUICK_WINDOWS, QUICK_SHARD
    return SIZES, WINDOWS, SHARD


def write_stream(path: Path, num_tokens: int, vocab_size: int) -> np.ndarray:
    """Random tokens on disk, memory-mapped."""
    tokens = np.random.default_rng(0).integers(0, vocab_size, num_tokens, np.int32)
    tokens.tofile(path)
    return np.memmap(path, np.int32, "r")


class Clock:
    """Wraps an iterator of batches; time and memory count from the second on."""

    def __init__(self):
        self.wall = self.processor = self.memory = 0.0

    def __call__(self, batches):
        for i, batch in enumerate(batches):
            if i == 1:
                self.memory = record.start_of_memory()
                self.wall, self.processor = time.perf_counter(), time.process_time()
            yield batch

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.wall, time.process_time() - self.processor


def sides(quick: bool, tokens: np.ndarray, folder: Path):
    """The two things to time, each () -> seconds, and what builds a datastore."""
    sizes, windows, shard = settings(quick)
    method = knn_lm.knn_lm(knn_lm.KnnLMConfig(modern(**sizes)))
    score = method.score
    assert score is not None
    params = jax.jit(method.init)(jax.random.key(0))

    def evaluate():
        clock = Clock()
        for _ in encode_stream.encode_stream(
            score, params, tokens, wrap=clock, **windows
        ):
            pass
        return clock.read()

    def build(clock: Clock | None = None):
        clock = clock or Clock()
        encode_stream.build_datastore(
            lambda params, batch: score(params, batch).keys, params, tokens, folder,
            shard_size=shard, identity={}, wrap=clock, **windows,
        )  # fmt: skip
        spent = clock.read()
        shutil.rmtree(folder)
        return spent

    return {"evaluation": evaluate, "datastore": build}


def build_memory(quick: bool, num_shards: int) -> float:
    """MB that a build of so many shards adds to this process; see `Clock`."""
    sizes, _, shard = settings(quick)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        num_tokens = num_shards * shard + 1
        tokens = write_stream(path / "tokens", num_tokens, sizes["vocab_size"])
        build = sides(quick, tokens, path / "store")["datastore"]
        clock = Clock()
        build(clock)
        return round(record.added_memory(clock.memory), 2)


def measure(quick: bool) -> dict:
    sizes, windows, shard = settings(quick)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        num_tokens = (2 if quick else 4) * shard + 1
        tokens = write_stream(path / "tokens", num_tokens, sizes["vocab_size"])
        spent = record.interleaved(
            sides(quick, tokens, path / "store"), rounds=2 if quick else 5
        )
    few, many = (2, 4) if quick else (4, 16)
    memory = {
        f"{count} shards": record.in_fresh_process(
            "benchmarks.datastore_build", "build_memory", quick, count
        )
        for count in (few, many)
    }
    short, long = memory.values()
    one_shard = shard * sizes["width"] * 2 / 1e6
    return {
        "sizes": {**sizes, **windows, "shard_size": shard, "num_tokens": num_tokens},
        "claims": {
            "tokens/s, datastore / evaluation": record.claim(
                spent["ratio"]["median"], at_least=0.8
            ),
            f"growth of added memory, {few} to {many} shards, in shards": record.claim(
                max(long - short, 0) / one_shard, at_most=1.0
            ),
        },
        "shard_mb": round(one_shard, 2),
        "time": spent,
        "added_mb": memory,
    }


if __name__ == "__main__":
    record.main("datastore_build", measure)
