"""What refreshing a stale index adds to a training step, beside it and in its way.

    python -m benchmarks.refresh_overlap

REPLUG-LSR's retriever is trained over an index that is never refreshed, refreshed by a
worker (``overlapped``), and refreshed while training waits (``synchronous``). The
trainer has one core and the worker another. Atlas (Izacard et al. 2022, section 2.4)
spends about 0.3 of the time that it trains on encoding its 37 million passages every
1,000 steps; the number of passages is chosen so that encoding takes about that share of
the steps between two indexes. What it took is told by ``synchronous``: its ratio is one
plus that share. Questions are searched equally often in all three.
"""

import dataclasses
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record

SIZES = {
    "passages": 5_000, "words": 56, "width": 128, "layers": 2, "batch_size": 16,
    "k": 8, "length": 64, "keys_every": 40, "lag": 30, "periods": 3,
}  # fmt: skip
QUICK = {
    "passages": 64, "words": 8, "width": 16, "layers": 1, "batch_size": 2, "k": 2,
    "length": 12, "keys_every": 3, "lag": 2, "periods": 2,
}  # fmt: skip
POLICIES = ("none", "overlapped", "synchronous")


def seconds_a_step(
    policies: list[str], sizes: dict[str, int], folder: str
) -> dict[str, float]:
    """Trains in this process under some policies, on its first core.

    The worker has the second. The first period does not count: it compiles, and all
    policies encode at its start.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cores[:1])
    os.environ["JAX_PLATFORMS"] = "cpu"
    return {policy: _run(policy, cores, sizes, folder) for policy in policies}


def _run(policy: str, cores: list[int], sizes: dict[str, int], folder: str) -> float:
    from rlm_jax.data import contrastive
    from rlm_jax.data import passages as passages_lib
    from rlm_jax.methods import replug_lsr
    from rlm_jax.models.encoder import EncoderConfig, embedder
    from rlm_jax.recipes import stale_training
    from rlm_jax.retrievers import encoder_towers
    from rlm_jax.retrievers.background import WorkerConfig
    from rlm_jax.retrievers.dense import SearchConfig
    from rlm_jax.retrievers.encoder_towers import TextConfig, Tower
    from rlm_jax.train.loop import TrainConfig
    from rlm_jax.train.optim import OptimConfig
    from rlm_jax.train.rounds import RefreshConfig

    passages = passages_lib.load(f"jsonl:{folder}/passages.jsonl", progress=False)
    tokenizer = encoder_towers.train_tokenizer(passages, 1000)
    length, k, every = sizes["length"], sizes["k"], sizes["keys_every"]
    encoder = EncoderConfig(
        tokenizer.vocab_size, num_layers=sizes["layers"], width=sizes["width"],
        num_heads=max(1, sizes["width"] // 64), feed_forward_width=4 * sizes["width"],
        max_length=length, pad_id=tokenizer.pad_id, normalise=True,
    )  # fmt: skip
    import jax

    params = jax.device_get(jax.jit(embedder(encoder).init)(jax.random.key(0)))

    @dataclasses.dataclass
    class Config:
        batch_size: int = sizes["batch_size"]
        refresh: RefreshConfig = dataclasses.field(
            default_factory=lambda: {
                "none": RefreshConfig("synchronous", (0,), every),
                "overlapped": RefreshConfig("overlapped", (every,), 0, sizes["lag"]),
                "synchronous": RefreshConfig("synchronous", (every,)),
            }[policy]
        )
        worker: WorkerConfig = dataclasses.field(
            default_factory=lambda: WorkerConfig(cores=tuple(cores[1:]))
        )
        optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
        train: TrainConfig = dataclasses.field(
            default_factory=lambda: TrainConfig(
                # One more, so that the last batch is made after the last period.
                steps=sizes["periods"] * every + 1,
                log_every=0,
                checkpoint_every=0,
            )  # fmt: skip
        )

    began: dict[int, float] = {}

    def questions(step: int) -> list[str]:
        rows = np.random.default_rng(step).integers(
            0, len(passages), sizes["batch_size"]
        )
        return [passages[row].text[:60] for row in rows]

    def batch(step: int, rows: np.ndarray, candidates: np.ndarray) -> dict[str, Any]:
        began[step] = time.perf_counter()

        def padded(side, texts):
            ids = tokenizer.encode(texts, max_length=length)
            return contrastive.padded(side, ids, length, tokenizer.pad_id)

        of_passages = padded("passage", [passages[i].text for i in candidates.flat])
        return {
            **padded("query", questions(step)),
            **{n: x.reshape(*candidates.shape, -1) for n, x in of_passages.items()},
            "teacher_scores": np.sin(candidates).astype(np.float32),
            "present": candidates >= 0,
            "weight": np.ones(len(rows), np.float32),
        }

    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        stale_training.train(
            replug_lsr.replug_lsr(replug_lsr.REPLUGLSRConfig(encoder, k=k)),
            stale_training.Task(questions, batch, k),
            Config(), Path(workdir), passages=passages,
            tower=Tower(encoder, params, tokenizer),
            text=TextConfig("none", length, length),
            search=SearchConfig(index="exact"), initial_params=params,
        )  # fmt: skip
    steps = sizes["periods"] * every
    return (began[steps] - began[every - 1]) / (steps - every + 1)


def write_passages(folder: Path, sizes: dict[str, int]) -> None:
    """Passages of random words."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("aeioustrnl"), 5)) for _ in range(2000)]
    lines = (
        json.dumps({"id": str(i), "text": " ".join(random.choice(words, size))})
        for i, size in enumerate([sizes["words"]] * sizes["passages"])
    )
    (folder / "passages.jsonl").write_text("\n".join(lines))


def measure(quick: bool) -> dict[str, Any]:
    sizes = QUICK if quick else SIZES
    turns: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_passages(Path(folder), sizes)
        for turn in range(1 if quick else 3):
            order = POLICIES if turn % 2 == 0 else POLICIES[::-1]
            turns.append(
                record.in_fresh_process(
                    "benchmarks.refresh_overlap",
                    "seconds_a_step",
                    order,
                    sizes,
                    folder,
                )
            )
    ratios = {
        policy: [turn[policy] / turn["none"] for turn in turns]
        for policy in POLICIES[1:]
    }
    medians = {policy: statistics.median(some) for policy, some in ratios.items()}
    return {
        "sizes": sizes,
        "cores": min(2, record.num_cores()),
        "claims": {
            "time per step, overlapped / none": record.claim(
                medians["overlapped"], at_most=1.10
            )
        },
        "ratios": ratios,
        "encoding, share of the training between two indexes": round(
            medians["synchronous"] - 1, 4
        ),
        "seconds_per_step": {
            policy: statistics.median(turn[policy] for turn in turns)
            for policy in POLICIES
        },
    }


if __name__ == "__main__":
    record.main("refresh_overlap", measure)
