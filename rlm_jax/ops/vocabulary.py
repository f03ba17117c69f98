"""What the vocabulary softmax says of a target: its score and the log-normaliser.

Both heads return ``(target_score, log_normaliser)`` with log p = target_score -
log_normaliser, kept apart because memories add terms to each (see
`ops.losses.joint_nll`).
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int

from rlm_jax.ops import Array

CHUNK = 128
"""Tokens of one block of a tail cluster: small enough that skipping saves, large enough
that the products stay efficient."""


class Tail(NamedTuple):
    """One tail cluster of an adaptive softmax."""

    projection: Float[Array, "D d"]  # d < D
    embedding: Float[Array, "words d"]  # of the cluster


def softmax_scores(
    features: Float[Array, "*B D"],
    embedding: Float[Array, "V D"],
    targets: Int[Array, " *B"],
) -> tuple[Float32[jax.Array, " *B"], Float32[jax.Array, " *B"]]:
    """Scores under a full softmax: E_y . f and log sum_v exp(E_v . f).

    Where no gradient is taken no array [*B, V] exists: the vocabulary is worked through
    in parts whose logits stay in cache.

    Args:
      features: f, of any float dtype.
      embedding: E.
      targets: y, int32 in [0, V).

    Returns:
      (target_score, log_normaliser), float32.
    """
    # `custom_vjp` hides what it returns from type checkers.
    return cast(tuple[Any, Any], _scores(features, embedding, targets))


@jax.custom_vjp
def _scores(features, embedding, targets):
    """Part by part; the first takes what is left over."""
    vocab_size = embedding.shape[0]
    size = _part_size(targets.size, vocab_size)
    if vocab_size <= size:
        return _whole(features, embedding, targets)

    def part(words, start):
        at = targets - start
        inside = (at >= 0) & (at < len(words))
        score, normaliser = _whole(features, words, jnp.where(inside, at, 0))
        return jnp.where(inside, score, 0.0), normaliser

    def next_part(start):
        return part(jax.lax.dynamic_slice_in_dim(embedding, start, size), start)

    first = (vocab_size - 1) % size + 1
    parts = jax.lax.map(next_part, jnp.arange(first, vocab_size, size))
    scores, normalisers = jax.tree.map(
        lambda one, others: jnp.concatenate([one[None], others]),
        part(embedding[:first], 0),
        parts,
    )
    return scores.sum(0), jax.nn.logsumexp(normalisers, axis=0)


def _whole(features, embedding, targets):
    logits = _logits(features, embedding)
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return target, jax.nn.logsumexp(logits, axis=-1)


def _forward(features, embedding, targets):
    """What the gradient needs are all logits; to compute them twice would cost more."""
    return jax.vjp(lambda f, e: _whole(f, e, targets), features, embedding)


def _backward(pullback, cotangents):
    return *pullback(cotangents), None


_scores.defvjp(_forward, _backward)


def _part_size(num_targets: int, vocab_size: int) -> int:
    """The words of one part."""
    if jax.default_backend() != "cpu":
        return max(512, 2**28 // max(1, num_targets))  # a gigabyte of logits
    if num_targets <= 128:  # the copies of parts cost more than they save
        return vocab_size
    return min(max(512, 2**22 // num_targets), 2048)


def _logits(features, embedding):
    return jax.lax.dot_general(
        features,
        embedding,
        (((features.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def adaptive_scores(
    features: Float[Array, "*B D"],
    head: Float[Array, "words D"],
    tails: tuple[Tail, ...],
    targets: Int[Array, " *B"],
) -> tuple[Float32[jax.Array, " *B"], Float32[jax.Array, " *B"]]:
    """Scores under an adaptive softmax (Grave et al. 2017).

    The head scores the frequent words and one logit for each tail cluster c; a word w
    of cluster c has log p(w) = log p(c) + log softmax_c(w). In the (score, normaliser)
    form

        target_score   = head logit of w, or of its cluster plus log softmax_c(w)
        log_normaliser = log-sum-exp of the head logits

    so only head logits enter a joint normaliser, as in the released TRIME.

    A tail is computed for the tokens whose target lies in it: tokens are sorted by
    cluster and worked through in fixed blocks, and a block without such a token is
    skipped. Shapes are static, nothing is dropped, and the cost follows the data.

    Args:
      features: f, of any float dtype.
      head: the head words, then a row for each tail.
      tails: the clusters, most frequent words first. Word ids run through the head
        words and then through the clusters in order.
      targets: int32.

    Returns:
      (target_score, log_normaliser), float32.
    """
    shape = targets.shape
    features = jnp.asarray(features).reshape(-1, features.shape[-1])
    targets = jnp.asarray(targets).reshape(-1)
    num_head_words = head.shape[0] - len(tails)
    sizes = [tail.embedding.shape[0] for tail in tails]
    starts = [num_head_words + sum(sizes[:i]) for i in range(len(tails) + 1)]

    cluster = sum((targets >= start).astype(jnp.int32) for start in starts[:-1])
    head_target = jnp.where(cluster > 0, num_head_words + cluster - 1, targets)
    score, log_normaliser = softmax_scores(features, head, head_target)
    for i, tail in enumerate(tails):
        score += _tail_log_probs(features, tail, targets - starts[i], cluster == i + 1)
    return score.reshape(shape), log_normaliser.reshape(shape)


def _tail_log_probs(features, tail, targets, member):
    """log softmax_c(target) where ``member``, 0 elsewhere; float32 [N]."""
    n = targets.shape[0]
    chunk = min(CHUNK, n)
    order = jnp.argsort(~member, stable=True)
    # Wrapping indices fill the last block; what they compute is never read.
    padded = jnp.resize(order, (-(-n // chunk), chunk))
    real = jnp.arange(padded.size).reshape(padded.shape) < member.sum()

    @jax.checkpoint
    def one_chunk(args):
        rows, used = args

        def compute():
            x = features[rows] @ tail.projection
            target, normaliser = softmax_scores(
                x, tail.embedding, jnp.where(used, targets[rows], 0)
            )
            return jnp.where(used, target - normaliser, 0.0)

        return jax.lax.cond(used.any(), compute, lambda: jnp.zeros(chunk, jnp.float32))

    log_probs = jax.lax.map(one_chunk, (padded, real)).reshape(-1)[:n]
    return jnp.zeros(n, jnp.float32).at[order].set(log_probs)


def adaptive_log_probs(
    features: Float[Array, "*B D"],
    head: Float[Array, "words D"],
    tails: tuple[Tail, ...],
) -> Float32[jax.Array, "*B V"]:
    """The whole distribution of an adaptive softmax, float32."""
    num_head_words = head.shape[0] - len(tails)
    log_head = jax.nn.log_softmax(_logits(features, head))
    parts = [log_head[..., :num_head_words]]
    for i, tail in enumerate(tails):
        logits = _logits(features @ tail.projection, tail.embedding)
        cluster = log_head[..., num_head_words + i, None]
        parts.append(cluster + jax.nn.log_softmax(logits))
    return jnp.concatenate(parts, axis=-1)
