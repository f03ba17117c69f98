"""DPR: dense passage retrieval (Karpukhin et al. 2020).

Question and passage are a vector each, q_i and c_j. Every passage of the batch, the
positives and hard negatives of all questions on all devices, is a candidate of every
question:

    L_i = -log [ e^{q_i.c_{p(i)}} / sum_j e^{q_i.c_j} ]    (eq. 2; p(i): i's positive)

The released code does not ask whether another question's positive answers this one too
(``negatives="all"``). On several devices its every rank computes the loss of all
questions with the vectors of other ranks as constants, and then averages: 1/W of the
gradient that ``remote_gradients`` gives here, which matters to clipping.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32

from rlm_jax.configuration import check_fields
from rlm_jax.method import Batch, Method, Retrieval, Sums
from rlm_jax.models.encoder import EncoderConfig, embedder, in_chunks
from rlm_jax.ops import Array, collectives, contrastive, losses


@dataclasses.dataclass
class DPRConfig:
    """Two encoders, or one for both, and what counts as a negative."""

    POSITIVE: ClassVar = ("scale",)

    encoder: EncoderConfig = dataclasses.field(
        default_factory=lambda: EncoderConfig(pooling="cls")
    )
    towers: Literal["shared", "separate"] = "shared"
    scale: float = 1.0  # of the inner products; the paper: 1
    negatives: Literal["all", "distinct"] = "all"
    remote_gradients: bool = True  # to passages on other devices
    chunk: int = 0  # rows encoded at once, 0 = all; see `encoder.in_chunks`
    k: int = 100  # passages that a question retrieves


def every(query: contrastive.Ids, slot: contrastive.Ids) -> Bool[Array, "..."]:
    """All passages of the batch."""
    return slot["passage"] >= 0


def distinct(query: contrastive.Ids, slot: contrastive.Ids) -> Bool[Array, "..."]:
    """The passages of the batch, without those known to answer the question as well."""
    seen = (slot["passage"] >= 0) & (slot["passage"] != query["passage"])
    for known in query["known"]:
        seen &= slot["passage"] != known
    return seen | (contrastive.own_slot(query, slot) & (slot["passage"] >= 0))


NEGATIVES = {"all": every, "distinct": distinct}


def dpr(config: DPRConfig) -> Method:
    """The method; parameters are the encoder's, or {"question", "passage"} of two.

    A batch holds, for B questions of h hard negatives each:

      question_ids, question_mask  int32 [B, T]
      passage_ids, passage_mask    int32 [B, 1 + h, T]  the positive first
      passage   int32 [B, 1 + h]  the passage's number; -1 = none, never a candidate
      known     int32 [B, P]      further passages that answer, -1 = none; may be absent
      weight    float32 [B]       0 = padding, whose passages are no candidates either

    Raises:
      UserError: an unknown choice, or a scale, chunk or k that is out of range.
    """
    return dual_encoder(config, *embedder(config.encoder))


def dual_encoder(config: DPRConfig, init_one, embed) -> Method:
    """`dpr` over any encoder: ``init_one(key)``, ``embed(params, batch, key=None)``."""
    check_fields(config)
    tower = TOWERS[config.towers]
    if config.chunk:
        embed = in_chunks(embed, config.chunk)

    def init(key):
        if config.towers == "shared":
            return init_one(key)
        # As released, both start from the same weights.
        return {name: init_one(key) for name in ("question", "passage")}

    def sums(params, batch, keys, axis):
        def encode(name, ids, mask, key):
            return embed(tower(params, name), {"ids": ids, "mask": mask}, key=key)

        questions = encode(
            "question", batch["question_ids"], batch["question_mask"], keys[0]
        )
        ids, mask = (
            batch[name].reshape(-1, batch[name].shape[-1])
            for name in ("passage_ids", "passage_mask")
        )
        passages = encode("passage", ids, mask, keys[1])
        question_ids, passage_ids = candidates(batch, axis)
        passages, passage_ids = collectives.gather(
            (passages, passage_ids), axis, remote_gradients=config.remote_gradients
        )
        contrast = contrastive.in_batch(
            questions, passages, question_ids, passage_ids,
            visible=NEGATIVES[config.negatives], scale=config.scale,
        )  # fmt: skip
        return contrast_sums(contrast, contrast.nll, batch["weight"])

    def loss(params, batch, key, *, axis=None):
        keys = jax.random.split(collectives.fold_rank(key, axis))
        return sums(params, batch, (keys[0], keys[1]), axis)

    def evaluate(params, batch, key=None, *, axis=None):
        return sums(params, batch, (None, None), axis)

    return Method(
        init=init,
        loss=loss,
        evaluate=evaluate,
        retrieval=Retrieval(
            k=config.k,
            query_params=lambda params: tower(params, "question"),
            passage_params=lambda params: tower(params, "passage"),
            encode_queries=embed,
            encode_keys=embed,
        ),
    )


TOWERS = {
    "shared": lambda params, name: params,
    "separate": lambda params, name: params[name],
}


def candidates(
    batch: Batch, axis: str | None
) -> tuple[contrastive.Ids, contrastive.Ids]:
    """The small integers of the questions [B] and of the passages [B (1 + h)]."""
    rows, width = batch["passage"].shape
    passage = jnp.where(batch["weight"][:, None] > 0, batch["passage"], -1)
    first = collectives.rank(axis) * (rows * width)
    slot = first + jnp.arange(rows * width, dtype=jnp.int32)
    known = batch["known"].T if "known" in batch else ()
    questions = {
        "slot": slot[::width],
        "passage": batch["passage"][:, 0],
        "known": tuple(known),
    }
    return questions, {"slot": slot, "passage": passage.reshape(-1)}


def contrast_sums(
    contrast: contrastive.Contrast,
    nll: Float32[Array, " N"],
    weight: Float32[Array, " N"],
) -> Sums:
    """Loss, share of positives that come first, and their mean rank from 0."""
    return {
        "loss": losses.weighted(nll, weight),
        "accuracy": losses.weighted(contrast.rank == 0, weight),
        "rank": losses.weighted(contrast.rank, weight),
    }
