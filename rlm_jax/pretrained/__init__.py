"""Published checkpoints in Hugging Face's layout, read and written without pickle."""

from rlm_jax.pretrained.decoders import has_layout, load_decoder, save_decoder
from rlm_jax.pretrained.encoders import (
    check_layout,
    load_encoder,
    load_masked_lm,
    save_encoder,
)
from rlm_jax.pretrained.readers import KIND as READER
from rlm_jax.pretrained.readers import load_reader, save_reader
from rlm_jax.pretrained.t5 import load_t5, save_t5

__all__ = [
    "READER",
    "check_layout",
    "has_layout",
    "load_decoder",
    "load_encoder",
    "load_masked_lm",
    "load_reader",
    "load_t5",
    "save_decoder",
    "save_encoder",
    "save_reader",
    "save_t5",
]
