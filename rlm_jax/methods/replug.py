"""REPLUG (Shi et al. 2023, section 3): one language model, one document at a time.

    p(y_t | x, y_{<t}) = sum_i w_i p(y_t | d_i, x, y_{<t}),  w = softmax(s / t)

d_i are the K documents retrieved for the context x, s_i their scores. Each is prepended
to the context and the K texts run as one batch; their distributions are mixed token by
token, as in the released code, with weights that stay those of the context. Nothing is
trained: the language model is a black box that gives probabilities, and `ensemble`
takes them from anywhere. `replug` runs a decoder of ours inside one jitted function.
The paper's scores are cosines, the released code's inner products, and t is 1 in both.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from rlm_jax.configuration import check_fields
from rlm_jax.errors import UserError
from rlm_jax.method import Method
from rlm_jax.methods.lm import decoder_functions
from rlm_jax.models import scoring
from rlm_jax.models.decoder import Decoder, DecoderConfig
from rlm_jax.ops import Array, collectives, losses, mixtures


@dataclasses.dataclass
class REPLUGConfig:
    """A decoder, and how the documents of its ensemble are weighed."""

    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    k: int = 10  # documents that a context retrieves
    temperature: float = 1.0  # of the retriever's scores


def ensemble(
    scores: Float[Array, "*B K"],
    log_probs: Float[Array, "*B K T"],
    *,
    temperature: float | Array = 1.0,
) -> Float32[jax.Array, "*B T"]:
    """log p(y_t | x, y_{<t}), the mixture over the documents, token by token.

    Args:
      scores: float32, the retriever's; -inf = the document is absent.
      log_probs: float32, log p(y_t | d_i, x, y_{<t}) by any language model;
        of an absent document they may be anything.
      temperature: t, of the scores.

    Returns:
      float32; minus infinity where no document is present.
    """
    return mixtures.ensemble(log_weights(scores, temperature=temperature), log_probs)


def log_weights(
    scores: Float[Array, "*B K"], *, temperature: float | Array = 1.0
) -> Float32[jax.Array, "*B K"]:
    """log w = log softmax(s / t), float32; minus infinity where absent."""
    present = scores != -jnp.inf  # NaN is a fault to be seen
    return mixtures.log_weights(scores, present, temperature=temperature)


def replug(config: REPLUGConfig) -> Method:
    """The method; parameters, ``init`` and ``score`` are the plain language model's.

    A batch holds, for B contexts with K documents each and N tokens to predict:

      tokens   int32 [B, K, T]  document, context, and continuation but its last token
      targets  int32 [B, N]     the continuation
      mask     float32 [B, N]   1 = scored
      scores   float32 [B, K]   the retriever's; -inf = the document is absent
      start    int32 [B, K]     the position whose next token is the first target; may
                                be absent: T - N, the continuation ends the row. What
                                stands behind the continuation is never seen, so texts
                                of any length can be padded on the right

    Only the N positions meet the vocabulary. A context without documents has its bare
    text as the one row that is present, with a score of 0; where none is present the
    loss is infinite. ``evaluate`` also tells the loss with the best document alone and
    with equal weights, ``first_loss`` and ``uniform_loss``.

    Raises:
      UserError: a temperature that is not positive, or a k below 1.
    """
    check_fields(config)
    init, score = decoder_functions(config.decoder)
    log_probs = continuation_log_probs(config.decoder)

    def nll(scores, log_p):
        return -ensemble(scores, log_p, temperature=config.temperature)

    def loss(params, batch, key, *, axis=None):
        log_p = log_probs(params, batch, collectives.fold_rank(key, axis))
        return {"loss": losses.weighted(nll(batch["scores"], log_p), batch["mask"])}

    def evaluate(params, batch, key=None, *, axis=None):
        log_p = log_probs(params, batch)
        scores = batch["scores"]
        best = jnp.arange(scores.shape[-1]) == scores.argmax(-1, keepdims=True)
        ways = {
            "loss": scores,
            "first_loss": jnp.where(best, scores, -jnp.inf),
            "uniform_loss": jnp.where(scores != -jnp.inf, 0.0, -jnp.inf),
        }
        return {
            name: losses.weighted(nll(given, log_p), batch["mask"])
            for name, given in ways.items()
        }

    return Method(init=init, loss=loss, evaluate=evaluate, score=score)


def continuation_log_probs(config: DecoderConfig):
    """log p of each continuation after each of its K texts, float32 [B, K, N].

    ``log_probs(params, batch, dropout_key=None)`` for the tokens, targets and start of
    a batch of `replug`. The rows run as one batch [B K, T].

    Raises:
      UserError: a continuation is longer than the text that it ends.
    """
    decoder = Decoder(config)

    def log_probs(params, batch, dropout_key=None):
        rows, k, length = batch["tokens"].shape
        num = batch["targets"].shape[-1]
        if num > length:
            raise UserError(
                f"{num} tokens are to be predicted in texts of {length}; choose longer "
                "texts or a shorter continuation."
            )
        start = batch.get("start", jnp.full((rows, k), length - num))
        targets = jnp.broadcast_to(batch["targets"][:, None], (rows, k, num))
        scores, normaliser = decoder.apply(
            {"params": params},
            batch["tokens"].reshape(rows * k, length),
            targets.reshape(rows * k, num),
            start.reshape(rows * k),
            deterministic=dropout_key is None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
            method=scoring.score_from,
        )
        return (scores - normaliser).reshape(rows, k, num)

    return log_probs
