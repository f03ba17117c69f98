"""TRIME: training language models with memory augmentation (Zhong et al. 2022).

Each position t holds h_t, the input of the last feed-forward, as query and as key, and
its target y_t as value. The memory of a position joins the vocabulary in one softmax:

    L_t = -log [ (e^{E_y.f_t} + sum_{j in M(t), y_j = y_t} e^{h_t.h_j / sqrt(D)})
                 / (sum_v e^{E_v.f_t} + sum_{j in M(t)} e^{h_t.h_j / sqrt(D)}) ] (eq. 4)

The variants differ in M(t) alone. In training it is `local`, `long` or `external`
below. At evaluation it is a stream's own past (the rule `before`) and what a search
finds in a datastore (`neighbour_log_sums`); see ``rlm_jax.evaluate.token_memory``.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Int, Int32, PRNGKeyArray

from rlm_jax.configuration import check_fields
from rlm_jax.method import Batch, Method, TokenScores
from rlm_jax.methods.lm import decoder_functions
from rlm_jax.models.decoder import DecoderConfig
from rlm_jax.ops import Array, collectives, losses, memory


@dataclasses.dataclass
class TrimeConfig:
    """A decoder and the memory it is trained with."""

    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    memory: Literal["local", "long", "external"] = "local"
    own_memory_off: float = (
        0.9  # external: how often a step hides a segment from itself
    )
    remote_gradients: bool = False  # to keys on other devices; the released code: no


def before(query: memory.Ids, slot: memory.Ids) -> Bool[Array, "..."]:
    """Strictly earlier tokens of the one stream that there is."""
    return (slot["value"] >= 0) & (slot["position"] < query["position"])


def earlier(query: memory.Ids, slot: memory.Ids) -> Bool[Array, "..."]:
    """Strictly earlier tokens of the same group of consecutive segments."""
    return (
        (slot["value"] >= 0)
        & (slot["group"] == query["group"])
        & (slot["position"] < query["position"])
    )


def earlier_or_elsewhere(query: memory.Ids, slot: memory.Ids) -> Bool[Array, "..."]:
    """All tokens of other segments, and strictly earlier ones of the own segment."""
    return (slot["value"] >= 0) & (
        (slot["segment"] != query["segment"]) | (slot["position"] < query["position"])
    )


def token_ids(batch: Batch) -> dict[str, Int32[Array, "B T"]]:
    """The small integers that decide what sees what.

    ``position`` runs through the whole (global) batch; the value of a padded token is
    -1, which makes it invisible (the released code lets padding match padding).
    """
    batch_size, length = batch["targets"].shape
    segment = batch["segment"][:, None]
    return {
        "value": jnp.where(batch["mask"] > 0, batch["targets"], -1),
        "position": segment * length + jnp.arange(length, dtype=jnp.int32)[None, :],
        "segment": jnp.broadcast_to(segment, (batch_size, length)),
        "group": jnp.broadcast_to(batch["group"][:, None], (batch_size, length)),
    }


def scale(width: int, temperature: float = 1.0) -> float:
    """1 / (sqrt(D) t), by which h_t.h_j becomes a logit; t is 1 in training."""
    return width**-0.5 / temperature


def log_sums(
    queries: Float[Array, "N D"],
    keys: Float[Array, "M D"],
    query_ids: memory.Ids,
    key_ids: memory.Ids,
    *,
    visible: memory.Rule,
    scale: float | Array,
) -> memory.LogSums:
    """The two sums over M(t) of eq. 4, as logarithms: all slots, and those of y_t.

    Args:
      queries, keys: the h of predictions and of slots.
      query_ids, key_ids: int32 [N] and [M] by name, with ``value``, the targets.
      visible: the rule that is M(t).
      scale: of the inner products, as `scale` makes it.
    """
    return memory.log_sums(
        queries, keys, query_ids, key_ids,
        visible=visible, positive=memory.same_value, scale=scale,
    )  # fmt: skip


def neighbour_log_sums(
    similarities: Float[Array, "N K"],
    values: Int[Array, "N K"],
    targets: Int[Array, " N"],
    temperature: float | Array,
) -> memory.LogSums:
    """`log_sums` where M(t) is the K neighbours that a search found for t.

    Args:
      similarities: float32, h_t.h_j / sqrt(D); -inf where absent.
      values: int32, the targets of the neighbours.
      targets: int32.
      temperature: divides the similarities.
    """
    logits = similarities / temperature
    hit = values == targets[:, None]
    return memory.LogSums(
        jax.nn.logsumexp(logits, axis=-1),
        jax.nn.logsumexp(jnp.where(hit, logits, -jnp.inf), axis=-1),
    )


def local(
    keys: Float[Array, "B T D"],
    ids: dict[str, Int32[Array, "B T"]],
    key: PRNGKeyArray | None,
    config: TrimeConfig,
    axis: str | None,
) -> memory.LogSums:
    """M(t): the strictly earlier tokens of the own segment."""

    def one_segment(keys, ids):
        return log_sums(
            keys, keys, ids, ids, visible=earlier, scale=scale(keys.shape[-1])
        )

    return jax.vmap(one_segment)(keys, ids)


def long(
    keys: Float[Array, "B T D"],
    ids: dict[str, Int32[Array, "B T"]],
    key: PRNGKeyArray | None,
    config: TrimeConfig,
    axis: str | None,
) -> memory.LogSums:
    """M(t): the strictly earlier tokens of the consecutive segments of its group."""
    return _batch_memory(keys, ids, earlier, config, axis)


def external(
    keys: Float[Array, "B T D"],
    ids: dict[str, Int32[Array, "B T"]],
    key: PRNGKeyArray,
    config: TrimeConfig,
    axis: str | None,
) -> memory.LogSums:
    """M(t): all tokens of the other segments of the batch, and the earlier own ones.

    With probability ``own_memory_off``, drawn once for a step, a segment sees nothing
    of itself, so that the model learns to use what retrieval will bring.
    """
    off = jax.random.bernoulli(key, config.own_memory_off)
    queries = ids | {"position": jnp.where(off, -1, ids["position"])}
    return _batch_memory(keys, ids, earlier_or_elsewhere, config, axis, queries)


MEMORIES = {"local": local, "long": long, "external": external}


def _batch_memory(keys, ids, visible, config, axis, query_ids=None):
    """The memory of all tokens of the batch, on all devices."""
    shape = ids["value"].shape
    width = keys.shape[-1]
    queries = keys.reshape(-1, width)
    ids, query_ids = jax.tree.map(lambda x: x.reshape(-1), (ids, query_ids or ids))
    slots, slot_ids = collectives.gather(
        (queries, ids), axis, remote_gradients=config.remote_gradients
    )
    sums = log_sums(
        queries, slots, query_ids, slot_ids, visible=visible, scale=scale(width)
    )
    return memory.LogSums(*(x.reshape(shape) for x in sums))


def trime(config: TrimeConfig) -> Method:
    """The method; ``evaluate`` sees no later token, whatever the training memory.

    Raises:
      UserError: an unknown memory, or a probability outside [0, 1].
    """
    check_fields(config)
    init, score = decoder_functions(config.decoder)
    evaluation_memory = long if config.memory == "long" else local

    def loss(params, batch, key, *, axis=None):
        dropout_key, memory_key = jax.random.split(key)
        scores = score(params, batch, collectives.fold_rank(dropout_key, axis))
        sums = MEMORIES[config.memory](
            scores.keys, token_ids(batch), memory_key, config, axis
        )
        return _sums(scores, sums, batch)

    def evaluate(params, batch, key=None, *, axis=None):
        scores = score(params, batch)
        sums = evaluation_memory(scores.keys, token_ids(batch), None, config, axis)
        return _sums(scores, sums, batch)

    return Method(init=init, loss=loss, evaluate=evaluate, score=score)


def nll(
    target_score: Float[Array, " *B"],
    log_normaliser: Float[Array, " *B"],
    memory_sums: memory.LogSums,
) -> Float32[jax.Array, " *B"]:
    """L_t of eq. 4 in nats, from the vocabulary's two logarithms and the memory's."""
    return losses.joint_nll(target_score, log_normaliser, memory_sums)


def _sums(scores: TokenScores, memory_sums: memory.LogSums, batch: Batch):
    target_score, log_normaliser, _ = scores
    joint = nll(target_score, log_normaliser, memory_sums)
    vocabulary = log_normaliser - target_score
    return {
        "loss": losses.weighted(joint, batch["mask"]),
        "vocabulary_loss": losses.weighted(vocabulary, batch["mask"]),
    }
