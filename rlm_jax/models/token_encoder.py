"""A bidirectional encoder as pure functions of tokens: their vectors, or their logits.

`models.encoder.embedder` makes one vector of a text; NPM compares single tokens, and a
masked language model says which token a mask stands for.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Float32, PRNGKeyArray

from rlm_jax.models.encoder import Embedder, Encoder, EncoderConfig, MaskedLM, check

Params = Any


def token_embedder(config: EncoderConfig) -> Embedder:
    """The functions of an encoder that makes one vector a token, [N, T, D].

    Pooling, normalisation and projection have no part in it: a token's vector is its
    last hidden state.

    Raises:
      UserError: sizes or choices do not fit together.
    """
    check(config)
    module = Encoder(config)

    def init(key: PRNGKeyArray) -> Params:
        one = jnp.ones((1, 1), jnp.int32)
        return module.init(key, one, one)["params"]

    def embed(
        params: Params, batch: Mapping[str, Any], *, key: PRNGKeyArray | None = None
    ) -> Float32[jax.Array, "N T D"]:
        states = module.apply(
            {"params": params},
            batch["ids"],
            batch["mask"],
            deterministic=key is None,
            rngs=None if key is None else {"dropout": key},
        )
        return cast(jax.Array, states).astype(jnp.float32)

    return Embedder(init, embed)


class MaskedLMFunctions(NamedTuple):
    """A masked language model as two pure functions."""

    init: Callable[[jax.Array], Params]
    logits: Callable[..., jax.Array]
    """``logits(params, {"ids", "mask", "positions"}, *, key=None)`` -> float32
    [N, M, V]: what stands at the positions int32 [N, M]; token types may be given as
    "types". With a key there is dropout."""


def masked_lm_functions(config: EncoderConfig) -> MaskedLMFunctions:
    """The pure functions of `models.encoder.MaskedLM`.

    Raises:
      UserError: sizes or choices do not fit together.
    """
    check(config)
    module = MaskedLM(config)

    def init(key: PRNGKeyArray) -> Params:
        one = jnp.ones((1, 1), jnp.int32)
        return module.init(key, one, one)["params"]

    def logits(
        params: Params, batch: Mapping[str, Any], *, key: PRNGKeyArray | None = None
    ) -> Float32[jax.Array, "N M V"]:
        out = module.apply(
            {"params": params},
            batch["ids"],
            batch["mask"],
            batch.get("types"),
            batch["positions"],
            deterministic=key is None,
            rngs=None if key is None else {"dropout": key},
        )
        return cast(jax.Array, out)

    return MaskedLMFunctions(init, logits)
