"""RETRO: a language model trained against a frozen retriever (Borgeaud et al. 2022).

A row is cut into chunks C_1, C_2, ... of m tokens. What a frozen encoder finds for C_u,
RET(C_u), is K neighbours of r tokens, each a chunk of the database with the one that
follows it. Tokens are predicted by

    p(x | RET) = prod_{u, i} p(x_{(u-1) m + i} | (x_j)_{j < (u-1) m + i},
                                                 (RET(C_u'))_{u' < u})         (eq. 1)

which chunked cross-attention (algorithm 1) makes of a decoder at some of its layers:
`models.retro`, with `ops.chunks` for what reads what. The neighbours come with the
batch; a batch without them, or with none that is not masked, is the decoder's alone.
"""

import dataclasses
from typing import Literal, cast

import jax
import jax.numpy as jnp
import numpy as np

from rlm_jax.configuration import check_fields
from rlm_jax.errors import UserError
from rlm_jax.method import Batch, Method, Params, TokenScores
from rlm_jax.methods.lm import decoder_functions
from rlm_jax.models.decoder import DecoderConfig
from rlm_jax.models.neighbours import NeighbourEncoderConfig, filled
from rlm_jax.models.retro import Retro, check, usual_layers
from rlm_jax.ops import collectives, losses


@dataclasses.dataclass
class RetroConfig:
    """A decoder, and what reads its neighbours.

    A neighbour is r = 2 m tokens in the paper; any r, and any number of neighbours, can
    come with a batch.
    """

    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    encoder: NeighbourEncoderConfig = dataclasses.field(
        default_factory=NeighbourEncoderConfig
    )
    chunk_length: int = 64  # m
    k: int = 2  # neighbours of a chunk
    cca_layers: tuple[int, ...] = ()  # from 1; (): the paper's 6, 9, 12, ...
    trained: Literal["all", "retrieval"] = "all"  # retrieval: the decoder stays


def everything(params: Params):
    """All parameters move: RETRO from scratch."""
    return jax.tree.map(lambda _: True, params)


def retrieval_parts(params: Params):
    """All but the decoder's move: RETRO-fitting (section 4.2)."""
    return {
        name: jax.tree.map(lambda _, name=name: name != "decoder", part)
        for name, part in params.items()
    }


TRAINED = {"all": everything, "retrieval": retrieval_parts}
"""Name -> params -> the same tree of bools, true where a parameter moves."""


def retro(config: RetroConfig) -> Method:
    """Cross-entropy of the next token given the neighbours of all chunks before it.

    Batches are a language model's and hold ``neighbours`` int32 [B, C, K, r], those of
    each of the T // m full chunks, with ``neighbour_mask`` [B, C, K, r] (1 = token, 0 =
    padding, which stands at a neighbour's end; all 0 = there is no such neighbour).
    Without ``neighbours`` retrieval is off. The parameters under ``"decoder"`` are a
    `Decoder`'s, and start where the plain language model's do with the same key.

    What is not ``trained`` has no gradient. Weight decay has to be told of it:
    ``optim.optimizer(..., trainable=TRAINED[config.trained])``.

    Raises:
      UserError: sizes or choices do not fit together, or ``trained`` is unknown.
    """
    check_fields(config)
    sizes = model_sizes(config)
    check(*sizes)
    model = Retro(*sizes)
    plain_init, _ = decoder_functions(config.decoder)

    def init(key):
        m = config.chunk_length
        tokens = jnp.zeros((1, m), jnp.int32)
        neighbours = jnp.zeros((1, 1, 1, 2 * m), jnp.int32)
        params = model.init(key, tokens, tokens, neighbours, method="score")["params"]
        return {**params, "decoder": plain_init(key)}

    def score(params, batch, dropout_key=None) -> TokenScores:
        scores = model.apply(
            {"params": params},
            batch["tokens"],
            batch["targets"],
            batch.get("neighbours"),
            batch.get("neighbour_mask"),
            deterministic=dropout_key is None,
            rngs=None if dropout_key is None else {"dropout": dropout_key},
            method="score",
        )
        return TokenScores(*cast(tuple[jax.Array, jax.Array, jax.Array], scores))

    def loss(params, batch, key, *, axis=None):
        params = _without_gradient(params, TRAINED[config.trained](params))
        return _sums(score(params, batch, collectives.fold_rank(key, axis)), batch)

    def evaluate(params, batch, key=None, *, axis=None):
        return _sums(score(params, batch), batch)

    return Method(init=init, loss=loss, evaluate=evaluate, score=score)


def model_sizes(
    config: RetroConfig,
) -> tuple[DecoderConfig, NeighbourEncoderConfig, int, tuple[int, ...]]:
    """What `Retro`, and `retro_generator`, are made of."""
    layers = tuple(config.cca_layers) or usual_layers(config.decoder.num_layers)
    return config.decoder, config.encoder, config.chunk_length, layers


def around(decoder_params: Params, params: Params) -> Params:
    """RETRO's parameters with a trained decoder's in place of its own.

    Raises:
      UserError: the decoder is of another configuration.
    """
    wanted, given = (
        jax.tree.map(lambda x: tuple(x.shape), tree)
        for tree in (params["decoder"], decoder_params)
    )
    if wanted != given:
        raise UserError(
            "the decoder's parameters are not of the configuration's sizes; take the "
            "configuration that it was trained with."
        )
    return {**params, "decoder": decoder_params}


def warm_started(config: RetroConfig, params: Params) -> Params:
    """RETRO's parameters; the layers that read the neighbours copy the decoder's.

    The encoder's E blocks become copies of the decoder's first E, except for their
    attention to the chunk. Each cross-attention above layer E becomes a copy of its
    layer's self-attention; one at layer E or below stays as it is. The slot ``nothing``
    begins with as much weight as K r equal slots.

    The copies are a starting point and compute something else than the originals: the
    encoder attends in both directions, the query comes after the layer's own attention,
    and only layer E + 1 was trained to read keys of the encoder's depth. But a decoder
    that has learned to repeat what followed the same words earlier in its context soon
    does so with a neighbour. Rothe et al. 2020 begin encoder-decoders in this way; the
    RETRO paper does not.

    Raises:
      UserError: as of `check_warm_start`.
    """
    check_warm_start(config)
    decoder, sizes, _, layers = model_sizes(config)
    same = np.eye(decoder.width, dtype=np.float32)
    encoder = {**params["encoder"], "embedding": {"kernel": same}}
    for i in range(sizes.num_layers):
        block = params["decoder"][f"block_{i}"]
        qkv = {"kernel": _qkv_of_all_heads(decoder, block)}
        attention = {**block["attention"], "qkv": qkv}
        encoder[f"block_{i}"] = encoder[f"block_{i}"] | block | {"attention": attention}
    even = np.float32(np.log(config.k * 2 * config.chunk_length))
    cross = {}
    for layer in (x for x in layers if x > sizes.num_layers):
        name = f"cross_block_{layer - 1}"
        block = params["decoder"][f"block_{layer - 1}"]
        cross[name] = copied_cross_attention(decoder, block, params[name], even)
    return {**params, "encoder": encoder, **cross}


def copied_cross_attention(
    decoder: DecoderConfig, block: Params, cross: Params, nothing: np.float32
) -> Params:
    """A layer's cross-attention as a copy of its self-attention.

    Args:
      decoder: whose layer it is.
      block: the layer's parameters.
      cross: the cross-attention's own.
      nothing: what is added to the logit of attending to nothing.
    """
    qkv = _qkv_of_all_heads(decoder, block)
    query, key_value = np.split(qkv, [decoder.width], axis=1)
    # One norm ends the encoder; what the layer's own would scale, its kernel does.
    scale = np.asarray(block["attention_norm"]["scale"])[:, None]
    attention = {
        "query": {"kernel": query},
        "key_value": {"kernel": scale * key_value},
        "out": {"kernel": block["attention"]["out"]["kernel"]},
    }
    slot = cross["nothing"]
    return {
        "norm": block["attention_norm"],
        "attention": attention,
        "nothing": {**slot, "bias": slot["bias"] + nothing},
    }


def check_warm_start(config: RetroConfig) -> None:
    """Raises UserError where the decoder's layers do not fit in the readers' place."""
    decoder, sizes, _, cross_layers = model_sizes(config)
    encoder = filled(sizes, decoder)
    for name in ("width", "num_heads", "feed_forward_width"):
        has, wants = getattr(encoder, name), getattr(decoder, name)
        if has != wants:
            raise UserError(
                f"with a warm start the encoder's {name} has to be the decoder's, "
                f"{wants}, and is {has}; set encoder.{name} to 0."
            )
    if encoder.heads_width != encoder.width:
        raise UserError(
            "with a warm start the encoder's heads have to make up its width, as the "
            f"decoder's do, and are {encoder.head_width} wide; set encoder.head_width "
            "to 0."
        )
    if encoder.num_layers >= cross_layers[-1]:
        raise UserError(
            f"with a warm start the encoder's {encoder.num_layers} layers have to be "
            f"fewer than those up to the last cross-attention, {cross_layers[-1]}; "
            "lower encoder.num_layers."
        )
    check_copied(decoder)


def check_copied(decoder: DecoderConfig) -> None:
    """Raises UserError where self-attention cannot become cross-attention."""
    if decoder.positions != "rotary":
        raise UserError(
            f"the decoder's positions are {decoder.positions} and the encoder's "
            "rotary, so its layers are no warm start; leave warm_start out."
        )
    if decoder.norm != "rms" or decoder.bias:
        raise UserError(
            f"the decoder's norm is {decoder.norm!r} and its bias {decoder.bias}, and "
            "cross-attention has no biases to copy; leave warm_start out."
        )
    if decoder.head_width not in (0, decoder.width // decoder.num_heads):
        raise UserError(
            f"the decoder's heads of {decoder.head_width} do not make up its width of "
            f"{decoder.width}, as the encoder's do; leave warm_start out."
        )


def _qkv_of_all_heads(decoder: DecoderConfig, block: Params) -> np.ndarray:
    """[D, 3 D] for a kernel [D, (H + 2 G) d]: keys and values once for every head."""
    kernel = np.asarray(block["attention"]["qkv"]["kernel"])
    heads, groups = decoder.num_heads, decoder.num_kv_heads or decoder.num_heads
    split = kernel.reshape(len(kernel), heads + 2 * groups, -1)
    q, kv = split[:, :heads], split[:, heads:]
    kv = np.repeat(kv, heads // groups, axis=1)
    return np.concatenate([q, kv], axis=1).reshape(len(kernel), -1)


def _without_gradient(params, trainable):
    return jax.tree.map(
        lambda x, moves: x if moves else jax.lax.stop_gradient(x), params, trainable
    )


def _sums(scores: TokenScores, batch: Batch):
    nll = scores.log_normaliser - scores.target_score
    return {"loss": losses.weighted(nll, batch["mask"])}
