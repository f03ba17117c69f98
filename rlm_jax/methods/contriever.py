"""Contriever: unsupervised dense retrieval by contrast (Izacard et al. 2022).

Two crops of one text are a query and its key; with temperature t,

    L_i = -log [ e^{q_i.k_i / t} / (e^{q_i.k_i / t} + sum_{k in N(i)} e^{q_i.k / t}) ]

(eq. 1). In `contriever` the keys come from an encoder that follows the trained one,
w_k <- m w_k + (1 - m) w_q, and N(i) is a queue of the keys of earlier batches (MoCo,
He et al. 2020). In `contriever_in_batch` one encoder makes both, and N(i) is the other
keys of the batch, on all devices.

The momentum encoder makes its keys without dropout. The released code intends the same,
but switches dropout off only where that encoder is in evaluation mode already.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from rlm_jax.configuration import check_fields
from rlm_jax.errors import UserError
from rlm_jax.method import Batch, Method, MovingState, shared
from rlm_jax.methods.dpr import contrast_sums
from rlm_jax.models.encoder import EncoderConfig, embedder
from rlm_jax.ops import Array, collectives, contrastive


@dataclasses.dataclass
class ContrieverConfig:
    """An encoder (mean-pooled, not normalised) and its queue; the paper's numbers."""

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    queue_size: int = 131072  # keys
    momentum: float = 0.9995  # of the key encoder
    temperature: float = 0.05  # that similarities are divided by
    label_smoothing: float = 0.0  # share of a target's weight that all others get
    k: int = 100  # passages that a query retrieves


@dataclasses.dataclass
class InBatchConfig:
    """An encoder whose negatives are the other keys of the batch."""

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    temperature: float = 0.05
    label_smoothing: float = 0.0
    remote_gradients: bool = True  # to keys on other devices; the released code: yes
    k: int = 100  # passages that a query retrieves


def present(query: contrastive.Ids, slot: contrastive.Ids) -> Bool[Array, "..."]:
    """All keys of the batch, but not those of padding."""
    return slot["present"] > 0


def contriever(config: ContrieverConfig) -> Method:
    """The method with a momentum encoder and a queue, both in ``moving``.

    A batch holds query_ids, query_mask, key_ids and key_mask, int32 [B, T], and weight,
    float32 [B]. ``evaluate`` is the loss of `contriever_in_batch`, without dropout. The
    keys of padding enter the queue like any other: train on full batches.

    Raises:
      UserError: a number that is out of range; while training, a queue that is smaller
        than a batch.
    """
    width = config.encoder.projection or config.encoder.width
    return moco(config, *embedder(config.encoder), width)


def contriever_in_batch(config: InBatchConfig) -> Method:
    """The method without a queue; the batch is that of `contriever`.

    Raises:
      UserError: a number that is out of range.
    """
    return in_batch(config, *embedder(config.encoder))


def moco(config: ContrieverConfig, init, embed, width: int) -> Method:
    """`contriever` over any encoder whose vectors have ``width`` numbers.

    The order within a step is that of the released code: the key encoder moves, then
    encodes; the loss sees the queue without this batch; the queue takes its keys.
    """
    check_fields(config)

    def start(params, key):
        queue = jax.random.normal(key, (config.queue_size, width))
        return {
            "params": params,
            "queue": queue / jnp.linalg.norm(queue, axis=-1, keepdims=True),
            "next": jnp.int32(0),  # the oldest key of the queue, the first to go
        }

    def update(params, state, batch, key, *, axis=None):
        followed = jax.tree.map(
            lambda slow, fast: config.momentum * slow + (1 - config.momentum) * fast,
            state["params"],
            params,
        )
        keys = embed(followed, _side(batch, "key")).astype(jnp.float32)
        enqueued = collectives.gather(keys, axis)
        if len(enqueued) > config.queue_size:
            raise UserError(
                f"A queue of {config.queue_size} keys cannot take the {len(enqueued)} "
                "of a batch; raise queue_size or lower the batch size."
            )
        places = (state["next"] + jnp.arange(len(enqueued))) % config.queue_size
        moved = {
            "params": followed,
            "queue": state["queue"].at[places].set(enqueued),
            "next": (places[-1] + 1) % config.queue_size,
        }
        return moved, {**batch, "keys": keys, "queue": state["queue"]}

    def loss(params, batch, key, *, axis=None):
        queries = embed(
            params, _side(batch, "query"), key=collectives.fold_rank(key, axis)
        )
        keys, queue = batch["keys"], batch["queue"]
        contrast = contrastive.against_queue(
            queries, keys, queue, scale=1 / config.temperature
        )
        means = (queries * (keys + queue.sum(0))).sum(-1) / (len(queue) + 1)
        nll = contrastive.label_smoothing(
            contrast, means / config.temperature, config.label_smoothing
        )
        return contrast_sums(contrast, nll, batch["weight"])

    return in_batch(
        InBatchConfig(
            config.encoder, config.temperature, config.label_smoothing, k=config.k
        ),
        init,
        embed,
    )._replace(loss=loss, moving=MovingState(start, update))


def in_batch(config: InBatchConfig, init, embed) -> Method:
    """`contriever_in_batch` over any encoder, as `moco`."""
    check_fields(config)

    def sums(params, batch, dropout, axis):
        queries, keys = (
            embed(params, _side(batch, name), key=key)
            for name, key in zip(("query", "key"), dropout, strict=True)
        )
        rows = len(queries)
        slot = collectives.rank(axis) * rows + jnp.arange(rows, dtype=jnp.int32)
        slots = {"slot": slot, "present": (batch["weight"] > 0).astype(jnp.int32)}
        keys, slots = collectives.gather(
            (keys, slots), axis, remote_gradients=config.remote_gradients
        )
        contrast = contrastive.in_batch(
            queries, keys, {"slot": slot}, slots,
            visible=present, scale=1 / config.temperature,
        )  # fmt: skip
        shown = slots["present"].astype(jnp.float32)
        mean_key = (keys * shown[:, None]).sum(0) / jnp.maximum(shown.sum(), 1)
        nll = contrastive.label_smoothing(
            contrast,
            (queries * mean_key).sum(-1) / config.temperature,
            config.label_smoothing,
        )
        return contrast_sums(contrast, nll, batch["weight"])

    def loss(params, batch, key, *, axis=None):
        keys = jax.random.split(collectives.fold_rank(key, axis))
        return sums(params, batch, (keys[0], keys[1]), axis)

    def evaluate(params, batch, key=None, *, axis=None):
        return sums(params, batch, (None, None), axis)

    return Method(
        init=init,
        loss=loss,
        evaluate=evaluate,
        retrieval=shared(config.k, embed),
    )


def _side(batch: Batch, name: str) -> Batch:
    return {"ids": batch[f"{name}_ids"], "mask": batch[f"{name}_mask"]}
