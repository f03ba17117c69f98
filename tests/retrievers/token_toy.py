"""A small encoder of random weights and passages about who likes what."""

import functools

import jax
import numpy as np

from rlm_jax.data import text_encoding
from rlm_jax.data.passages import Passage
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.models.token_encoder import token_embedder
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.retrievers.memory_parts import MemoryConfig

NAMES = ("anna", "bert", "carl", "dora", "emil", "frida")
THINGS = ("red apples", "green pears", "bread", "cold milk", "honey", "old cheese")
PASSAGES = [
    Passage(name, "", f"{name} likes {thing} .")
    for name, thing in zip(NAMES, THINGS, strict=True)
]
MEMORY = MemoryConfig(length=16, dtype="float32", index="exact", batch_tokens=64)


@functools.cache
def tower(seed: int = 0) -> Tower:
    texts = [passage.text for passage in PASSAGES] + ["gustav eats plums and figs ."]
    tokenizer = text_encoding.train(texts * 3, vocab_size=200)
    config = EncoderConfig(
        vocab_size=tokenizer.vocab_size, num_layers=1, width=16, num_heads=2,
        feed_forward_width=24, max_length=16, pad_id=tokenizer.pad_id, dropout=0.0,
    )  # fmt: skip
    shapes = jax.eval_shape(token_embedder(config).init, jax.random.key(0))
    random = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: (0.3 * random.normal(size=x.shape)).astype(np.float32), shapes
    )
    return Tower(config, params, tokenizer)
