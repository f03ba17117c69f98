"""What a causal decoder is made of, and what does not fit together in it."""

import dataclasses
from typing import Literal

from rlm_jax.configuration import check_fields
from rlm_jax.errors import UserError
from rlm_jax.models import layers


@dataclasses.dataclass
class DecoderConfig:
    """Sizes and choices; `gpt2` and `modern` are the usual combinations."""

    vocab_size: int = 0  # 0: taken from the tokenizer
    num_layers: int = 4  # blocks
    width: int = 256  # of the hidden states
    num_heads: int = 4  # of attention
    feed_forward_width: int = 1024  # inside a block
    max_length: int = 1024  # only learned positions end there
    positions: Literal["rotary", "learned", "sinusoidal"] = "rotary"
    norm: layers.Norm = "rms"
    activation: layers.Activation = "swiglu"
    bias: bool = False  # in linear maps and norms
    tie_embeddings: bool = True  # the output's embedding is the input's
    cutoffs: tuple[
        int, ...
    ] = ()  # ends of the adaptive clusters but the last; () = full
    adaptive_factor: int = 4  # each cluster is this much narrower than the one before
    dropout: float = 0.0  # probability of it
    dtype: layers.Dtype = "float32"  # of the computation; parameters are always float32
    remat: bool = False  # recompute each block in the backward pass
    num_kv_heads: int = 0  # of keys and values (grouped-query); 0: num_heads
    head_width: int = 0  # 0: width over num_heads
    rotary_base: float = 10000.0  # of rotary positions
    rotary_scaling: tuple[float, ...] = ()  # Llama 3's, see layers.rotary_rates
    norm_epsilon: float = 0.0  # 0: the usual one, 1e-5 of layer, 1e-6 of rms
    qkv_bias: bool = False  # Qwen 2's, of queries, keys and values alone
    # Tokens of a window: a token sees its own and the one before; 0: all before it.
    attention_window: int = 0


def check(config: DecoderConfig) -> None:
    """Raises UserError where sizes or choices do not fit together."""
    check_fields(config)
    c = config
    head_width = c.head_width or c.width // c.num_heads
    if c.vocab_size < 1:
        raise UserError("vocab_size is 0; set it to the tokenizer's.")
    if c.width % c.num_heads and not c.head_width:
        raise UserError(
            f"width {c.width} does not divide into {c.num_heads} heads; choose a "
            "multiple of num_heads."
        )
    if c.num_kv_heads and c.num_heads % c.num_kv_heads:
        raise UserError(
            f"{c.num_heads} heads cannot share {c.num_kv_heads} of keys and values "
            "evenly; choose num_kv_heads that divides num_heads."
        )
    if c.rotary_base <= 1:
        raise UserError(f"rotary_base is {c.rotary_base}; choose one above 1.")
    scaling = tuple(c.rotary_scaling)
    fits = len(scaling) == 4 and min(scaling) > 0 and scaling[1] < scaling[2]
    if scaling and not fits:
        raise UserError(
            f"rotary_scaling is {scaling}; choose (factor, low, high, length) above 0, "
            "with low below high."
        )
    if c.positions == "rotary" and head_width % 2:
        raise UserError(
            f"rotary positions turn pairs and a head is {head_width} wide; choose "
            "width and num_heads with an even quotient."
        )
    if c.positions == "sinusoidal" and (c.width % 2 or c.width < 4):
        raise UserError(
            f"width is {c.width}; sinusoidal positions want an even one, 4 or more."
        )


def check_length(config: DecoderConfig, length: int, name: str) -> None:
    """Raises UserError where learned positions end before ``length``, called name."""
    if config.positions == "learned" and length > config.max_length:
        raise UserError(
            f"{name} is {length}, and learned positions end at max_length, "
            f"{config.max_length}; choose at most that."
        )
