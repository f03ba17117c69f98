"""In-context RALM's trained reranker (Ram et al. 2023, section 6.2).

    p_rank(d_i | x) = softmax_i f(x, d_i)
    L = -log sum_i p_rank(d_i | x) p_LM(y | d_i, x)

f is a cross-encoder: it reads the end of the context x and a document as one text. The
documents are those that a retriever found; y is what follows the context, and the
frozen language model's probability of it says which document should come first. At
evaluation the language model is given the document of the highest f alone.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rlm_jax.configuration import check_fields
from rlm_jax.errors import UserError
from rlm_jax.method import Method
from rlm_jax.models.encoder import EncoderConfig, embedder, in_chunks
from rlm_jax.ops import collectives, distillation, losses, mixtures


@dataclasses.dataclass
class RerankerConfig:
    """A cross-encoder, whose projection is the one score of a pair."""

    encoder: EncoderConfig = dataclasses.field(
        default_factory=lambda: EncoderConfig(pooling="cls", projection=1)
    )
    chunk: int = 0  # pairs encoded at once, 0 = all; see `encoder.in_chunks`
    k: int = 16  # documents of a context


def reranker(config: RerankerConfig) -> Method:
    """The method; parameters are the encoder's.

    A batch holds, for B contexts with K documents each, best first as retrieved:

      ids, mask  int32 [B, K, T]    [CLS] x [SEP] d_i [SEP]
      lm_scores  float32 [B, K]     log p_LM(y | d_i, x), summed over y's tokens
      present    bool [B, K]        False = no such document
      weight     float32 [B]        0 = padding

    A context without documents counts for nothing. Beside the loss stand the language
    model's own: ``chosen_nll`` with the reranker's best document, ``first_nll`` with
    the retriever's, ``oracle_nll`` with the one that fits best, all -log p_LM(y | .),
    and ``agreement``, how often the chosen one is the oracle's.

    Raises:
      UserError: an encoder that does not end in one score, or a chunk or k that is out
        of range.
    """
    return cross_encoder(config, *embedder(config.encoder))


def cross_encoder(config: RerankerConfig, init, embed) -> Method:
    """`reranker` over any encoder; ``embed(params, batch, key=)`` gives [N, 1]."""
    _check(config)
    if config.chunk:
        embed = in_chunks(embed, config.chunk)

    def scores(params, batch, key):
        rows, k, length = batch["ids"].shape
        pairs = {name: batch[name].reshape(-1, length) for name in ("ids", "mask")}
        return embed(params, pairs, key=key).reshape(rows, k)

    def sums(params, batch, key):
        present = batch["present"].astype(bool)
        lm_scores = jax.lax.stop_gradient(batch["lm_scores"])
        log_p = mixtures.log_weights(scores(params, batch, key), present)
        choice, oracle = log_p.argmax(-1), _best(lm_scores, present)

        def nll(which):
            return -jnp.take_along_axis(lm_scores, which[:, None], axis=1)[:, 0]

        figures = {
            "loss": distillation.marginal_nll(log_p, lm_scores),
            "chosen_nll": nll(choice),
            "first_nll": nll(present.argmax(-1)),
            "oracle_nll": nll(oracle),
            "agreement": choice == oracle,
        }
        weight = jnp.where(present.any(-1), batch["weight"], 0.0)
        return {name: losses.weighted(x, weight) for name, x in figures.items()}

    def loss(params, batch, key, *, axis=None):
        return sums(params, batch, collectives.fold_rank(key, axis))

    def evaluate(params, batch, key=None, *, axis=None):
        return sums(params, batch, None)

    return Method(init=init, loss=loss, evaluate=evaluate)


def _best(scores, present):
    return jnp.where(present, scores, -jnp.inf).argmax(-1)


def _check(config: RerankerConfig) -> None:
    check_fields(config)
    if config.encoder.projection != 1 or config.encoder.normalise:
        raise UserError(
            f"The reranker's encoder has projection={config.encoder.projection} and "
            f"normalise={config.encoder.normalise}; a pair has one score, so choose a "
            "projection of 1 and no normalising."
        )
