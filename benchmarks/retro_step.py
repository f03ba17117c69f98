"""What retrieval adds to a training step of the plain language model in RETRO.

    python -m benchmarks.retro_step

A decoder of 12 layers of width 256 with chunked cross-attention at 6, 9 and 12, the
paper's schedule, on segments of 512 tokens in chunks of 64 with 2 neighbours of 128
tokens each. The encoder of neighbours has 2 layers of half the decoder's width, of
which the first reads the chunk, as in the paper's presets; beside it one that is nearly
empty, which leaves the cross-attention alone; retrieval off; and RETRO-fitting, which
has no gradient of the decoder's parameters.
"""

from typing import Literal

import jax
import numpy as np

from benchmarks import record
from benchmarks.trime_step import random_batch, stepper
from rlm_jax.methods import lm, retro
from rlm_jax.models.decoder import modern
from rlm_jax.models.neighbours import NeighbourEncoderConfig

SIZES = {
    "num_layers": 12, "width": 256, "num_heads": 4, "feed_forward_width": 1024,
    "vocab_size": 8192,
}  # fmt: skip
QUICK = {
    "num_layers": 1, "width": 32, "num_heads": 2, "feed_forward_width": 48,
    "vocab_size": 256,
}  # fmt: skip
K = 2


def with_neighbours(batch: dict, chunk_length: int, vocab_size: int) -> dict:
    """The batch, each chunk with K neighbours of random tokens."""
    rows, length = batch["tokens"].shape
    shape = (rows, length // chunk_length, K, 2 * chunk_length)
    ids = np.random.default_rng(1).integers(0, vocab_size, shape, np.int32)
    return {**batch, "neighbours": ids, "neighbour_mask": np.ones(shape, np.int32)}


def measure(quick: bool) -> dict:
    sizes = QUICK if quick else SIZES
    batch_size, length, m = (2, 32, 8) if quick else (4, 512, 64)
    decoder, layers = modern(**sizes), (1,) if quick else ()
    width = decoder.width // 2
    plain_batch = random_batch(batch_size, length, decoder.vocab_size)
    batch = with_neighbours(plain_batch, m, decoder.vocab_size)

    def side(
        encoder: NeighbourEncoderConfig, trained: Literal["all", "retrieval"] = "all"
    ):
        config = retro.RetroConfig(
            decoder, encoder, m, K, cca_layers=layers, trained=trained
        )
        return retro.retro(config)

    whole = NeighbourEncoderConfig(num_layers=2, width=width, cca_layers=(1,))
    empty = NeighbourEncoderConfig(num_layers=1, width=width, feed_forward_width=8)
    steppers = {
        "plain": stepper(lm.lm(lm.LMConfig(decoder)), plain_batch),
        "RETRO": stepper(side(whole), batch),
        "cross_attention": stepper(side(empty), batch),
        "off": stepper(side(whole), plain_batch),
        "fitting": stepper(side(whole, "retrieval"), batch),
    }
    for one_step in steppers.values():
        jax.block_until_ready(one_step())  # compiles
    timed = {name: record.timed(one_step) for name, one_step in steppers.items()}
    time = {
        name: record.interleaved(
            {name: timed[name], "plain": timed["plain"]}, rounds=2 if quick else 9
        )
        for name in steppers
        if name != "plain"
    }
    return {
        "sizes": {
            **sizes, "batch_size": batch_size, "length": length, "chunk_length": m,
            "neighbours": K, "encoder_width": width, "encoder_layers": 2,
        },
        "claims": {
            f"step time, {name} / plain": record.claim(
                time[name]["ratio"]["median"], at_most=1.25
            )
            for name in ("RETRO", "cross_attention")
        },
        "time": time,
    }  # fmt: skip


if __name__ == "__main__":
    record.main("retro_step", measure)
