"""Atlas and EMDR2: a reader, and a retriever that learns from it, trained together.

    s_i = q.d_i / sqrt(D),  p_i = softmax_i(s_i / t)
    L = -sum_t log p(y_t | q, d_1 ... d_K, y_{<t}) + L_retriever

The passages come from an index that grows stale; their vectors d_i, and so p, are made
anew with the current parameters. What the reader says, G, is a constant without
dropout. Izacard et al. 2022, section 2.2:

    pdist, loop, adist   KL(softmax_i(G_i / t_gold) || p)        (`ops.reader_signals`)
    emdr2                -sum_t log sum_i p_i p(y_t | q, d_i, y_{<t})

EMDR2 (Singh et al. 2021, section 2.3) is ``loss="emdr2"`` with
``vocabulary_temperature=1``; Atlas's code puts t_gold on the vocabulary there. Atlas's
code has the mean of y's log-probabilities for pdist where the paper has their sum, and
means the KL over questions and passages (``kl_mean``). Here a question counts in both
losses as often as its answer has tokens, so that one division, at the end, is right for
any micro-batches and devices. Its query-side training ties the towers, so that the
passages' moves too; here they are two.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float32, Shaped

from rlm_jax.configuration import check_fields
from rlm_jax.errors import UserError
from rlm_jax.method import Batch, Method, Params, Retrieval, Sums
from rlm_jax.methods import fid, reader_scores
from rlm_jax.methods.distilled import pair_scores
from rlm_jax.methods.dpr import TOWERS
from rlm_jax.methods.fid import FiDConfig
from rlm_jax.models.encoder import EncoderConfig, embedder, in_chunks
from rlm_jax.models.reader import Reader
from rlm_jax.ops import (
    Array,
    collectives,
    distillation,
    losses,
    mixtures,
    reader_signals,
)


@dataclasses.dataclass
class AtlasConfig:
    """The reader, the retriever, and what the one learns from the other."""

    POSITIVE: ClassVar = ("weight",)

    reader: FiDConfig = dataclasses.field(default_factory=FiDConfig)
    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    towers: Literal["shared", "separate"] = "separate"  # of questions and passages
    trained: Literal["full", "query", "none"] = "full"  # query: passages' stays
    loss: Literal["pdist", "emdr2", "loop", "adist", "none"] = "pdist"
    weight: float = 1.0  # of the retriever's loss beside the reader's
    temperature: float = 0.01  # t
    gold_temperature: float = 0.01  # of pdist, loop and adist
    vocabulary_temperature: float = 1.0  # of emdr2; Atlas: gold_temperature's
    log_prob: Literal["mean", "sum"] = "mean"  # of y's tokens, for pdist and loop
    kl_mean: Literal["passages", "questions"] = "passages"  # passages: KL / K
    chunk: int = 0  # texts that the retriever encodes at once; see `encoder.in_chunks`


def atlas(config: AtlasConfig) -> Method:
    """The method; parameters are {"reader", "retriever"}.

    The retriever's are one encoder's, or {"question", "passage"} of two. A batch holds
    what the reader's does (`methods.fid`) and, of the same K passages,

      query_ids, query_mask          int32 [B, T]
      candidate_ids, candidate_mask  int32 [B, K, T']
      present                        bool [B, K]      False = no such passage

    There may be more than ``reader.k`` candidates: the k are read that the current
    parameters score best, of those present (the released code's re-ranking).

    Beside the loss stand the reader's and the retriever's, and of the passages, by
    question: ``agreement`` (how often the retriever's best is the reader's),
    ``rank_correlation`` with the reader (Kendall's tau), ``expected_gold`` (the
    reader's score under p) and ``uniform_gold`` (under equal weights). A question
    without passages teaches the retriever nothing.

    Raises:
      UserError: sizes or choices do not fit together.
    """
    check_fields(config)  # before the reader is built
    return of_reader(config, fid.reader_of(config.reader))


def of_reader(config: AtlasConfig, functions: Reader) -> Method:
    """`atlas` over a reader."""
    check(config)
    reading = fid.of_reader(config.reader, functions)
    init_one, embed = embedder(config.encoder)
    embed = in_chunks(embed, config.chunk) if config.chunk else embed
    tower = TOWERS[config.towers]
    width = config.encoder.projection or config.encoder.width

    def init(key):
        keys = jax.random.split(key)
        retriever = init_one(keys[1])
        if config.towers == "separate":  # alike at first, as released
            retriever = {"question": retriever, "passage": retriever}
        return {"reader": functions.init(keys[0]), "retriever": retriever}

    def scores(params: Params, batch: Batch, keys) -> Float32[jax.Array, "B K"]:
        """s, by current parameters."""
        question, passage = (tower(params, name) for name in ("question", "passage"))
        if config.trained == "query":
            passage = jax.lax.stop_gradient(passage)
        both = question, passage
        product = pair_scores(embed, both, batch, keys, passages="candidate")
        return product * width**-0.5

    def best(params: Params, batch: Batch) -> Batch:
        """The batch with the k candidates of the largest s."""
        if batch["passage_ids"].shape[1] <= config.reader.k:
            return batch
        score = scores(jax.lax.stop_gradient(params), batch, (None, None))
        score = jnp.where(batch["present"].astype(bool), score, -jnp.inf)
        _, places = jax.lax.top_k(score, config.reader.k)

        def taken(x):
            index = places.reshape(*places.shape, *[1] * (x.ndim - 2))
            return jnp.take_along_axis(x, index, axis=1)

        return {**batch, **{name: taken(batch[name]) for name in OF_PASSAGES}}

    def sums(read: Sums, params: Params, batch: Batch, keys) -> Sums:
        if config.loss == "none":
            return {**read, "reader_loss": read["loss"]}
        score = scores(params["retriever"], batch, keys)
        retriever, figures = LOSSES[config.loss](
            config, functions, jax.lax.stop_gradient(params["reader"]), batch, score
        )
        some = batch["present"].astype(bool).any(-1)
        mask = batch["target_mask"] * batch["weight"][:, None]
        each = jnp.broadcast_to(jnp.where(some[:, None], retriever, 0.0), mask.shape)
        taught = losses.weighted(each, mask)
        total, weight = read["loss"]
        told = jnp.where(some, batch["weight"], 0.0)
        return {
            **read,
            "loss": (total + config.weight * taught[0], weight),
            "reader_loss": read["loss"],
            "retriever_loss": taught,
            **{name: losses.weighted(x, told) for name, x in figures.items()},
        }

    def loss(params, batch, key, *, axis=None):
        batch = best(params["retriever"], batch)
        first, second = jax.random.split(key)
        read = reading.loss(params["reader"], batch, first, axis=axis)
        keys = jax.random.split(collectives.fold_rank(second, axis))
        return sums(read, params, batch, (keys[0], keys[1]))

    def evaluate(params, batch, key=None, *, axis=None):
        batch = best(params["retriever"], batch)
        read = reading.evaluate(params["reader"], batch, axis=axis)
        return sums(read, params, batch, (None, None))

    retrieval = Retrieval(
        k=config.reader.k,
        query_params=lambda params: tower(params["retriever"], "question"),
        passage_params=lambda params: tower(params["retriever"], "passage"),
        encode_queries=embed,
        encode_keys=embed,
    )
    return Method(init=init, loss=loss, evaluate=evaluate, retrieval=retrieval)


OF_PASSAGES = tuple(
    "passage_ids passage_mask candidate_ids candidate_mask present".split()
)
"""What a batch has of each passage."""


def distilled(
    config: AtlasConfig,
    gold: Float32[Array, "B K"],
    score: Float32[Array, "B K"],
    present: Shaped[Array, "B K"],
) -> Float32[jax.Array, " B"]:
    """KL(softmax(G / t_gold) || softmax(s / t)) of each question, by ``kl_mean``."""
    log_gold = mixtures.log_weights(gold, present, temperature=config.gold_temperature)
    log_p = mixtures.log_weights(score, present, temperature=config.temperature)
    divisor = score.shape[-1] if config.kl_mean == "passages" else 1
    return distillation.kl(log_gold, log_p) / divisor


def marginalised(
    config: AtlasConfig,
    log_likelihoods: Float32[Array, "B K L"],
    score: Float32[Array, "B K"],
    present: Shaped[Array, "B K"],
) -> Float32[jax.Array, "B L"]:
    """-log sum_i p_i p(y_t | q, d_i, y_{<t}) of each target: EMDR2's."""
    log_p = mixtures.log_weights(score, present, temperature=config.temperature)
    return -mixtures.ensemble(log_p, log_likelihoods)


LOG_PROB = {
    "mean": reader_signals.mean_log_prob,
    "sum": reader_signals.total_log_prob,
}


def gold_scores(
    config: AtlasConfig, functions: Reader, params: Params, batch: Batch
) -> Float32[jax.Array, "B K"]:
    """G by ``config.loss``, larger is better: pdist, loop or adist."""
    return GOLD[config.loss](config, functions, params, batch)


def _pdist(config, functions, params, batch):
    mask = batch["target_mask"][:, None]
    log_p = reader_scores.alone(functions, params, batch)
    return LOG_PROB[config.log_prob](log_p, jnp.broadcast_to(mask, log_p.shape))


def _loop(config, functions, params, batch):
    mask = batch["target_mask"][:, None]
    nll = reader_scores.left_out(functions, params, batch)
    return LOG_PROB[config.log_prob](nll, jnp.broadcast_to(mask, nll.shape))


def _adist(config, functions, params, batch):
    del config
    return reader_scores.attended(functions, params, batch)


GOLD: dict[str, Callable[..., jax.Array]] = {
    "pdist": _pdist,
    "loop": _loop,
    "adist": _adist,
}


def _from_gold(config, functions, params, batch, score):
    """(the KL of each question, [B, 1]; figures of the questions)."""
    present = batch["present"].astype(bool)
    gold = GOLD[config.loss](config, functions, params, batch)
    loss = distilled(config, gold, score, present)
    return loss[:, None], _figures(config, gold, score, present)


def _from_marginal(config, functions, params, batch, score):
    """(the marginal of each target, [B, L]; figures of the questions)."""
    present = batch["present"].astype(bool)
    log_p = reader_scores.alone(
        functions, params, batch, temperature=config.vocabulary_temperature
    )
    loss = marginalised(config, log_p, score, present)
    mask = jnp.broadcast_to(batch["target_mask"][:, None], log_p.shape)
    gold = reader_signals.mean_log_prob(log_p, mask)
    return loss, _figures(config, gold, score, present)


LOSSES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(GOLD, _from_gold),
    "emdr2": _from_marginal,
}


def _figures(config, gold, score, present):
    gold = jnp.where(present, gold, 0.0)
    log_p = mixtures.log_weights(score, present, temperature=config.temperature)
    best = jnp.where(present, gold, -jnp.inf).argmax(-1)
    share = present / jnp.maximum(present.sum(-1, keepdims=True), 1)
    return {
        "agreement": log_p.argmax(-1) == best,
        "rank_correlation": distillation.rank_correlation(score, gold, present),
        "expected_gold": (jnp.exp(log_p) * gold).sum(-1),
        "uniform_gold": (share * gold).sum(-1),
    }


# --- configurations ------------------------------------------------------------------


def trainable(config: AtlasConfig) -> Callable[[Params], Any]:
    """params -> the same tree of bools: what moves, for `optim.optimizer`.

    Weight decay would move a frozen tower that has no gradient.
    """

    def moves(path, _) -> bool:
        names = [part.key for part in path]
        if names[0] == "reader" or config.trained == "full":
            return True
        return config.trained == "query" and names[1] == "question"

    return lambda params: jax.tree_util.tree_map_with_path(moves, params)


def check(config: AtlasConfig) -> None:
    """Raises UserError where sizes or choices do not fit together."""
    check_fields(config)
    c = config
    if (c.loss == "none") != (c.trained == "none"):
        raise UserError(
            f"The retriever's loss is {c.loss} and of it {c.trained} is trained; set "
            "both to none, or neither."
        )
    if c.trained == "query" and c.towers == "shared":
        raise UserError(
            "Shared towers cannot be trained on the side of queries alone, since the "
            "passages' would move too; set towers to separate."
        )
