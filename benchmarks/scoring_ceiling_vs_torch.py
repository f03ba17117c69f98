"""What scoring with a Llama of SmolLM2's shape could be at most: its matrix products.

    taskset -c 1 python -m benchmarks.scoring_ceiling_vs_torch

The products of the rows of `benchmarks.scoring_vs_torch` with the model's weights, and
nothing else, in XLA and in PyTorch, beside both libraries' whole evaluations. No
evaluation in float32 takes less than these products do. On one core, which taskset
gives, processor seconds say it where other programs work on the machine too.
"""

import tempfile
from typing import Any

import numpy as np

from benchmarks import record, scoring_vs_torch, workers


def products(case: dict) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """(rows [N, K], weights [M, K], how often) of every product with weights.

    Those with the vocabulary are cut, so that what they write stays in cache.
    """
    width, inner = case["width"], case["feed_forward_width"]
    heads = case["num_heads"] + 2 * case["num_kv_heads"]
    part = min(2048, case["vocab_size"])
    layers = case["num_layers"]
    shapes = [
        (width, heads * width // case["num_heads"], layers),
        (width, width, layers),
        (width, 2 * inner, layers),
        (inner, width, layers),
        (width, part, case["vocab_size"] // part),
    ]
    random = np.random.default_rng(0)
    draw = lambda *shape: random.standard_normal(shape, np.float32)
    num = case["batch_size"] * case["length"]
    return [(draw(num, k), draw(m, k), count) for k, m, count in shapes]


def our_products(case: dict):
    """() -> 0.0; the products in XLA."""
    import jax

    product = jax.jit(lambda x, w: x @ w.T)
    arrays = [(*map(jax.device_put, some[:2]), some[2]) for some in products(case)]

    def work() -> float:
        for x, w, count in arrays:
            for _ in range(count):
                product(x, w).block_until_ready()
        return 0.0

    return work


def their_products(case: dict):
    """The same in PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(workers.NUM_THREADS)
    arrays = [(*map(torch.from_numpy, some[:2]), some[2]) for some in products(case)]

    @torch.inference_mode()
    def work() -> float:
        for x, w, count in arrays:
            for _ in range(count):
                torch.nn.functional.linear(x, w)
        return 0.0

    return work


SIDES = {"PyTorch": their_products, "XLA": our_products}


def measure(quick: bool) -> dict[str, Any]:
    shape, sizes = scoring_vs_torch.SMOLLM2, scoring_vs_torch.SIZES
    if quick:
        shape, sizes = scoring_vs_torch.QUICK_SMOLLM2, scoring_vs_torch.QUICK_SIZES
    rounds, case = 2 if quick else 3, shape | sizes
    with tempfile.TemporaryDirectory() as folder:
        scoring_vs_torch.save_model(shape, folder)
        whole = scoring_vs_torch.plain(shape, sizes, folder, rounds)
    _, bare = workers.compared(
        "benchmarks.scoring_ceiling_vs_torch", SIDES, case, rounds
    )
    gflop = sum(2 * x.size * len(w) * count for x, w, count in products(case)) / 1e9
    spent, alone = whole["time"]["cpu_seconds"], bare["cpu_seconds"]
    return {
        "products": {
            "gflop": round(gflop, 1),
            "gflops_of_a_core": {
                side: round(gflop / seconds, 1) for side, seconds in alone.items()
            },
            "share_of_ours": round(alone["XLA"] / spent["rlm_jax"], 3),
            "share_of_transformers": round(alone["PyTorch"] / spent["transformers"], 3),
            "time": bare,
        },
        # Transformers' processor seconds over ours, and over our products' alone.
        "ratio": whole["time"]["cpu_ratio"]["median"],
        "ceiling": round(spent["transformers"] / alone["XLA"], 3),
        "whole": whole,
    }


if __name__ == "__main__":
    record.main("scoring_ceiling_vs_torch", measure)
