"""REALM: a retriever learns from filling in masked words (Guu et al. 2020).

    p(z | x) = softmax_z(q(x).d(z))                              (section 3.2)
    p(y | x) = sum_z p(z | x) prod_j p(y_j | x, z)               (equation 1)

over K candidates z of a sentence x, whose masked tokens are y. An encoder with BERT's
head reads [x; z] and fills in y. The candidates come from an index that grows stale,
and their vectors are made anew with the current parameters. Candidate 0 is the null
document, an empty one, for what needs no retrieval. The paper marginalises over whole
sequences (``marginal="sequence"``), the released code over each masked token alone
(``"token"``): -sum_j log sum_z p(z | x) p(y_j | x, z).
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float32, Shaped

from rlm_jax.configuration import check_fields
from rlm_jax.errors import UserError
from rlm_jax.method import Batch, Method, Params, Retrieval, Sums
from rlm_jax.methods.distilled import pair_scores
from rlm_jax.methods.dpr import TOWERS
from rlm_jax.models.encoder import EncoderConfig, embedder, in_chunks
from rlm_jax.models.token_encoder import masked_lm_functions
from rlm_jax.ops import Array, collectives, distillation, losses, mixtures


def _retriever() -> EncoderConfig:
    return EncoderConfig(pooling="cls", projection=128, projection_norm=True)


@dataclasses.dataclass
class REALMConfig:
    """The encoder that fills in, the retriever, and what is marginalised."""

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    retriever: EncoderConfig = dataclasses.field(default_factory=_retriever)
    towers: Literal["shared", "separate"] = "shared"
    marginal: Literal["token", "sequence"] = "token"
    temperature: float = 1.0  # of the retriever's scores; both paper and code: 1
    chunk: int = 0  # rows encoded at once, 0 = all; see `encoder.in_chunks`
    k: int = 8  # candidates of a sentence, the null document among them


def realm(config: REALMConfig) -> Method:
    """The method; parameters are {"reader", "retriever"}.

    The retriever's are one encoder's, or {"question", "passage"} of two. A batch holds,
    for B sentences of K candidates, the null document first:

      query_ids, query_mask          int32 [B, T]      the masked sentence, alone
      candidate_ids, candidate_mask  int32 [B, K, T']  each candidate, alone
      passage_ids, passage_mask      int32 [B, K, S]   [x; z]: x at the same places
      passage_types                  int32 [B, K, S]   0 of x, 1 of z
      positions                      int32 [B, M]      of the masked tokens in x
      targets, target_mask           int32 [B, M]      what was there; 1 = such a token
      present                        bool [B, K]       False = no such candidate
      weight                         float32 [B]       0 = padding

    The loss is a mean over masked tokens, or over sentences (``marginal="sequence"``).
    Beside it stand, by masked token, ``nll`` (of the marginal of the token),
    ``null_nll`` (of the null document alone), ``utility`` (by how much the candidates
    are better than it, in nats: the paper's RU), ``null_weight`` (p of the null
    document), and in evaluation ``accuracy`` (the likeliest token is the right one).

    Raises:
      UserError: sizes or choices do not fit together.
    """
    check(config)
    init_reader, logits_of = masked_lm_functions(config.encoder)
    init_one, embed = embedder(config.retriever)
    if config.chunk:
        embed = in_chunks(embed, config.chunk)
        logits_of = in_chunks(logits_of, config.chunk)
    tower = TOWERS[config.towers]

    def init(key):
        keys = jax.random.split(key)
        retriever = init_one(keys[1])
        if config.towers == "separate":
            retriever = {"question": retriever, "passage": retriever}
        return {"reader": init_reader(keys[0]), "retriever": retriever}

    def scores(params: Params, batch: Batch, keys) -> Float32[jax.Array, "B K"]:
        both = tower(params, "question"), tower(params, "passage")
        return pair_scores(embed, both, batch, keys, passages="candidate")

    def fill_in(params: Params, batch: Batch, key) -> Float32[jax.Array, "B K M V"]:
        """log p(y | x, z) at the masked places."""
        rows, number, length = batch["passage_ids"].shape
        names = {"ids": "passage_ids", "mask": "passage_mask", "types": "passage_types"}
        flat = {n: batch[x].reshape(-1, length) for n, x in names.items()}
        # Attention over nothing is not asked for: an absent candidate has one token.
        first = jnp.arange(length) == 0
        none = ~flat["mask"].astype(bool).any(-1, keepdims=True)
        flat["mask"] = jnp.where(none & first, 1, flat["mask"])
        flat["positions"] = jnp.repeat(batch["positions"], number, axis=0)
        logits = logits_of(params, flat, key=key)
        return jax.nn.log_softmax(logits).reshape(rows, number, *logits.shape[1:])

    def sums(params: Params, batch: Batch, keys) -> tuple[Sums, jax.Array, jax.Array]:
        score = scores(params["retriever"], batch, keys[:2])
        log_p = fill_in(params["reader"], batch, keys[2])
        targets = batch["targets"][:, None, :, None]
        right = jnp.take_along_axis(log_p, targets, axis=-1)[..., 0]
        return marginals(config, score, right, batch), score, log_p

    def loss(params, batch, key, *, axis=None):
        keys = jax.random.split(collectives.fold_rank(key, axis), 3)
        return sums(params, batch, tuple(keys))[0]

    def evaluate(params, batch, key=None, *, axis=None):
        told, score, log_p = sums(params, batch, (None, None, None))
        weights = log_weights(config, score, batch)
        rows, number, places, vocabulary = log_p.shape
        every = mixtures.ensemble(weights, log_p.reshape(rows, number, -1))
        best = every.reshape(rows, places, vocabulary).argmax(-1)
        mask = batch["target_mask"] * batch["weight"][:, None]
        return {**told, "accuracy": losses.weighted(best == batch["targets"], mask)}

    retrieval = Retrieval(
        k=config.k,
        query_params=lambda params: tower(params["retriever"], "question"),
        passage_params=lambda params: tower(params["retriever"], "passage"),
        encode_queries=embed,
        encode_keys=embed,
    )
    return Method(init=init, loss=loss, evaluate=evaluate, retrieval=retrieval)


def log_weights(
    config: REALMConfig, score: Float32[Array, "B K"], batch: Batch
) -> Float32[jax.Array, "B K"]:
    """log p(z | x)."""
    present = batch["present"].astype(bool)
    return mixtures.log_weights(score, present, temperature=config.temperature)


def marginals(
    config: REALMConfig,
    score: Float32[Array, "B K"],
    log_likelihoods: Float32[Array, "B K M"],
    batch: Batch,
) -> Sums:
    """The loss and what stands beside it, from scores and log p(y_j | x, z)."""
    weights = log_weights(config, score, batch)
    mask = batch["target_mask"] * batch["weight"][:, None]
    token = -mixtures.ensemble(weights, log_likelihoods)
    null = -log_likelihoods[:, 0]
    share = jnp.broadcast_to(jnp.exp(weights[:, :1]), mask.shape)
    return {
        "loss": MARGINALS[config.marginal](weights, log_likelihoods, batch),
        "nll": losses.weighted(token, mask),
        "null_nll": losses.weighted(null, mask),
        "utility": losses.weighted(null - token, mask),
        "null_weight": losses.weighted(share, mask),
    }


def per_token(
    log_weights: Float32[Array, "B K"],
    log_likelihoods: Float32[Array, "B K M"],
    batch: Batch,
) -> tuple[Float32[jax.Array, ""], Float32[jax.Array, ""]]:
    """-log sum_z p(z | x) p(y_j | x, z) over masked tokens: the released code's."""
    mask = batch["target_mask"] * batch["weight"][:, None]
    return losses.weighted(-mixtures.ensemble(log_weights, log_likelihoods), mask)


def per_sequence(
    log_weights: Float32[Array, "B K"],
    log_likelihoods: Float32[Array, "B K M"],
    batch: Batch,
) -> tuple[Float32[jax.Array, ""], Float32[jax.Array, ""]]:
    """-log sum_z p(z | x) prod_j p(y_j | x, z) over sentences: the paper's."""
    kept: Shaped[Array, "B 1 M"] = batch["target_mask"][:, None] > 0
    whole = jnp.where(kept, log_likelihoods, 0.0).sum(-1)
    weight = jnp.where(kept.any((1, 2)), batch["weight"], 0.0)
    return losses.weighted(distillation.marginal_nll(log_weights, whole), weight)


MARGINALS: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {
    "token": per_token,
    "sequence": per_sequence,
}


def check(config: REALMConfig) -> None:
    """Raises UserError where sizes or choices do not fit together."""
    check_fields(config)
    c = config
    if c.k < 2:
        raise UserError(
            f"k is {c.k}; choose 2 or more, of which the null document is one."
        )
