"""A retriever in training over a stale index, in small: a run to be killed.

``python -m tests.retrievers.stale_run FOLDER POLICY DELAY`` trains in ``FOLDER/run``
on the collection in the folder around it. The policy is one of `CONFIGS`, and every
batch takes DELAY seconds longer. The reader is a function of (question, passage).
"""

import dataclasses
import json
import pathlib
import sys
import time

import jax
import numpy as np

from rlm_jax import processes
from rlm_jax.data import contrastive
from rlm_jax.data import passages as passages_lib
from rlm_jax.methods import replug_lsr
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.recipes import stale_training
from rlm_jax.retrievers import encoder_towers
from rlm_jax.retrievers.background import WorkerConfig
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig, Tower
from rlm_jax.storage import atomic
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig
from rlm_jax.train.rounds import RefreshConfig

STEPS, K, LENGTH = 12, 3, 12
BOUND = 0.75
TEXT, SEARCH = TextConfig("none", LENGTH, LENGTH), SearchConfig(batch_tokens=96)
WORDS = "red green blue old new cat dog house tree river walks sees sings on by".split()


@dataclasses.dataclass
class Config:
    """Keys every 4 steps, queries every 2, a checkpoint every 3."""

    refresh: RefreshConfig
    batch_size: int = 4
    worker: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)
    optim: OptimConfig = dataclasses.field(
        default_factory=lambda: OptimConfig(learning_rate=0.01, warmup_steps=2)
    )
    train: TrainConfig = dataclasses.field(
        default_factory=lambda: TrainConfig(STEPS, log_every=1, checkpoint_every=3)
    )


CONFIGS = {
    "synchronous": Config(RefreshConfig("synchronous", (4,), 2)),
    "overlapped": Config(RefreshConfig("overlapped", (4,), 2, lag=2)),
    "bounded": Config(
        RefreshConfig("overlapped", (3,), lag=1, min_recall=BOUND, sample=48)
    ),
    "external": Config(RefreshConfig("external", (2,))),
}


def collection(folder: pathlib.Path, num: int = 96) -> passages_lib.Passages:
    """Passages of random words."""
    path = folder / "passages.jsonl"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        lines = [
            json.dumps({"id": str(i), "text": " ".join(random.choice(WORDS, 8))})
            for i in range(num)
        ]
        atomic.write_bytes(path, "\n".join(lines).encode())
    return passages_lib.load(f"jsonl:{path}", progress=False)


def tower(passages: passages_lib.Passages) -> Tower:
    """A small encoder of random weights."""
    tokenizer = encoder_towers.train_tokenizer(passages, 120)
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id, num_layers=1,
        width=16, num_heads=2, feed_forward_width=24, max_length=16, dropout=0.0,
        normalise=True,
    )  # fmt: skip
    params = jax.jit(method(config).init)(jax.random.key(0))
    return Tower(config, jax.device_get(params), tokenizer)


def method(encoder: EncoderConfig):
    return replug_lsr.replug_lsr(
        replug_lsr.REPLUGLSRConfig(encoder, gamma=0.5, beta=0.5, k=K)
    )


def run(
    folder: pathlib.Path,
    config: Config,
    shared: pathlib.Path,
    *,
    delay: float = 0.0,
    wrap=lambda method: method,
):
    """Trains in ``folder``, or goes on, on the collection in ``shared``."""
    passages = collection(shared)
    initial = tower(passages)

    def asked(step: int) -> np.ndarray:
        random = np.random.default_rng(step)
        return random.integers(0, len(passages), config.batch_size)

    def questions(step: int) -> list[str]:
        _note_generations(folder)
        return [passages[row].text[:20] for row in asked(step)]

    def padded(side: str, texts: list[str]) -> dict[str, np.ndarray]:
        rows = initial.tokenizer.encode(texts, max_length=LENGTH)
        return contrastive.padded(side, rows, LENGTH, initial.tokenizer.pad_id)

    def batch(step: int, rows: np.ndarray, candidates: np.ndarray):
        time.sleep(delay)
        places = asked(step)[rows]
        likes = np.sin(np.outer(places + 1, np.arange(1, 1 + len(passages))))
        texts = [passages[row].text for row in candidates.flat]
        of_passages = padded("passage", texts)
        return {
            **padded("query", [passages[row].text[:20] for row in places]),
            **{n: x.reshape(*candidates.shape, -1) for n, x in of_passages.items()},
            "teacher_scores": np.take_along_axis(likes, candidates, 1).astype(
                np.float32
            ),
            "present": candidates >= 0,
            "weight": np.ones(len(rows), np.float32),
        }

    return stale_training.train(
        wrap(method(initial.config)),
        stale_training.Task(
            questions, batch, K, sample=lambda: [p.text[:20] for p in passages[:9]]
        ),
        config,
        folder,
        passages=passages,
        tower=initial,
        text=TEXT,
        search=SEARCH,
        initial_params=initial.params,
        shard_size=16,
    )


def _note_generations(folder: pathlib.Path) -> None:
    """Keeps the digest of every index, which goes when another takes its place."""
    path = folder / "generations.json"
    noted = json.loads(path.read_text()) if path.exists() else {}
    for manifest in folder.glob("indexes/step_*/index/vectors/manifest.json"):
        step = manifest.parents[2].name
        if step.removeprefix("step_").isdigit():
            noted[step] = json.loads(manifest.read_text())["checksum"]
    atomic.write_json(path, dict(sorted(noted.items())))


if __name__ == "__main__":
    processes.initialise()
    here = pathlib.Path(sys.argv[1])
    run(here / "run", CONFIGS[sys.argv[2]], here.parent, delay=float(sys.argv[3]))
