"""A RETRO that starts warm reads its neighbours; one that starts cold does not yet.

Rows are random, so that nothing but a neighbour tells the next token: a model that does
not read stays at the logarithm of the vocabulary's size.
"""

import functools
import math

import jax
import numpy as np
import pytest

from rlm_jax.methods import lm, retro
from rlm_jax.models.decoder import modern
from rlm_jax.models.neighbours import NeighbourEncoderConfig
from rlm_jax.train import optim, step

pytestmark = pytest.mark.slow

ROWS, LENGTH, VOCAB, M, K = 16, 64, 64, 16, 2


def repeating(seed):
    """Rows that begin again after some tokens; what is repeated is to be predicted."""
    random = np.random.default_rng([0, seed])
    period = random.integers(LENGTH // 4, LENGTH * 3 // 4, (ROWS, 1))
    # No word twice before it is repeated, so that what follows is certain.
    words = random.permuted(
        np.tile(np.arange(VOCAB, dtype=np.int32), (ROWS, 1)), axis=1
    )
    places = np.arange(LENGTH + 1)
    row = np.take_along_axis(words, places % period, axis=1)
    return as_batch(row, places[1:] > period)


def told_by_a_neighbour(seed):
    """Rows whose windows stand, moved by some places, in one of K neighbours."""
    random = np.random.default_rng([1, seed])
    row = random.integers(VOCAB, size=(ROWS, LENGTH + 1), dtype=np.int32)
    chunks = LENGTH // M
    neighbours = random.integers(VOCAB, size=(ROWS, chunks, K, 2 * M), dtype=np.int32)
    starts = M * np.arange(chunks) + random.integers(M // 2, size=(ROWS, chunks))
    at = np.minimum(starts[..., None] + np.arange(2 * M), LENGTH)
    r, c = np.indices((ROWS, chunks))
    neighbours[r, c, random.integers(K, size=(ROWS, chunks))] = row[r[..., None], at]
    batch = as_batch(row, np.broadcast_to(np.arange(LENGTH) >= M - 1, (ROWS, LENGTH)))
    mask = np.ones_like(neighbours)
    return {**batch, "neighbours": neighbours, "neighbour_mask": mask}


def as_batch(row, mask):
    return {
        "tokens": row[:, :-1],
        "targets": row[:, 1:],
        "mask": mask.astype(np.float32),
    }


def train(method, params, batch, steps, enough=0.0):
    """(params, the mean loss of the last 20 steps); ends where that is ``enough``."""
    adamw = optim.optimizer(
        optim.OptimConfig(learning_rate=3e-3, schedule="constant", warmup_steps=30),
        steps,
    )
    one = functools.partial(step.train_step, method=method, optimizer=adamw, seed=0)
    one = jax.jit(one)
    state, losses = step.init(params, adamw), []
    for i in range(steps):
        state, sums = one(state, batch(i))
        losses.append(float(sums["loss"][0] / sums["loss"][1]))
        if np.mean(losses[-20:]) < enough:
            break
    return state.params, np.mean(losses[-20:])


@functools.cache
def copying():
    """A decoder that has learned to find what followed the same word before."""
    method = lm.lm(lm.LMConfig(decoder()))
    params, loss = train(
        method, jax.jit(method.init)(jax.random.key(0)), repeating, 1500, 0.5
    )
    assert loss < 0.5
    return jax.device_get(params)


def decoder():
    return modern(
        vocab_size=VOCAB, num_layers=2, width=64, num_heads=2, feed_forward_width=128
    )


@pytest.mark.parametrize("warm", [True, False])
def test_only_a_warm_start_reads_within_120_steps(warm):
    config = retro.RetroConfig(
        decoder(),
        NeighbourEncoderConfig(num_layers=1),
        chunk_length=M,
        k=K,
        cca_layers=(2,),
    )
    method = retro.retro(config)
    init = jax.device_get(jax.jit(method.init)(jax.random.key(1)))
    initial = retro.around(copying(), init)
    if warm:
        initial = retro.warm_started(config, initial)
    _, loss = train(method, initial, told_by_a_neighbour, 120)
    assert loss < 1 if warm else loss > 0.9 * math.log(VOCAB)
