"""A tiny next-token model for the trainer's tests, and a run to be killed.

``python -m tests.train.toy KIND WORKDIR STEPS KILL_AT`` trains, and kills itself by
SIGKILL before taking the batch after step KILL_AT, once that step's checkpoint is
complete.
"""

import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlm_jax.method import Method, MovingState
from rlm_jax.ops import collectives
from rlm_jax.train import loop, optim

VOCAB, DIM = 16, 8


def method(traces: list | None = None, dropout: float = 0.0) -> Method:
    """A bigram model; ``traces`` grows by one for every time the loss is traced."""

    def init(key):
        return {
            "embed": jax.random.normal(key, (VOCAB, DIM)),
            "out": {"kernel": jnp.zeros((DIM, VOCAB)), "bias": jnp.zeros(VOCAB)},
        }

    def loss(params, batch, key, *, axis=None):
        if traces is not None:
            traces.append(axis)
        hidden = params["embed"][batch["tokens"]]
        kept = jax.random.bernoulli(key, 1 - dropout, hidden.shape)
        logits = (hidden * kept) @ params["out"]["kernel"] + params["out"]["bias"]
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return {"loss": (jnp.sum(nll * batch["mask"]), jnp.sum(batch["mask"]))}

    return Method(init, loss, loss)


def moving_method(dropout: float = 0.0) -> Method:
    """`method` against slow parameters and a queue of tokens, both in its state."""
    base = method(dropout=dropout)

    def start(params, key):
        return {
            "slow": params["out"]["bias"],
            "queue": jax.random.randint(key, (3,), 0, VOCAB),
        }

    def update(params, state, batch, key, *, axis=None):
        slow = 0.9 * state["slow"] + 0.1 * params["out"]["bias"]
        noisy = slow + 0.01 * jax.random.normal(key, slow.shape)
        newest = collectives.gather(batch["tokens"][:, 0], axis)[-1:]
        queue = jnp.concatenate([state["queue"][1:], newest])
        return {"slow": noisy, "queue": queue}, {**batch, **state}

    def loss(params, batch, key, *, axis=None):
        sums = base.loss(params, batch, key, axis=axis)
        pull = params["out"]["bias"] - batch["slow"]
        pulled = (pull[batch["queue"]] ** 2 + pull[batch["queue"]]).sum()
        total, weight = sums["loss"]
        return {**sums, "loss": (total + weight * pulled, weight)}

    return base._replace(loss=loss, moving=MovingState(start, update))


METHODS = {"plain": method, "moving": moving_method}


def batch_at(step: int, rows: int = 8, length: int = 10) -> dict[str, np.ndarray]:
    """Counting modulo VOCAB from random starts, unevenly masked."""
    random = np.random.default_rng(step)
    start = random.integers(0, VOCAB, (rows, 1))
    tokens = ((start + np.arange(length + 1)) % VOCAB).astype(np.int32)
    lengths = random.integers(1, length + 1, (rows, 1))
    mask = (np.arange(length) < lengths).astype(np.float32)
    return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "mask": mask}


def run(workdir, steps: int, batch_at=batch_at, method=None, **options):
    """Trains the model with everything that a resumed run has to get right."""
    config = optim.OptimConfig(learning_rate=0.03, warmup_steps=3, weight_decay=0.1)
    every = {"log_every": 5, "checkpoint_every": 5, **options.pop("every", {})}
    return loop.train(
        method or globals()["method"](dropout=0.2),
        optim.optimizer(config, 10),
        batch_at,
        config=loop.TrainConfig(steps=steps, seed=3, **every),
        workdir=workdir,
        schedule=optim.schedule(config, 10),
        **options,
    )


def _main() -> None:
    kind, workdir = sys.argv[1:3]
    steps, kill_at = int(sys.argv[3]), int(sys.argv[4])

    def kill(params, done):
        while not os.path.isdir(os.path.join(workdir, "checkpoints", str(done))):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    method = METHODS[kind](dropout=0.2)
    run(workdir, steps, method=method, boundaries={kill_at: kill})


if __name__ == "__main__":
    _main()
