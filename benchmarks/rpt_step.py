"""What RPT costs: its training step, and the scoring of its targets.

    python -m benchmarks.rpt_step

The step of a decoder of 12 layers of width 256 in windows of 256 tokens, on rows of
1,024 in chunks of 64, that retrieves 2 neighbours and learns from 8 scored candidates,
against the plain decoder with the same layers and windows. What reads neighbours has
heads of half the decoder's width together. Candidates are scored by the tokens a second
of the reference's passes over four chunks, against the evaluation of that model in
windows of as many tokens.
"""

import jax
import numpy as np

from benchmarks import record
from benchmarks.trime_step import random_batch, stepper
from rlm_jax.data import neighbour_batches
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.evaluate import perplexity
from rlm_jax.methods import lm, rpt
from rlm_jax.models import scoring
from rlm_jax.models.decoder import modern
from rlm_jax.retrievers import chunk_targets

SIZES = {
    "num_layers": 12, "width": 256, "num_heads": 4, "feed_forward_width": 1024,
    "vocab_size": 8192,
}  # fmt: skip
QUICK = {
    "num_layers": 2, "width": 32, "num_heads": 2, "feed_forward_width": 48,
    "vocab_size": 256,
}  # fmt: skip
S = 8


def with_candidates(batch: dict, chunk_length: int) -> dict:
    """The batch, S candidates of each chunk with random targets."""
    rows, length = batch["tokens"].shape
    shape = rows, length // chunk_length, S
    rng = np.random.default_rng(1)
    return {
        **batch,
        "step": np.full(rows, 1, np.int32),
        "candidates": np.broadcast_to(np.arange(3, 3 + S, dtype=np.int32), shape),
        "targets_of_candidates": rng.normal(size=shape).astype(np.float32),
    }


def measure(quick: bool) -> dict:
    sizes = QUICK if quick else SIZES
    batch_size, length, window, m = (2, 64, 16, 8) if quick else (2, 1024, 256, 64)
    decoder = modern(**sizes, attention_window=window)
    plain_batch = random_batch(batch_size, length, decoder.vocab_size)
    batch = with_candidates(plain_batch, m)
    narrow = rpt.RPTConfig(
        decoder,
        chunk_length=m,
        reader_heads=2,
        reader_head_width=decoder.width // 4,
    )
    whole = rpt.RPTConfig(decoder, chunk_length=m)
    sides = {
        "RPT": stepper(rpt.rpt(narrow), batch),
        "RPT_wide_reader": stepper(rpt.rpt(whole), batch),
        "plain": stepper(lm.lm(lm.LMConfig(decoder)), plain_batch),
    }
    for one_step in sides.values():
        jax.block_until_ready(one_step())  # compiles
    timed = {name: record.timed(one_step) for name, one_step in sides.items()}
    rounds = 2 if quick else 9
    time = {
        name: record.interleaved(
            {name: timed[name], "plain": timed["plain"]}, rounds=rounds
        )
        for name in ("RPT", "RPT_wide_reader")
    }
    speed = scoring_speed(sizes, m, rounds)
    return {
        "sizes": {
            **sizes, "batch_size": batch_size, "length": length, "window": window,
            "chunk_length": m, "neighbours": whole.k, "candidates": S,
            "reader_width": decoder.width // 2,
        },
        "claims": {
            "step time, RPT / plain": record.claim(
                time["RPT"]["ratio"]["median"], at_most=1.35
            ),
            "tokens a second, scoring / evaluation": record.claim(
                1 / speed["ratio"]["median"], at_least=0.8
            ),
        },
        "time": time,
        "scoring": speed,
    }  # fmt: skip


def scoring_speed(sizes: dict, m: int, rounds: int) -> dict:
    """Seconds of equally many tokens, as candidates and as an evaluated text."""
    decoder = modern(**sizes)
    method = lm.lm(lm.LMConfig(decoder))
    params = jax.jit(method.init)(jax.random.key(0))
    run = scoring.last_log_probs(decoder)
    rows, batch_size, rng = 64, 16, np.random.default_rng(0)
    vocabulary, count = decoder.vocab_size, rows * 4 * m
    candidates = rng.integers(0, vocabulary, (rows, 4 * m), np.int32)
    alone = np.zeros((0, 2 * m), np.int32)
    text = rng.integers(0, vocabulary, count + 1, np.int32)
    split = TokenSplit(text, np.array([0, count + 1]), count, count)
    windows = neighbour_batches.in_order(
        split, batch_size=batch_size, length=4 * m, stride=4 * m
    )
    log_probs = perplexity.target_log_probs(method)

    def score():
        def reference(tokens, lengths, last):
            return np.asarray(run(params, tokens, lengths, last))

        return chunk_targets.score(reference, alone, candidates, m, batch_size)

    def evaluate():
        return perplexity.score_batches(log_probs, params, windows)

    score(), evaluate()  # compiles
    return record.interleaved(
        {"scoring": record.timed(score), "evaluation": record.timed(evaluate)},
        rounds=rounds,
    )


if __name__ == "__main__":
    record.main("rpt_step", measure)
