"""Greedy generation with a key-value cache against `generate` of Transformers.

    python -m benchmarks.generate_vs_torch

One GPT-2, with the same random weights on both sides (ours writes them in Hugging
Face's layout), the same prompts without padding and the same number of new tokens, none
of which ends a text; float32, on two cores each. PyTorch runs as it comes, eagerly and
with its growing cache. Both sides must choose the same tokens.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record, workers

MODEL = {"num_layers": 6, "width": 384, "num_heads": 6, "vocab_size": 50_257}
CASES = {
    f"6 layers of 384, GPT-2's vocabulary, batch {batch}": {
        **MODEL, "batch_size": batch, "length": 64, "new_tokens": 64
    }
    for batch in (1, 8)
}  # fmt: skip
QUICK = {
    "tiny": {
        "num_layers": 2, "width": 64, "num_heads": 2, "vocab_size": 512,
        "batch_size": 2, "length": 8, "new_tokens": 8,
    }
}  # fmt: skip


def prompts(case: dict) -> np.ndarray:
    shape = (case["batch_size"], case["length"])
    return np.random.default_rng(0).integers(0, case["vocab_size"], shape, np.int32)


def save_model(case: dict, folder: str) -> None:
    """Random weights, larger than initial ones, so that choices are clear."""
    from rlm_jax import pretrained
    from rlm_jax.methods import lm
    from rlm_jax.models.decoder import gpt2

    config = gpt2(
        num_layers=case["num_layers"], width=case["width"],
        num_heads=case["num_heads"], feed_forward_width=4 * case["width"],
        vocab_size=case["vocab_size"],
    )  # fmt: skip
    params = lm.lm(lm.LMConfig(config)).init(jax.random.key(0))
    params = jax.tree.map(lambda x: 2 * x if x.ndim > 1 else x, params)
    pretrained.save_decoder(folder, config, params)


def ours(case: dict):
    """() -> the new tokens; each call is a generation."""
    from rlm_jax import pretrained
    from rlm_jax.models import generation

    config, params = pretrained.load_decoder(case["folder"])
    params = jax.device_put(params)
    generate = generation.generator(config).generate
    ids = jnp.asarray(prompts(case))
    mask, key = jnp.ones_like(ids), jax.random.key(0)

    def one_generation() -> list[int]:
        found = generate(
            params, ids, mask, key, max_new_tokens=case["new_tokens"],
            sampling=generation.GREEDY,
        )  # fmt: skip
        return np.asarray(found.tokens).ravel().tolist()

    return one_generation


def theirs(case: dict):
    """The same in PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(workers.NUM_THREADS)
    network: Any = transformers.GPT2LMHeadModel.from_pretrained(case["folder"])
    network.eval()
    ids = torch.from_numpy(prompts(case).astype(np.int64))
    options = transformers.GenerationConfig(
        max_new_tokens=case["new_tokens"], do_sample=False, eos_token_id=None,
        pad_token_id=0, use_cache=True,
    )  # fmt: skip

    def one_generation() -> list[int]:
        with torch.inference_mode():
            found = network.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=options
            )
        return found[:, case["length"] :].ravel().tolist()

    return one_generation


SIDES = {"transformers": theirs, "rlm_jax": ours}


def measure(quick: bool) -> dict:
    cases, rounds = (QUICK, 3) if quick else (CASES, 11)
    return workers.decoding(
        "benchmarks.generate_vs_torch", SIDES, save_model, cases, rounds
    )


if __name__ == "__main__":
    record.main("generate_vs_torch", measure)
