"""Scoring text with a Llama of SmolLM2's shape: against Transformers, and documents.

    python -m benchmarks.scoring_vs_torch

Random weights of the shape of SmolLM2-135M (30 layers of 576, 9 heads that share 3 of
keys and values, 49,152 tokens) in one folder that both sides load, random tokens,
float32, two cores each. **Plain**: log p of every token of the same rows, as an
evaluation wants it, in float32 and in bfloat16. Each side lives in a process of its own
and sleeps while the other works.
`benchmarks.scoring_ceiling_vs_torch` measures what no evaluation can be faster than.

**REPLUG**: a text in strides of 64 tokens, each with 10 documents of 128 tokens before
64 of context, against the same text in rows as long without documents. The strides of a
piece of text ask for similar documents: here of 24 documents each of four strides in a
row finds 10, as BM25 found in SQuAD's articles (docs/results.md). A document's keys and
values are computed once for the rows of a batch.
"""

import dataclasses
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import record, workers

SMOLLM2 = {
    "vocab_size": 49_152, "num_layers": 30, "width": 576, "num_heads": 9,
    "num_kv_heads": 3, "feed_forward_width": 1536, "rotary_base": 100_000.0,
}  # fmt: skip
SIZES = {"batch_size": 4, "length": 512}
DOCUMENTS = {
    "stride": 64, "window": 128, "document": 128, "k": 10, "strides": 10,
    "near": 24, "batch_size": 10,
}  # fmt: skip
QUICK_SMOLLM2 = SMOLLM2 | {"vocab_size": 512, "num_layers": 2, "width": 72}
QUICK_SIZES = {"batch_size": 2, "length": 64}
QUICK_DOCUMENTS = DOCUMENTS | {
    "stride": 16, "window": 32, "document": 32, "strides": 10, "near": 12,
}  # fmt: skip


def save_model(shape: dict, folder: str) -> None:
    """The model of both sides."""
    import jax

    from rlm_jax import pretrained
    from rlm_jax.methods import lm
    from rlm_jax.models.decoder import modern

    config = modern(**shape, max_length=2048)
    init, _ = lm.decoder_functions(config)
    params = jax.device_get(jax.jit(init)(jax.random.key(0)))
    pretrained.save_decoder(folder, config, params)


def rows(case: dict) -> np.ndarray:
    shape = (case["batch_size"], case["length"] + 1)
    return np.random.default_rng(0).integers(0, case["vocab_size"], shape, np.int32)


def ours(case: dict):
    """() -> mean log p of the rows' tokens."""
    from rlm_jax import pretrained
    from rlm_jax.models import scoring

    config, params = pretrained.load_decoder(case["folder"], dtype=case["dtype"])
    run = scoring.last_log_probs(config)
    tokens = rows(case)
    lengths = np.full(len(tokens), tokens.shape[1], np.int32)

    def work() -> float:
        return float(np.asarray(run(params, tokens, lengths, case["length"])).mean())

    return work


def theirs(case: dict):
    """The same in PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(workers.NUM_THREADS)
    network = transformers.AutoModelForCausalLM.from_pretrained(
        case["folder"], dtype=getattr(torch, case["dtype"]), use_cache=False
    )
    tokens = torch.from_numpy(rows(case).astype(np.int64))

    @torch.inference_mode()
    def work() -> float:
        logits = network(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten()
        )
        return -loss.item()

    return work


SIDES = {"transformers": theirs, "rlm_jax": ours}


def plain(
    shape: dict, sizes: dict, folder: str, rounds: int, dtype: str = "float32"
) -> dict[str, Any]:
    case = shape | sizes | {"folder": folder, "dtype": dtype}
    first, spent = workers.compared("benchmarks.scoring_vs_torch", SIDES, case, rounds)
    del case["folder"]
    num_tokens = sizes["batch_size"] * sizes["length"]
    one, other = (turns[0] for turns in first.values())
    return {
        "case": case,
        "tokens_per_second": {
            side: round(num_tokens / seconds)
            for side, seconds in spent["seconds"].items()
        },
        "largest_relative_difference": abs(one - other) / abs(one),
        "time": spent,
    }


def with_documents(folder: str, sizes: dict, rounds: int) -> dict[str, Any]:
    """REPLUG's passes, shared and not, and plain evaluations of the same strides."""
    from rlm_jax import pretrained
    from rlm_jax.evaluate import in_context
    from rlm_jax.evaluate.in_context import Protocol
    from rlm_jax.models import scoring
    from rlm_jax.recipes import base_lm

    config, params = pretrained.load_decoder(folder)
    random = np.random.default_rng(0)
    draw = lambda *shape: random.integers(0, config.vocab_size, shape, np.int32)
    s = sizes
    protocol = Protocol(
        window=s["window"], stride=s["stride"], document_length=s["document"],
        placement="prepend", rank_tokens=0, reuse=1, batch_size=s["batch_size"],
    )  # fmt: skip
    whole = dataclasses.replace(protocol, window=protocol.row_length, document_length=1)
    text = draw(whole.window + s["strides"] * s["stride"])
    documents = draw(s["strides"] * s["near"], s["document"])

    def cut(window: int) -> in_context.Strides:
        lengths = {"stride": s["stride"], "query_length": 32}
        return in_context.strides(len(text), window=window, **lengths)

    at, at_whole = cut(protocol.window), cut(whole.window)
    found = np.array(
        [
            random.permutation(s["near"])[: s["k"]] + number // 4 * s["near"]
            for number in range(len(at.end))
        ]
    )
    found[0] = -1
    given = base_lm.of_decoder(config, params, tokenizer=None)  # type: ignore
    run = scoring.last_log_probs(config)

    def replug(log_probs: Any) -> np.ndarray:
        return in_context.score(
            log_probs, text, at, found, lambda row: documents[row], protocol
        )

    sides = {
        "replug": lambda: replug(given.log_probs),
        "each row by itself": lambda: replug(lambda *x: np.asarray(run(params, *x))),
        "plain, rows as long": lambda: in_context.without(
            given.log_probs, text, at_whole, whole
        ),
    }
    values = {name: work() for name, work in sides.items()}  # compiles
    difference = np.abs(values["replug"] - values["each row by itself"])
    timed = {name: record.timed(work) for name, work in sides.items()}
    spent = {
        other: record.interleaved(
            {"replug": timed["replug"], other: timed[other]}, rounds
        )
        for other in list(sides)[1:]
    }
    # Seconds a row or a stride; the plain side scores its first window as well.
    strides = len(at.end) - 1
    counts = {"each row by itself": strides, "plain, rows as long": len(at_whole.end)}
    ratio = {
        other: figures["ratio"]["median"] * counts[other] / strides
        for other, figures in spent.items()
    }
    passes = in_context.passes(found, 1)
    return {
        "sizes": sizes,
        "passes": len(passes.document),
        "documents": len(np.unique(passes.document)),
        "largest_difference": float(np.nanmax(difference)),
        "replug_is_slower": {name: round(x, 3) for name, x in ratio.items()},
        "time": spent,
    }


def dtype_cost(folder: str, dtype: str, case: dict) -> dict[str, float]:
    """Tokens a second, and the megabytes of a process that has scored some rows."""
    import resource

    from rlm_jax import pretrained
    from rlm_jax.models import scoring

    config, params = pretrained.load_decoder(folder, dtype=dtype)
    run, tokens = scoring.last_log_probs(config), rows(case)
    lengths = np.full(len(tokens), tokens.shape[1], np.int32)
    work = lambda: np.asarray(run(params, tokens, lengths, case["length"]))
    work()
    seconds = min(record.timed(work)()[0] for _ in range(2))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "tokens_per_second": round(case["batch_size"] * case["length"] / seconds),
        "peak_megabytes": round(peak * 1024 / 1e6),
    }


def measure(quick: bool) -> dict:
    shape, sizes, documents = (
        (QUICK_SMOLLM2, QUICK_SIZES, QUICK_DOCUMENTS)
        if quick
        else (SMOLLM2, SIZES, DOCUMENTS)
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        save_model(shape, folder)
        compared = plain(shape, sizes, folder, rounds=2 if quick else 5)
        halved = plain(shape, sizes, folder, rounds=2 if quick else 3, dtype="bfloat16")
        replug = with_documents(folder, documents, rounds=2 if quick else 1)
        dtypes = {
            dtype: record.in_fresh_process(
                "benchmarks.scoring_vs_torch",
                "dtype_cost",
                folder,
                dtype,
                shape | sizes,
            )
            # XLA has no products of float16 with sums in float32 on a CPU.
            for dtype in (["float32"] if quick else ["float32", "bfloat16"])
        }
    over = replug["replug_is_slower"]
    return {
        "claims": {
            "tokens/s, ours / Transformers": record.claim(
                compared["time"]["ratio"]["median"], at_least=1.7
            ),
            "time, REPLUG with 10 documents / plain, rows as long": record.claim(
                over["plain, rows as long"], at_most=10.0
            ),
            "time, REPLUG / each row by itself": record.claim(
                over["each row by itself"], at_most=1.0
            ),
        },
        "largest_relative_difference": compared["largest_relative_difference"],
        "plain": compared,
        "bfloat16": halved,
        "replug": replug,
        "dtypes": dtypes,
        "seconds": round(time.perf_counter() - start),
    }


if __name__ == "__main__":
    record.main("scoring_vs_torch", measure)
