"""TRIME: training language models with memory augmentation (Zhong et al. 2022).

Each position t holds h_t, the input of the last feed-forward, as query and as key, and
its target y_t as value. The memory of a position joins the vocabulary in one softmax:

    L_t = -log [ (e^{E_y.f_t} + sum_{j in M(t), y_j = y_t} e^{h_t.h_j / sqrt(D)})
                 / (sum_v e^{E_v.f_t} + sum_{j in M(t)} e^{h_t.h_j / sqrt(D)}) ] (eq. 4)

The variants differ in M(t) alone: `local`, `long` and `external` below.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rlm_jax.errors import UserError
from rlm_jax.method import Batch, Method, TokenScores
from rlm_jax.methods.lm import decoder_functions
from rlm_jax.models.decoder import DecoderConfig
from rlm_jax.ops import collectives, losses, memory


@dataclasses.dataclass
class TrimeConfig:
    """A decoder and the memory it is trained with."""

    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    memory: str = "local"  # local, long or external
    own_memory_off: float = (
        0.9  # external: how often a step hides a segment from itself
    )
    remote_gradients: bool = False  # to keys on other devices; the released code: no


def earlier(query, slot):
    """Strictly earlier tokens of the same group of consecutive segments."""
    return (
        (slot["value"] >= 0)
        & (slot["group"] == query["group"])
        & (slot["position"] < query["position"])
    )


def earlier_or_elsewhere(query, slot):
    """All tokens of other segments, and strictly earlier ones of the own segment."""
    return (slot["value"] >= 0) & (
        (slot["segment"] != query["segment"]) | (slot["position"] < query["position"])
    )


def token_ids(batch: Batch) -> dict[str, jax.Array]:
    """The small integers that decide what sees what, int32 [B, T] each.

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


def local(keys, ids, key, config, axis) -> memory.LogSums:
    """M(t): the strictly earlier tokens of the own segment."""

    def one_segment(keys, ids):
        return memory.log_sums(
            keys, keys, ids, ids, visible=earlier, positive=memory.same_value,
            scale=keys.shape[-1] ** -0.5,
        )  # fmt: skip

    return jax.vmap(one_segment)(keys, ids)


def long(keys, ids, key, config, axis) -> memory.LogSums:
    """M(t): the strictly earlier tokens of the consecutive segments of its group."""
    return _batch_memory(keys, ids, earlier, config, axis)


def external(keys, ids, key, config, axis) -> memory.LogSums:
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
    sums = memory.log_sums(
        queries, slots, query_ids, slot_ids,
        visible=visible, positive=memory.same_value, scale=width**-0.5,
    )  # fmt: skip
    return memory.LogSums(*(x.reshape(shape) for x in sums))


def trime(config: TrimeConfig) -> Method:
    """The method; ``evaluate`` sees no later token, whatever the training memory.

    Raises:
      UserError: an unknown memory, or a probability outside [0, 1].
    """
    if config.memory not in MEMORIES:
        raise UserError(
            f"memory is {config.memory!r}; choose one of {', '.join(MEMORIES)}."
        )
    if not 0 <= config.own_memory_off <= 1:
        raise UserError(
            f"own_memory_off is {config.own_memory_off}, a probability; choose one "
            "from 0 to 1."
        )
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


def _sums(scores: TokenScores, memory_sums: memory.LogSums, batch: Batch):
    nll = losses.joint_nll(scores.target_score, scores.log_normaliser, memory_sums)
    vocabulary = scores.log_normaliser - scores.target_score
    return {
        "loss": losses.weighted(nll, batch["mask"]),
        "vocabulary_loss": losses.weighted(vocabulary, batch["mask"]),
    }
