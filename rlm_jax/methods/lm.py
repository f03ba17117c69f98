"""The plain language model: what every retrieval gain is measured against."""

import dataclasses
from typing import cast

import jax
from jaxtyping import PRNGKeyArray

from rlm_jax.method import Batch, Method, Params, TokenScores
from rlm_jax.models.decoder import Decoder, DecoderConfig
from rlm_jax.ops import collectives, losses


@dataclasses.dataclass
class LMConfig:
    """A decoder and nothing else."""

    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)


def lm(config: LMConfig) -> Method:
    """Cross-entropy of the next token, -log p(x_{t+1} | x_{<=t}), in nats."""
    init, score = decoder_functions(config.decoder)

    def loss(params, batch, key, *, axis=None):
        return _sums(score(params, batch, collectives.fold_rank(key, axis)), batch)

    def evaluate(params, batch, key=None, *, axis=None):
        return _sums(score(params, batch), batch)

    return Method(init=init, loss=loss, evaluate=evaluate, score=score)


def _sums(scores: TokenScores, batch):
    nll = scores.log_normaliser - scores.target_score
    return {"loss": losses.weighted(nll, batch["mask"])}


def decoder_functions(config: DecoderConfig):
    """(init(key) -> params, score(params, batch, dropout_key=None) -> TokenScores).

    What every method over our decoder shares. Without a key there is no dropout.
    """
    decoder = Decoder(config)

    def init(key: PRNGKeyArray) -> Params:
        tokens = jax.numpy.zeros((1, 2), jax.numpy.int32)
        return decoder.init(key, tokens, tokens, method="score")["params"]

    def score(
        params: Params, batch: Batch, dropout_key: PRNGKeyArray | None = None
    ) -> TokenScores:
        scores = decoder.apply(
            {"params": params},
            batch["tokens"],
            batch["targets"],
            deterministic=dropout_key is None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
            method="score",
        )
        return TokenScores(*cast(tuple[jax.Array, jax.Array, jax.Array], scores))

    return init, score
