"""Sequence-to-sequence models as pure functions, and decoding with their cache.

`seq2seq` gives T5's functions. Decoding knows of a model only ``predict(params, ids,
cache)``, so that another model's serve as well: `predictor` makes one of a `Seq2Seq`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int, Int32, PRNGKeyArray, Shaped

from rlm_jax.models import generation, layers
from rlm_jax.models.generation import GREEDY, Generated, Sampling
from rlm_jax.models.t5 import (
    Decoded,
    DecodingCache,
    T5Config,
    T5Decoder,
    T5Encoder,
    check,
)
from rlm_jax.ops import Array

Params = Any

Predict = Callable[[Params, Array, DecodingCache], tuple[Array, DecodingCache]]
"""(params, ids int32 [R], cache) -> (log p of what follows each, float32 [R, V]; the
cache with the ids in it)."""


class Seq2Seq(NamedTuple):
    """An encoder and a decoder, as pure functions of their parameters.

    With a key there is dropout. Rows of a batch do not influence one another; masks are
    1 for keep.
    """

    init: Callable[[PRNGKeyArray], Params]
    encode: Callable[..., jax.Array]
    """``encode(params, ids [N, T], mask [N, T], *, key=None)`` -> states [N, T, D]."""
    decode: Callable[..., Decoded]
    """``decode(params, targets_in [B, L], states [B, M, D], mask [B, M], *, key=None,
    attention=False)`` -> `Decoded`: hidden [B, L, D] as the head takes it, and what
    cross-attending layers attended to."""
    logits: Callable[..., jax.Array]
    """``logits(params, hidden [..., D])`` -> float32 [..., V]."""
    start: Callable[..., DecodingCache]
    """``start(params, states, mask, max_length)`` -> a cache for B sequences that holds
    the memory's keys and values, and slots for ``max_length`` tokens."""
    extend: Callable[..., Any]
    """``extend(params, ids [R], cache)`` -> (hidden [R, D], cache). R is a multiple of
    B; see `DecodingCache`."""
    start_id: int
    end_id: int
    pad_id: int
    width: int


class T5(nn.Module):
    """Ids to states, and ids over states to logits."""

    config: T5Config

    def setup(self):
        c = self.config
        check(c)
        init = nn.initializers.normal(1.0)
        self.embedding = self.param("embedding", init, (c.vocab_size, c.width))
        self.encoder = T5Encoder(c)
        self.decoder = T5Decoder(c)
        if not c.tied:
            self.head = self.param("head", init, (c.width, c.vocab_size))

    def embed(self, ids: Int[Array, " *B"]) -> Float[jax.Array, "*B D"]:
        """The tokens' vectors, as they are, in the computation's dtype."""
        return jnp.asarray(self.embedding)[ids].astype(self.config.dtype)

    def encode(
        self,
        ids: Int[Array, "N T"],
        mask: Shaped[Array, "N T"],
        *,
        deterministic: bool = True,
    ) -> Float[jax.Array, "N T D"]:
        """See `T5Encoder`."""
        return self.encoder(self.embed(ids), mask, deterministic=deterministic)

    def decode(
        self,
        targets_in: Int[Array, "B L"],
        states: Float[Array, "B M D"],
        mask: Shaped[Array, "B M"],
        *,
        deterministic: bool = True,
        attention: bool = False,
    ) -> Decoded:
        """See `T5Decoder`; hidden vectors are as the head takes them."""
        decoded = self.decoder(
            self.embed(targets_in), states, mask,
            deterministic=deterministic, attention=attention,
        )  # fmt: skip
        return decoded._replace(hidden=self._scaled(decoded.hidden))

    def start(
        self, states: Float[Array, "B M D"], mask: Shaped[Array, "B M"], max_length: int
    ) -> DecodingCache:
        """See `T5Decoder`."""
        return self.decoder.start(states, mask, max_length)

    def extend(
        self, ids: Int[Array, " R"], cache: DecodingCache
    ) -> tuple[Float[jax.Array, "R D"], DecodingCache]:
        """See `T5Decoder`; hidden vectors are as the head takes them."""
        hidden, cache = self.decoder.extend(self.embed(ids), cache)
        return self._scaled(hidden), cache

    def logits(self, hidden: Float[Array, "*B D"]) -> Float32[jax.Array, "*B V"]:
        """What the head says, in float32."""
        if self.config.tied:
            weights, product = self.embedding, "...d,vd->...v"
        else:
            weights, product = self.head, "...d,dv->...v"
        weights = weights.astype(hidden.dtype)
        return jnp.einsum(product, hidden, weights, preferred_element_type=jnp.float32)

    def __call__(self, ids, mask, targets_in):
        """Logits; touches every parameter, as `init` wants."""
        states = self.encode(ids, mask)
        return self.logits(self.decode(targets_in, states, mask).hidden)

    def _scaled(self, hidden):
        return hidden * self.config.width**-0.5 if self.config.tied else hidden


def seq2seq(config: T5Config) -> Seq2Seq:
    """T5's pure functions.

    Raises:
      UserError: sizes or choices do not fit together.
    """
    check(config)
    return functions(
        T5(config),
        start_id=config.start_id,
        end_id=config.end_id,
        pad_id=config.pad_id,
        width=config.width,
    )


def functions(module: nn.Module, **ids_and_width: int) -> Seq2Seq:
    """The pure functions of a module with the methods of `T5`.

    Args:
      **ids_and_width: ``start_id``, ``end_id``, ``pad_id`` and ``width``.
    """

    def method(name):
        def call(params, *args):
            return module.apply({"params": params}, *args, method=name)

        return call

    def init(key: PRNGKeyArray) -> Params:
        one = jnp.ones((1, 1), jnp.int32)
        return module.init(key, one, one, one)["params"]

    return Seq2Seq(
        init=init,
        encode=layers.applied(module, "encode"),
        decode=layers.applied(module, "decode"),
        logits=cast(Any, method("logits")),
        start=cast(Any, method("start")),
        extend=method("extend"),
        **ids_and_width,
    )


def shift_right(targets: Int[Array, "B L"], start_id: int) -> Int32[jax.Array, "B L"]:
    """What a decoder reads where it is to predict ``targets``: all but the last, after
    the start id."""
    targets = jnp.asarray(targets, jnp.int32)
    return jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=start_id)


def predictor(model: Seq2Seq) -> Predict:
    """The model's next-token distribution in logarithms, for `generate` and beams."""

    def predict(params, ids, cache):
        hidden, cache = model.extend(params, ids, cache)
        return jax.nn.log_softmax(model.logits(params, hidden)), cache

    return predict


@partial(
    jax.jit,
    static_argnames=("predict", "start_id", "max_new_tokens", "sampling", "end_ids"),
)
def generate(
    predict: Predict,
    params: Params,
    cache: DecodingCache,
    key: PRNGKeyArray,
    *,
    start_id: int,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    end_ids: tuple[int, ...] = (),
) -> Generated:
    """One sequence for each text, the most likely tokens or drawn ones.

    What a row becomes depends on its memory, its number and the key, never on other
    rows. Compiled once for each ``predict``, which should therefore be made once.

    Args:
      predict: of the model.
      params: of the model.
      cache: as ``start`` gives it, of ``max_new_tokens`` slots or more; in a shorter
        one the log-probabilities become NaN.
      key: of the draws.
      start_id: what the decoder reads first.
      max_new_tokens: N.
      sampling: a `Sampling`; `GREEDY` takes the most likely token.
      end_ids: tokens that end a row.
    """
    num_rows = jax.tree.leaves(cache.slots)[0].shape[0]
    ids = jnp.full(num_rows, start_id, jnp.int32)
    log_probs, cache = predict(params, ids, cache)
    memory = cache.memory

    def read(ids, own):
        log_probs, extended = predict(params, ids, DecodingCache(memory, *own))
        return log_probs, (extended.slots, extended.length)

    return generation.continued(
        read,
        log_probs,
        # Without the memory: what a loop carries is copied when it begins.
        (cache.slots, cache.length),
        key,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        end_ids=end_ids,
    )
