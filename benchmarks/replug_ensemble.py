"""What REPLUG's ensemble adds to running the language model on ten documents.

    python -m benchmarks.replug_ensemble

A decoder of 12 layers of width 512 and a vocabulary of 4,096, as in `trime_step`. A
context has 10 documents; a text is 64 tokens of document, 64 of context and 128 to
predict. The other side is the plain language model's loss on the same batch of texts,
of which it scores every token; and, as the stricter comparison, the sum of the scores
of the continuations alone, without mixing them.
"""

import jax
import numpy as np

from benchmarks import record
from benchmarks.trime_step import QUICK, SIZES
from rlm_jax.methods import lm, replug
from rlm_jax.models.decoder import modern
from rlm_jax.ops import losses

K = 10


def random_batch(num: int, length: int, new: int, vocab_size: int) -> dict:
    """Contexts of random tokens, each with K documents."""
    random = np.random.default_rng(0)
    texts = random.integers(0, vocab_size, (num, K, length + 1), np.int32)
    texts[..., -new:] = texts[:, :1, -new:]  # one continuation for all documents
    return {
        "tokens": texts[..., :-1],
        "targets": texts[:, 0, -new:],
        "mask": np.ones((num, new), np.float32),
        "scores": random.normal(size=(num, K)).astype(np.float32),
        "every_target": texts[..., 1:],
    }


def measure(quick: bool) -> dict:
    sizes = QUICK if quick else SIZES
    num, length, new = (1, 32, 16) if quick else (1, 256, 128)
    decoder = modern(**sizes)
    batch = random_batch(num, length, new, decoder.vocab_size)
    ensemble = replug.replug(replug.REPLUGConfig(decoder, k=K))
    plain = lm.lm(lm.LMConfig(decoder))
    log_probs = replug.continuation_log_probs(decoder)
    flat = {
        "tokens": batch["tokens"].reshape(num * K, length),
        "targets": batch["every_target"].reshape(num * K, length),
        "mask": np.ones((num * K, length), np.float32),
    }
    params = jax.jit(ensemble.init)(jax.random.key(0))

    @jax.jit
    def each_by_itself(params, batch):
        log_p = log_probs(params, batch)
        mask = batch["mask"][:, None].repeat(K, axis=1)
        return losses.weighted(-log_p, mask)

    # `loss` and not `evaluate`, whose two other figures are no part of the method.
    mixed, every_token = jax.jit(ensemble.loss), jax.jit(plain.evaluate)
    key, batch, flat = jax.device_put((jax.random.key(0), batch, flat))
    sides = {
        "ensemble": lambda: mixed(params, batch, key),
        "all_tokens": lambda: every_token(params, flat),
        "continuations": lambda: each_by_itself(params, batch),
    }
    for work in sides.values():
        jax.block_until_ready(work())  # compiles
    timed = {name: record.timed(work) for name, work in sides.items()}
    rounds = 2 if quick else 5
    time = {
        other: record.interleaved(
            {"ensemble": timed["ensemble"], other: timed[other]}, rounds
        )
        for other in ("all_tokens", "continuations")
    }
    return {
        "sizes": {
            **sizes, "contexts": num, "documents": K, "length": length, "predicted": new
        },
        "claims": {
            f"time, ensemble / {K} documents, {name}": record.claim(
                figures["ratio"]["median"], at_most=1.2
            )
            for name, figures in time.items()
        },
        "time": time,
    }  # fmt: skip


if __name__ == "__main__":
    record.main("replug_ensemble", measure)
