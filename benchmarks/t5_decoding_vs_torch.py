"""Greedy decoding by a T5 over a long memory against `generate` of Transformers.

    python -m benchmarks.t5_decoding_vs_torch

One T5 of small's sizes, with the same random weights on both sides (ours writes them in
Hugging Face's layout), over the same states of an encoder, as many as a Fusion-in-
Decoder reader has of 8 passages of 128 tokens, and the same number of new tokens, none
of which ends a text; float32, on two cores each. A turn reads the memory's keys and
values and decodes. PyTorch runs as it comes, eagerly and with its growing cache. Both
sides must choose the same tokens.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import record, workers

CASES = {
    "T5 small, batch 8, a memory of 8 x 128 states": {
        "batch_size": 8, "passages": 8, "length": 128, "new_tokens": 64,
        "model": {
            "width": 512, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 8,
            "head_width": 64, "feed_forward_width": 2048, "vocab_size": 32_128,
        },
    }
}  # fmt: skip
QUICK = {
    "tiny": {
        "batch_size": 2, "passages": 2, "length": 4, "new_tokens": 8,
        "model": {
            "width": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2,
            "head_width": 8, "feed_forward_width": 64, "vocab_size": 512,
        },
    }
}  # fmt: skip


def save_model(case: dict, folder: str) -> None:
    """Random weights, larger than initial ones, so that heads attend to few states and
    choices are clear; the embedding small, as a tied head would repeat it."""
    from rlm_jax import pretrained
    from rlm_jax.models import seq2seq, t5

    config = t5.T5Config(**case["model"])
    params = jax.jit(seq2seq.seq2seq(config).init)(jax.random.key(0))
    params = jax.tree.map(lambda x: 2 * x if x.ndim > 1 else x, params)
    params["embedding"] = 0.05 * params["embedding"]
    pretrained.save_t5(folder, config, params)


def states(case: dict) -> np.ndarray:
    """An encoder's, whose last norm leaves them of about unit size."""
    shape = (
        case["batch_size"], case["passages"] * case["length"], case["model"]["width"]
    )  # fmt: skip
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def ours(case: dict):
    """() -> the new tokens; each call is a generation."""
    from rlm_jax import pretrained
    from rlm_jax.models import seq2seq

    config, params = pretrained.load_t5(case["folder"])
    model = seq2seq.seq2seq(config)
    predict = seq2seq.predictor(model)
    params = jax.device_put(params)
    memory = jnp.asarray(states(case))
    mask, key = jnp.ones(memory.shape[:2], jnp.int32), jax.random.key(0)
    start = jax.jit(model.start, static_argnums=3)

    def one_generation() -> list[int]:
        found = seq2seq.generate(
            predict, params, start(params, memory, mask, case["new_tokens"]), key,
            start_id=model.start_id, max_new_tokens=case["new_tokens"],
        )  # fmt: skip
        return np.asarray(found.tokens).ravel().tolist()

    return one_generation


def theirs(case: dict):
    """The same in PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]
    from transformers.modeling_outputs import (  # pyright: ignore[reportMissingImports]
        BaseModelOutput,
    )

    torch.set_num_threads(workers.NUM_THREADS)
    network: Any = transformers.T5ForConditionalGeneration.from_pretrained(
        case["folder"]
    )
    network.eval()
    memory: Any = torch.from_numpy(states(case))
    mask = torch.ones(memory.shape[:2], dtype=torch.long)
    options = transformers.GenerationConfig(
        max_new_tokens=case["new_tokens"], do_sample=False, eos_token_id=None,
        pad_token_id=0, decoder_start_token_id=0, use_cache=True,
    )  # fmt: skip

    def one_generation() -> list[int]:
        with torch.inference_mode():
            found = network.generate(
                encoder_outputs=BaseModelOutput(last_hidden_state=memory),
                attention_mask=mask,
                generation_config=options,
            )
        return found[:, 1:].ravel().tolist()

    return one_generation


SIDES = {"transformers": theirs, "rlm_jax": ours}


def measure(quick: bool) -> dict:
    cases, rounds = (QUICK, 3) if quick else (CASES, 5)
    return workers.decoding(
        "benchmarks.t5_decoding_vs_torch", SIDES, save_model, cases, rounds
    )


if __name__ == "__main__":
    record.main("t5_decoding_vs_torch", measure)
