"""Losses of DPR and TRIME over ranks, one real device each, for the golden arrays."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlm_jax.ops import collectives, vocabulary
from tests.methods.test_dpr import sums_of
from tests.methods.test_trime_golden import VARIANTS, batch_of, per_token

Arrays = dict[str, np.ndarray]

# Name -> (variant of `tests.methods.test_trime_golden`, remote gradients).
TRIME = {
    "ext_own_on": ("ext_own_on", False),
    "ext_own_off": ("ext_own_off", False),
    "long_1doc": ("long_1doc", False),
    "long_2docs": ("long_2docs", False),
    "ext_own_on_flow": ("ext_own_on", True),
}


def count(dpr_nll: Arrays, trime_multi_rank: Arrays) -> int:
    """The largest number of ranks in the golden arrays."""
    return max(len(dpr_nll["ddp_q"]), len(trime_multi_rank["targets"]))


def over_devices(step, ranks: int, **options):
    return jax.pmap(step, axis_name="rank", devices=jax.devices()[:ranks], **options)


def dpr(z: Arrays) -> Arrays:
    """Mean loss and its gradients, with remote gradients and with a rank's own."""
    questions, passages = (z[f"ddp_{name}"].astype(np.float32) for name in ("q", "ctx"))
    out = {}
    for way in ("remote", "own"):

        def step(questions, passages, way=way):
            def loss(questions, passages):
                return sums_of(questions, passages, "rank", way == "remote")

            gradient, sums = jax.grad(loss, (0, 1), has_aux=True)(questions, passages)
            total, weight = collectives.total(sums["loss"], "rank")
            return jax.tree.map(lambda g: g / weight, gradient), total / weight

        gradient, mean = over_devices(step, len(questions))(questions, passages)
        out[f"{way}_loss"] = np.asarray(mean)
        out[f"{way}_grad_q"], out[f"{way}_grad_ctx"] = map(np.asarray, gradient)
    return out


def trime(z: Arrays) -> Arrays:
    """Loss of each token, and the gradients of each rank's sum."""
    x, reps, embedding = (z[name].astype(np.float32) for name in ("x", "reps", "E"))
    out = {}
    for case, (variant, remote) in TRIME.items():
        batches = rank_batches(variant, jnp.asarray(z["targets"], jnp.int32))

        def loss(x, reps, embedding, batch, variant, remote):
            scores = vocabulary.softmax_scores(x, embedding, batch["targets"])
            tokens = per_token(variant, scores, reps, batch, "rank", remote)
            return tokens.sum(), tokens

        step = jax.grad(
            partial(loss, variant=variant, remote=remote), (0, 1, 2), has_aux=True
        )
        mapped = over_devices(step, len(x), in_axes=(0, 0, None, 0))
        grads, tokens = jax.device_get(mapped(x, reps, embedding, batches))
        out[f"{case}_per_token"] = tokens
        for name, grad in zip(("x", "reps", "E"), grads, strict=True):
            out[f"{case}_grad_{name}"] = grad
    return out


GOLDEN = {"dpr_nll": dpr, "trime_multi_rank": trime}


def rank_batches(variant, targets):
    ranks, rows = targets.shape[:2]
    group_of = {"one": lambda r: 0, "rank": lambda r: r}.get(VARIANTS[variant][2])
    parts = [
        batch_of(targets[r], r * rows, group_of(r) if group_of else None)
        for r in range(ranks)
    ]
    return jax.tree.map(lambda *a: jnp.stack(a), *parts)


def own_gradients(questions, passages):
    """Of each rank's passages the gradient of its own questions' losses, float64."""
    every, (ranks, count) = np.concatenate(passages), passages.shape[:2]
    step = count // questions.shape[1]
    gradients = []
    for rank in range(ranks):
        own = slice(rank * count, (rank + 1) * count)
        whole = gradient_of_passages(questions[rank], every, own.start, step)
        gradients.append(whole[own])
    return np.stack(gradients)


def gradient_of_passages(questions, passages, first, step):
    """d (sum of losses) / d passages, float64; every step-th is positive from first."""
    gradient = np.zeros_like(passages)
    for i, question in enumerate(questions):
        scores = passages @ question
        p = np.exp(scores - scores.max())
        p /= p.sum()
        p[first + i * step] -= 1
        gradient += p[:, None] * question
    return gradient
