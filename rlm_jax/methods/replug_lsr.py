"""REPLUG-LSR: a retriever learns which documents help a frozen language model.

    P(d_i | x) = softmax_i(s(x, d_i) / gamma),  s = q.c
    Q(d_i | x, y) = softmax_i(log p_LM(y | d_i, x) / beta)
    L = KL(P || Q)                       (Shi et al. 2023, section 4; Q is constant)

over the K documents that an index found for the context x, y being what follows. The
index is stale (`rlm_jax.retrieval.refresh`); the K documents are encoded and scored
again with the current parameters, so only which documents they are is out of date. The
released code of this part does not run; the equations are the paper's.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rlm_jax.errors import UserError
from rlm_jax.method import Method, shared
from rlm_jax.methods.dpr import in_chunks
from rlm_jax.models.encoder import EncoderConfig, embedder
from rlm_jax.ops import collectives, distillation, losses, mixtures


@dataclasses.dataclass
class REPLUGLSRConfig:
    """One encoder for contexts and documents, and the two temperatures."""

    # Vectors of length 1: the paper's scores are cosines, and gamma goes with them.
    encoder: EncoderConfig = dataclasses.field(
        default_factory=lambda: EncoderConfig(normalise=True)
    )
    gamma: float = 0.1  # of the retriever's scores
    beta: float = 0.1  # of the language model's
    chunk: int = 0  # rows encoded at once, 0 = all; see `dpr.in_chunks`
    k: int = 20  # documents of a context


def replug_lsr(config: REPLUGLSRConfig) -> Method:
    """The method; parameters are the encoder's.

    A batch holds, for B contexts with K documents each:

      query_ids, query_mask      int32 [B, T]
      passage_ids, passage_mask  int32 [B, K, T']
      lm_scores   float32 [B, K]  log p_LM(y | d_i, x): beta belongs to a mean over
                                  y's tokens or to their sum, whichever is given
      present     bool [B, K]     False = no such document
      weight      float32 [B]     0 = padding

    A context without documents counts for nothing. Beside the loss stand ``agreement``
    (how often the retriever's best document is the language model's),
    ``expected_lm_score`` (under P), and ``uniform_lm_score`` (under equal weights, what
    a retriever without an opinion would get).

    Raises:
      UserError: a temperature, chunk or k that is out of range.
    """
    return dual_encoder(config, *embedder(config.encoder))


def dual_encoder(config: REPLUGLSRConfig, init, embed) -> Method:
    """`replug_lsr` over any encoder: ``init(key)``, ``embed(params, batch, key=)``."""
    c = config
    if c.gamma <= 0 or c.beta <= 0 or c.chunk < 0 or c.k < 1:
        raise UserError(
            f"REPLUG-LSR has gamma={c.gamma}, beta={c.beta}, chunk={c.chunk} and "
            f"k={c.k}; choose temperatures above 0, a chunk of 0 or more and a k of 1 "
            "or more."
        )
    if c.chunk:
        embed = in_chunks(embed, c.chunk)

    def scores(params, batch, keys):
        def encode(side, key):
            ids, mask = (
                batch[f"{side}_{part}"].reshape(-1, batch[f"{side}_{part}"].shape[-1])
                for part in ("ids", "mask")
            )
            return embed(params, {"ids": ids, "mask": mask}, key=key)

        queries, passages = encode("query", keys[0]), encode("passage", keys[1])
        rows, k = batch["lm_scores"].shape
        return mixtures.inner_product(queries, passages.reshape(rows, k, -1))

    def sums(params, batch, keys):
        present = batch["present"].astype(bool)
        lm_scores = jax.lax.stop_gradient(jnp.where(present, batch["lm_scores"], 0.0))
        similarities = scores(params, batch, keys)
        log_p = mixtures.log_weights(similarities, present, temperature=c.gamma)
        log_q = mixtures.log_weights(lm_scores, present, temperature=c.beta)
        share = present / jnp.maximum(present.sum(-1, keepdims=True), 1)
        figures = {
            "loss": distillation.kl(log_p, log_q),
            "agreement": log_p.argmax(-1) == log_q.argmax(-1),
            "expected_lm_score": (jnp.exp(log_p) * lm_scores).sum(-1),
            "uniform_lm_score": (share * lm_scores).sum(-1),
        }
        weight = jnp.where(present.any(-1), batch["weight"], 0.0)
        return {name: losses.weighted(x, weight) for name, x in figures.items()}

    def loss(params, batch, key, *, axis=None):
        keys = jax.random.split(collectives.fold_rank(key, axis))
        return sums(params, batch, (keys[0], keys[1]))

    def evaluate(params, batch, key=None, *, axis=None):
        return sums(params, batch, (None, None))

    return Method(
        init=init,
        loss=loss,
        evaluate=evaluate,
        retrieval=shared(c.k, embed),
    )
