"""The paper model of what refreshing costs, held to two measured sizes.

    python -m benchmarks.refresh_cost

One size of collection gives the seconds a passage and the fixed seconds of
`rlm_jax.retrieval.refresh_cost`, together with a second one; two others, of more
passages and of a wider encoder, are predicted and then measured. The wider encoder's
seconds follow from its operations. The tables of docs/scale.md are printed by
``tables``, from operations alone.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record

SIZES = {"passages": (1_000, 3_000, 9_000), "widths": (192, 384), "layers": 3,
         "words": 40, "length": 64, "turns": 3}  # fmt: skip
QUICK = {"passages": (32, 64, 96), "widths": (16, 32), "layers": 1, "words": 8,
         "length": 16, "turns": 1}  # fmt: skip

# A device's operations a second and the share of them that an encoder reaches: an
# assumption, not a measurement.
DEVICE, REACHED = 312e12, 0.4
STEP = 4.0  # seconds of a step, about Atlas's with T5-XL on 64 devices: an assumption
ENCODERS = {
    "MiniLM, 6 layers of 384": {"layers": 6, "width": 384, "feed_forward": 1536},
    "BERT-base, 12 layers of 768": {"layers": 12, "width": 768, "feed_forward": 3072},
}
COLLECTIONS = (1_000_000, 21_000_000, 37_000_000, 100_000_000)
DEVICES, TOKENS, SHARE = (1, 8, 64), 150, 0.1


def tables() -> list[dict[str, Any]]:
    """For N passages, encoder and devices: E, and the T that keeps to a share."""
    from rlm_jax.retrieval import refresh_cost
    from rlm_jax.retrieval.refresh_cost import Collection

    lines = []
    for name, encoder in ENCODERS.items():
        seconds = refresh_cost.flops(**encoder, tokens=TOKENS) / (DEVICE * REACHED)
        for passages in COLLECTIONS:
            for devices in DEVICES:
                collection = Collection(passages, seconds, devices)
                encoding = collection.encoding()
                lines.append(
                    {
                        "encoder": name,
                        "passages": passages,
                        "devices": devices,
                        "hours": encoding / 3600,
                        "gigabytes": collection.vectors(encoder["width"]) / 1e9,
                        "every": refresh_cost.smallest_every(encoding, STEP, SHARE),
                        "lag": refresh_cost.smallest_lag(encoding, STEP),
                    }
                )
    return lines


def seconds_to_encode(passages: int, width: int, sizes: dict[str, Any], folder: str):
    """Encodes a collection in this process, twice; seconds of the second time."""
    import jax

    from rlm_jax.data import passages as passages_lib
    from rlm_jax.models.encoder import EncoderConfig, embedder
    from rlm_jax.retrievers import dense, encoder_towers
    from rlm_jax.retrievers.dense import SearchConfig
    from rlm_jax.retrievers.encoder_towers import TextConfig, Tower

    every = passages_lib.load(f"jsonl:{folder}/passages.jsonl", progress=False)
    tokenizer = encoder_towers.train_tokenizer(every, 1000)
    encoder = EncoderConfig(
        tokenizer.vocab_size, num_layers=sizes["layers"], width=width,
        num_heads=max(1, width // 32), feed_forward_width=4 * width,
        max_length=sizes["length"], pad_id=tokenizer.pad_id,
    )  # fmt: skip
    params = jax.device_get(jax.jit(embedder(encoder).init)(jax.random.key(0)))
    tower = Tower(encoder, params, tokenizer)
    some = [every[row] for row in range(passages)]
    # Batches of another number of rows would be compiled while the clock runs.
    search = SearchConfig(index="exact", batch_tokens=1024)
    for turn in range(2):
        began = time.perf_counter()
        dense.encode_collection(
            tower, some, str(passages), TextConfig("none", 16, sizes["length"]), search,
            Path(folder) / f"{passages}-{width}-{turn}-{began}",
        )  # fmt: skip
    return time.perf_counter() - began


def measure(quick: bool) -> dict[str, Any]:
    from rlm_jax.retrieval import refresh_cost
    from rlm_jax.retrieval.refresh_cost import Collection

    sizes = QUICK if quick else SIZES
    few, more, most = sizes["passages"]
    narrow, wide = sizes["widths"]
    asked = ((few, narrow), (more, narrow), (most, narrow), (more, wide))
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(0)
        words = ["".join(random.choice(list("aeioustrnl"), 5)) for _ in range(2000)]
        texts = (" ".join(random.choice(words, sizes["words"])) for _ in range(most))
        lines = (json.dumps({"id": str(i), "text": t}) for i, t in enumerate(texts))
        (Path(folder) / "passages.jsonl").write_text("\n".join(lines))
        turns = [
            [
                record.in_fresh_process(
                    "benchmarks.refresh_cost", "seconds_to_encode", *size, sizes, folder
                )
                for size in asked
            ]
            for _ in range(sizes["turns"])
        ]
    took = [statistics.median(turn[i] for turn in turns) for i in range(len(asked))]
    each = (took[1] - took[0]) / (more - few)
    fixed = max(0.0, took[0] - few * each)
    operations = [
        refresh_cost.flops(
            layers=sizes["layers"], width=width, feed_forward=4 * width,
            tokens=sizes["length"],
        )
        for width in (narrow, wide)
    ]  # fmt: skip
    predicted = {
        "more passages": Collection(most, each, fixed=fixed).encoding(),
        "a wider encoder": Collection(
            more, each * operations[1] / operations[0], fixed=fixed
        ).encoding(),
    }
    measured = {"more passages": took[2], "a wider encoder": took[3]}
    return {
        "sizes": sizes,
        "seconds": {
            f"{n:,} passages, width {w}": t
            for (n, w), t in zip(asked, took, strict=True)
        },
        "seconds_a_passage": each,
        "fixed_seconds": fixed,
        "predicted": predicted,
        "measured": measured,
        "claims": {
            f"predicted / measured, {name}": record.claim(
                predicted[name] / measured[name], at_most=1.25
            )
            for name in predicted
        },
        "tables": tables(),
    }


if __name__ == "__main__":
    record.main("refresh_cost", measure)
