"""A retriever in training over a stale index, in small: a run to be killed.

``python -m tests.retrievers.stale_run FOLDER POLICY`` trains in ``FOLDER``; the policy
is synchronous or overlapped. A frozen reader is played by a function of (question,
passage).
"""

import contextlib
import json
import pathlib
import sys
import time

import jax
import numpy as np

from rlm_jax.data import contrastive
from rlm_jax.data import passages as passages_lib
from rlm_jax.methods import replug_lsr
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.retrieval import encode_stream, refresh
from rlm_jax.retrievers import encoder_towers
from rlm_jax.retrievers.background import Worker, WorkerConfig
from rlm_jax.retrievers.dense import SearchConfig
from rlm_jax.retrievers.encoder_towers import TextConfig, Tower
from rlm_jax.retrievers.stale_index import StaleIndex
from rlm_jax.storage import atomic
from rlm_jax.train import fit, rounds
from rlm_jax.train.loop import TrainConfig
from rlm_jax.train.optim import OptimConfig
from rlm_jax.train.rounds import RefreshConfig, Refresher

STEPS, ROWS, K, LENGTH = 12, 4, 3, 12
TEXT, SEARCH = TextConfig("none", LENGTH, LENGTH), SearchConfig(batch_tokens=96)
REFRESH = {
    "synchronous": RefreshConfig("synchronous", (4,), 2),
    "overlapped": RefreshConfig("overlapped", (4,), 2, lag=2),
}
WORDS = "red green blue old new cat dog house tree river walks sees sings on by".split()


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
    method = replug_lsr.replug_lsr(replug_lsr.REPLUGLSRConfig(config))
    params = jax.jit(method.init)(jax.random.key(0))
    return Tower(config, jax.device_get(params), tokenizer)


def run(folder: pathlib.Path, policy: str, *, shared: pathlib.Path, delay: float = 0.0):
    """Trains, or goes on; the parameters.

    Args:
      folder: the run's own.
      shared: holds the collection.
      delay: seconds that each batch takes longer.
    """
    passages = collection(shared)
    initial = tower(passages)
    method = replug_lsr.replug_lsr(
        replug_lsr.REPLUGLSRConfig(initial.config, gamma=0.5, beta=0.5, k=K)
    )
    assert method.retrieval is not None
    worker = Worker(WorkerConfig()) if policy == "overlapped" else None
    stale = StaleIndex(
        folder / "indexes", passages, initial, method.retrieval.encode_queries,
        TEXT, SEARCH,
        worker=worker, shard_size=16,
    )  # fmt: skip
    found = folder / "rounds"
    turns = rounds.split(
        rounds.lay_out(REFRESH[policy], STEPS), refresh.searched(found)
    )
    generations: dict[str, str] = {}
    if (folder / "generations.json").exists():
        generations = json.loads((folder / "generations.json").read_text())

    def asked(step: int) -> np.ndarray:
        return np.random.default_rng(step).integers(0, len(passages), ROWS)

    def search(turn, queries):
        path = folder / f"indexes/step_{turn.keys_step}/index/vectors/manifest.json"
        generations[str(turn.keys_step)] = json.loads(path.read_text())["checksum"]
        atomic.write_json(folder / "generations.json", generations)
        if turn.queries_step != turn.start:
            queries = stale.query_params(turn.queries_step)

        def ids():
            steps = range(turn.start, turn.stop)
            rows = np.concatenate([asked(step) for step in steps])
            texts = [passages[row].text[:20] for row in rows]
            return stale.find(turn.keys_step, queries, texts, K).ids.reshape(
                len(steps), ROWS, K
            )

        identity = {
            "keys_step": turn.keys_step,
            "queries": encode_stream.fingerprint(queries),
        }
        refresh.write_candidates(found, turn.start, identity, ids)

    def batches(turn):
        ids = refresh.candidates(found, turn.start)

        def batch_at(step):
            time.sleep(delay)
            places, rows = asked(step), ids[step - turn.start]
            encode = initial.tokenizer.encode
            pad = initial.tokenizer.pad_id
            texts = [passages[row].text for row in rows.reshape(-1)]
            of_passages = contrastive.padded(
                "passage", encode(texts, max_length=LENGTH), LENGTH, pad
            )
            questions = [passages[row].text[:20] for row in places]
            # The reader's likelihoods: any function of question and passage will do.
            likes = np.sin(np.outer(places + 1, np.arange(1, 1 + len(passages))))
            return {
                **contrastive.padded(
                    "query", encode(questions, max_length=LENGTH), LENGTH, pad
                ),
                **{n: x.reshape(ROWS, K, -1) for n, x in of_passages.items()},
                "lm_scores": np.take_along_axis(likes, rows, 1).astype(np.float32),
                "present": rows >= 0,
                "weight": np.ones(ROWS, np.float32),
            }

        return batch_at

    def keep(steps, saved):
        stale.keep(steps)
        if saved:
            refresh.remove_candidates(found, saved[0])

    refresher = Refresher(stale.start, stale.finish, search, batches, keep)
    with contextlib.closing(worker) if worker else contextlib.nullcontext():
        params = fit.train(
            method,
            None,
            OptimConfig(learning_rate=0.01, warmup_steps=2),
            TrainConfig(steps=STEPS, log_every=1, checkpoint_every=3),
            folder,
            initial_params=initial.params,
            boundaries=rounds.boundaries(turns, method.retrieval, refresher, folder),
        )
    keep({turns[-1].keys_step}, [turns[-1].start])
    return params


if __name__ == "__main__":
    here = pathlib.Path(sys.argv[1])
    run(here / "run", sys.argv[2], shared=here.parent, delay=float(sys.argv[3]))
