"""TRIME against arrays computed by the released code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.methods import trime
from rlm_jax.ops import losses, vocabulary

VARIANTS = {
    "local": ("local", 0.0, None),
    "long": ("long", 0.0, "one"),
    "ext_own_on": ("external", 0.0, None),
    "ext_own_off": ("external", 1.0, None),
    # Over ranks (tests/multi_device/ranks.py): one document for all, or one for each.
    "long_1doc": ("long", 0.0, "one"),
    "long_2docs": ("long", 0.0, "rank"),
}


def batch_of(targets, first_segment=0, group=None):
    rows = len(targets)
    segment = first_segment + jnp.arange(rows, dtype=jnp.int32)
    return {
        "targets": targets,
        "mask": jnp.ones(targets.shape),
        "segment": segment,
        "group": segment if group is None else jnp.full(rows, group, jnp.int32),
    }


def per_token(variant, vocabulary_scores, reps, batch, axis=None, remote=False):
    """The library's loss of each token, [B, L]."""
    name, off, _ = VARIANTS[variant]
    config = trime.TrimeConfig(memory=name, own_memory_off=off, remote_gradients=remote)
    sums = trime.MEMORIES[name](
        reps, trime.token_ids(batch), jax.random.key(0), config, axis
    )
    target_score, log_normaliser = vocabulary_scores
    return losses.joint_nll(target_score, log_normaliser, sums)


@pytest.mark.parametrize("variant", ["local", "long", "ext_own_on", "ext_own_off"])
def test_one_device(golden, variant):
    z = golden("trime_losses")
    targets = jnp.asarray(z["targets"], jnp.int32)
    batch = batch_of(targets, group=0 if variant == "long" else None)

    def loss(x, reps, embedding):
        scores = vocabulary.softmax_scores(x, embedding, targets)
        tokens = per_token(variant, scores, reps, batch)
        return tokens.sum(), tokens

    args = [jnp.asarray(z[n], jnp.float32) for n in ("x", "reps", "E")]
    (total, tokens), grads = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*args)
    assert_close(tokens, z[f"{variant}_per_token"], 1e-5)
    assert_close(total, z[f"{variant}_sum"], 1e-5)
    for grad, name in zip(grads, ("x", "reps", "E"), strict=True):
        assert_close(grad, z[f"{variant}_grad_{name}"], 1e-4)


@pytest.mark.parametrize("variant", ["local", "ext_own_on"])
def test_adaptive_softmax(golden, variant):
    """Equal up to the released code's fault that `second_in_tail` describes."""
    z = golden("trime_adaptive_softmax")
    targets = jnp.asarray(z["targets"], jnp.int32)
    head, tails = adaptive_weights(z)
    faulty, head_row = second_in_tail(z, tails)

    def loss(x, reps):
        score, normaliser = vocabulary.adaptive_scores(x, head, tails, targets)
        cluster_logit = jnp.einsum("btd,btd->bt", x, head[head_row])
        score = jnp.where(faulty, cluster_logit, score)
        tokens = per_token(variant, (score, normaliser), reps, batch_of(targets))
        return tokens.sum(), (tokens, normaliser - score)

    args = [jnp.asarray(z[n], jnp.float32) for n in ("x", "reps")]
    (_, (tokens, ce)), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(*args)
    assert_close(tokens, z[f"{variant}_per_token"], 1e-5)
    assert_close(ce, z["ce_per_token"], 1e-5)
    assert_close(grads[0], z[f"{variant}_grad_x"], 1e-4)
    assert_close(grads[1], z[f"{variant}_grad_reps"], 1e-4)


def second_in_tail(z, tails):
    """Where the released cross-entropy leaves out log softmax_c(w), and c's head row.

    It passes ``ignore_index=1``, the padding id, on to the tails, whose targets count
    from the start of the cluster: the second word of every tail costs its cluster only.
    Its own ``get_log_prob`` does not, so `test_adaptive_distribution` has no exception.
    """
    starts = np.asarray(z["cutoff"])[: len(tails)]
    cluster = np.sum(z["targets"][..., None] >= starts, axis=-1)
    relative = z["targets"] - starts[np.maximum(cluster, 1) - 1]
    return (cluster > 0) & (relative == 1), starts[0] + np.maximum(cluster, 1) - 1


def test_adaptive_distribution(golden):
    z = golden("trime_adaptive_softmax")
    head, tails = adaptive_weights(z)
    x = jnp.asarray(z["x"], jnp.float32)
    targets = jnp.asarray(z["targets"], jnp.int32)
    ours = np.asarray(vocabulary.adaptive_log_probs(x, head, tails))
    np.testing.assert_allclose(np.exp(ours).sum(-1), 1.0, rtol=1e-5)
    of_target = np.take_along_axis(z["log_prob"], z["targets"][..., None], -1)[..., 0]
    score, normaliser = vocabulary.adaptive_scores(x, head, tails, targets)
    assert_close(score - normaliser, of_target, 1e-5)
    of_target_ours = np.take_along_axis(ours, z["targets"][..., None], -1)[..., 0]
    assert_close(of_target_ours, of_target, 1e-5)


def adaptive_weights(z):
    head = jnp.asarray(z["w.head.weight"], jnp.float32)
    count = sum(name.startswith("w.tail.") for name in z) // 2
    tails = tuple(
        vocabulary.Tail(
            jnp.asarray(z[f"w.tail.{i}.0.weight"].T, jnp.float32),
            jnp.asarray(z[f"w.tail.{i}.2.weight"], jnp.float32),
        )
        for i in range(count)
    )
    return head, tails


def test_padding_is_masked_where_the_released_code_counts_it(golden):
    """Its padded positions add a term and match one another; ours do neither."""
    z = golden("trime_pad_quirk")
    targets = jnp.asarray(z["targets"], jnp.int32)
    pad = z["targets"] == 1
    assert pad.any() and int(z["n_tokens"]) == (~pad).sum()
    batch = batch_of(targets) | {"mask": jnp.asarray(~pad, jnp.float32)}
    x, reps, embedding = (jnp.asarray(z[n], jnp.float32) for n in ("x", "reps", "E"))
    scores = vocabulary.softmax_scores(x, embedding, targets)
    tokens = np.asarray(per_token("local", scores, reps, batch))
    total, weight = losses.weighted(tokens, batch["mask"])
    assert float(weight) == int(z["n_tokens"])
    assert (np.abs(z["local_per_token"][pad]) > 1e-3).any()
    # Where the code's padding enters no memory, the tokens before the first pad of a
    # row, the two agree.
    clean = np.cumsum(pad, axis=1) == 0
    assert_close(tokens[clean], z["local_per_token"][clean], 1e-5)
    assert abs(float(total) - float(z["local_sum"])) > 1e-3


def assert_close(ours, theirs, tolerance):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=tolerance, atol=tolerance)
