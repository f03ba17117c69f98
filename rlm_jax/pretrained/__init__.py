"""Published checkpoints in Hugging Face's layout, read and written without pickle."""

from rlm_jax.pretrained.decoders import has_layout, load_decoder, save_decoder
from rlm_jax.pretrained.encoders import (
    check_layout,
    load_encoder,
    load_masked_lm,
    save_encoder,
)

__all__ = [
    "check_layout",
    "has_layout",
    "load_decoder",
    "load_encoder",
    "load_masked_lm",
    "save_decoder",
    "save_encoder",
]
