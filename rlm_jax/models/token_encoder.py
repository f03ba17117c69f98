"""A bidirectional encoder as pure functions of tokens: their vectors, or their logits.

`models.encoder.embedder` makes one vector of a text; NPM compares single tokens, and a
masked language model says which token a mask stands for.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float32, PRNGKeyArray

from rlm_jax.models import layers
from rlm_jax.models.encoder import Embedder, Encoder, EncoderConfig, MaskedLM, check

Params = Any


def token_embedder(config: EncoderConfig) -> Embedder:
    """The functions of an encoder that makes one vector a token, [N, T, D].

    Pooling, normalisation and projection have no part in it: a token's vector is its
    last hidden state. Equal configurations give the same functions, so that what is
    compiled for one memory serves the next.

    Raises:
      UserError: sizes or choices do not fit together.
    """
    check(config)
    return _token_embedder(dataclasses.astuple(config))


@functools.lru_cache(maxsize=16)
def _token_embedder(fields: tuple) -> Embedder:
    module = Encoder(EncoderConfig(*fields))
    run = layers.applied(module)

    def init(key: PRNGKeyArray) -> Params:
        one = jnp.ones((1, 1), jnp.int32)
        return module.init(key, one, one)["params"]

    def embed(
        params: Params, batch: Mapping[str, Any], *, key: PRNGKeyArray | None = None
    ) -> Float32[jax.Array, "N T D"]:
        return run(params, batch["ids"], batch["mask"], key=key).astype(jnp.float32)

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
    run = layers.applied(module)

    def init(key: PRNGKeyArray) -> Params:
        one = jnp.ones((1, 1), jnp.int32)
        return module.init(key, one, one)["params"]

    def logits(
        params: Params, batch: Mapping[str, Any], *, key: PRNGKeyArray | None = None
    ) -> Float32[jax.Array, "N M V"]:
        ids, mask, at = (batch[name] for name in ("ids", "mask", "positions"))
        return run(params, ids, mask, batch.get("types"), at, key=key)

    return MaskedLMFunctions(init, logits)
