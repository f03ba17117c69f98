"""What refreshing a stale index adds to a step of Atlas, beside it and in its way.

    python -m benchmarks.refresh_overlap

A reader and its retriever learn from hidden spans (Atlas's pre-training) over an index
that is never refreshed, refreshed by a worker (``overlapped``), and refreshed while
training waits (``synchronous``). The trainer has one core and the worker another.

``atlas``: Izacard et al. 2022, section 2.4, spend about 0.3 of the time that they train
on encoding 37 million passages every 1,000 steps. Here the number of passages is chosen
so that encoding takes about that share of the steps between two indexes.

``realm``: Guu et al. 2020, section 3.3, refresh about every 500 steps, beside the
training, as fast as they can encode. Here the worker is busy for most of the 500 steps.

What encoding took is told by ``synchronous``: its ratio is one plus that share.
Questions are searched equally often in all three.
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
    "atlas": {
        "passages": 2_000, "words": 56, "width": 128, "layers": 2, "batch_size": 4,
        "k": 4, "length": 64, "keys_every": 40, "lag": 30, "periods": 3, "turns": 3,
    },
    "realm": {
        "passages": 10_000, "words": 28, "width": 64, "layers": 2, "batch_size": 2,
        "k": 4, "length": 32, "keys_every": 500, "lag": 450, "periods": 2, "turns": 2,
    },
}  # fmt: skip
QUICK = {
    "passages": 64, "words": 12, "width": 16, "layers": 1, "batch_size": 2, "k": 2,
    "length": 16, "keys_every": 3, "lag": 2, "periods": 2, "turns": 1,
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
    import jax

    from rlm_jax.data import passages as passages_lib
    from rlm_jax.data import problems, reader_tokens
    from rlm_jax.data.problems import Lengths
    from rlm_jax.methods import atlas
    from rlm_jax.methods.atlas import AtlasConfig
    from rlm_jax.methods.fid import FiDConfig
    from rlm_jax.models.encoder import EncoderConfig
    from rlm_jax.models.encoder_decoder import EncoderDecoderConfig
    from rlm_jax.recipes import stale_training
    from rlm_jax.retrievers import encoder_towers, trained_towers
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
        max_length=2 * length, pad_id=tokenizer.pad_id, normalise=True,
    )  # fmt: skip
    reads = reader_tokens.of(tokenizer)
    small = EncoderDecoderConfig(
        dataclasses.replace(encoder, normalise=False),
        num_decoder_layers=1,
        start_id=reads.start_id,
        end_id=reads.end_id,
    )
    config = AtlasConfig(
        FiDConfig("encoder_decoder", encoder_decoder=small, k=k), encoder, "shared"
    )
    method, text = atlas.atlas(config), TextConfig("none", length, length)
    params = jax.device_get(jax.jit(method.init)(jax.random.key(0)))
    tower = Tower(encoder, params["retriever"], tokenizer)
    source = problems.of_texts(
        "spans", passages, reads, Lengths(2 * length, 16),
        batch_size=sizes["batch_size"], num_judged=0, left_out="own",
        text_length=length // 2,
    )  # fmt: skip
    rows = trained_towers.TextRows(passages, tokenizer, encoder, text)
    batch_of = source.beside(rows)

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

    def batch(step: int, of: np.ndarray, candidates: np.ndarray) -> dict[str, Any]:
        began[step] = time.perf_counter()
        drawn = source.at(0, step, of)
        return batch_of(drawn, trained_towers.without_own(candidates, drawn.own, k))

    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        stale_training.train(
            method,
            stale_training.Task(lambda step: source.at(0, step).texts, batch, k + 1),
            Config(), Path(workdir), passages=passages, tower=tower, text=text,
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


def _schedule(sizes: dict[str, int]) -> dict[str, Any]:
    """The figures of one schedule."""
    turns: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_passages(Path(folder), sizes)
        for turn in range(sizes["turns"]):
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
        "ratio": medians,
        "ratios": ratios,
        "encoding, share of the training between two indexes": round(
            medians["synchronous"] - 1, 4
        ),
        "seconds_per_step": {
            policy: statistics.median(turn[policy] for turn in turns)
            for policy in POLICIES
        },
    }


def measure(quick: bool) -> dict[str, Any]:
    schedules = {
        name: _schedule(QUICK if quick else sizes) for name, sizes in SIZES.items()
    }
    return {
        "cores": min(2, record.num_cores()),
        "claims": {
            f"time per step, overlapped / none ({name})": record.claim(
                figures["ratio"]["overlapped"], at_most=1.10
            )
            for name, figures in schedules.items()
        },
        "schedules": schedules,
    }


if __name__ == "__main__":
    record.main("refresh_overlap", measure)
