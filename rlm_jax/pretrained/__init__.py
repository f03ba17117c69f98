"""Published checkpoints in Hugging Face's layout, read and written without pickle."""

from rlm_jax.pretrained.encoders import load_encoder, load_masked_lm, save_encoder

__all__ = ["load_encoder", "load_masked_lm", "save_encoder"]
