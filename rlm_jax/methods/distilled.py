"""A retriever that learns from a teacher's scores of the K passages of each question.

    P = softmax_i(s(q, d_i) / t_student),  Q = softmax_i(teacher_i / t_teacher)
    L = D(P, Q)                                                       (Q is constant)

What REPLUG-LSR and FiD's distillation share: they differ in teacher, temperatures and
direction of the divergence D.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from rlm_jax.method import Batch, Method, Params, Sums, shared
from rlm_jax.models.encoder import in_chunks
from rlm_jax.ops import Array, collectives, distillation, losses, mixtures

Divergence = Callable[
    [Float[Array, "B K"], Float[Array, "B K"]], Float32[jax.Array, " B"]
]
"""(log P, log Q) -> what is to be made small, of each question."""

RECALL_AT = (1, 5)
"""Depths at which a retriever in training is judged on the passages it re-ranks."""


def pair_scores(
    embed: Callable[..., jax.Array],
    params: tuple[Params, Params],
    batch: Batch,
    keys: Sequence[jax.Array | None],
    *,
    passages: str,
) -> Float32[jax.Array, "B K"]:
    """q.d_i of each question and its K passages, encoded with these parameters.

    Args:
      embed: ``embed(params, {"ids", "mask"}, key=None)``.
      params: of the questions' encoder, and of the passages'.
      batch: query_ids and query_mask [B, T], and those of the passages [B, K, T'].
      keys: of dropout in the two; None: there is none.
      passages: what their arrays are called by, as "passage" in passage_ids.
    """

    def encode(params, side, key):
        ids, mask = (batch[f"{side}_{part}"] for part in ("ids", "mask"))
        length = ids.shape[-1]
        flat = {"ids": ids.reshape(-1, length), "mask": mask.reshape(-1, length)}
        return embed(params, flat, key=key).reshape(*ids.shape[:-1], -1)

    queries = encode(params[0], "query", keys[0])
    return mixtures.inner_product(queries, encode(params[1], passages, keys[1]))


def distilled(
    init: Callable[[jax.Array], Params],
    embed: Callable[..., jax.Array],
    divergence: Divergence,
    *,
    k: int,
    student_temperature: float,
    teacher_temperature: float,
    chunk: int = 0,
) -> Method:
    """The method over an encoder: ``init(key)``, ``embed(params, batch, key=None)``.

    A batch holds, for B questions of K passages each:

      query_ids, query_mask      int32 [B, T]
      passage_ids, passage_mask  int32 [B, K, T']
      teacher_scores  float32 [B, K]  what the teacher says of each passage
      present         bool [B, K]     False = no such passage
      weight          float32 [B]     0 = padding
      holds           bool [B, K]     may be absent: the passage holds an answer

    A question without passages counts for nothing. Beside the loss stand ``agreement``
    (how often the best passage is the teacher's), ``rank_correlation`` (Kendall's tau
    with the teacher), ``expected_score`` (the teacher's, under P), and
    ``uniform_score`` (under equal weights, what a retriever without an opinion gets).
    Where it is told which passages hold an answer, ``answer_recall@k`` is the share of
    questions with one of them among the retriever's first k.
    """
    if chunk:
        embed = in_chunks(embed, chunk)

    def sums(params: Params, batch: Batch, keys) -> Sums:
        present = batch["present"].astype(bool)
        teacher = jax.lax.stop_gradient(
            jnp.where(present, batch["teacher_scores"], 0.0)
        )
        student = pair_scores(embed, (params, params), batch, keys, passages="passage")
        log_p = mixtures.log_weights(student, present, temperature=student_temperature)
        log_q = mixtures.log_weights(teacher, present, temperature=teacher_temperature)
        share = present / jnp.maximum(present.sum(-1, keepdims=True), 1)
        figures = {
            "loss": divergence(log_p, log_q),
            "agreement": log_p.argmax(-1) == log_q.argmax(-1),
            "rank_correlation": distillation.rank_correlation(
                student, teacher, present
            ),
            "expected_score": (jnp.exp(log_p) * teacher).sum(-1),
            "uniform_score": (share * teacher).sum(-1),
        }
        if "holds" in batch:
            before = (student[:, None] > student[..., None]) & present[:, None]
            rank = jnp.where(batch["holds"] & present, before.sum(-1), before.shape[-1])
            first = rank.min(-1)
            figures |= {f"answer_recall@{k}": first < k for k in RECALL_AT}
        weight = jnp.where(present.any(-1), batch["weight"], 0.0)
        return {name: losses.weighted(x, weight) for name, x in figures.items()}

    def loss(params, batch, key, *, axis=None):
        keys = jax.random.split(collectives.fold_rank(key, axis))
        return sums(params, batch, (keys[0], keys[1]))

    def evaluate(params, batch, key=None, *, axis=None):
        return sums(params, batch, (None, None))

    return Method(init=init, loss=loss, evaluate=evaluate, retrieval=shared(k, embed))
