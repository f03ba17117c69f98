"""Our language-model step against GPT2LMHeadModel of Transformers, in PyTorch.

    python -m benchmarks.lm_vs_torch

The same architecture, batch, precision (float32) and optimiser (AdamW, no clipping, no
dropout), random tokens, on two cores each. PyTorch runs eagerly, with its fused AdamW
and the attention that Transformers chooses. Each side lives in a process of its own and
sleeps while the other works: two thread pools in one process would fight for the cores.
"""

import functools

import jax
import numpy as np

from benchmarks import record, workers

GPT2_VOCABULARY = 50_257
MODELS = {
    "GPT-2 small": {
        "num_layers": 12, "width": 768, "num_heads": 12, "vocab_size": GPT2_VOCABULARY,
        "batch_size": 2, "length": 512,
    },
    "6 layers of 384, GPT-2's vocabulary": {
        "num_layers": 6, "width": 384, "num_heads": 6, "vocab_size": GPT2_VOCABULARY,
        "batch_size": 4, "length": 256,
    },
    "4 layers of 256, vocabulary of 4,096": {
        "num_layers": 4, "width": 256, "num_heads": 4, "vocab_size": 4096,
        "batch_size": 16, "length": 256,
    },
}  # fmt: skip
QUICK = {
    "tiny": {
        "num_layers": 2, "width": 64, "num_heads": 2, "vocab_size": 512,
        "batch_size": 2, "length": 64,
    }
}  # fmt: skip
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01


def tokens(model: dict) -> np.ndarray:
    shape = (model["batch_size"], model["length"] + 1)
    return np.random.default_rng(0).integers(0, model["vocab_size"], shape, np.int32)


def ours(model: dict):
    """() -> loss; each call is a step."""
    from rlm_jax.methods import lm
    from rlm_jax.models.decoder import gpt2
    from rlm_jax.train import optim, parallel, step

    config = gpt2(
        num_layers=model["num_layers"],
        width=model["width"],
        num_heads=model["num_heads"],
        feed_forward_width=4 * model["width"],
        vocab_size=model["vocab_size"],
    )
    method = lm.lm(lm.LMConfig(config))
    optimizer = optim.optimizer(
        optim.OptimConfig(
            learning_rate=LEARNING_RATE, schedule="constant", b2=0.999, clip_norm=0,
            weight_decay=WEIGHT_DECAY,
        ),
        total_steps=1,
    )  # fmt: skip
    state = step.init(method.init(jax.random.key(0)), optimizer)
    run = parallel.parallelise(
        functools.partial(step.train_step, method=method, optimizer=optimizer, seed=0)
    )
    ids, rows = tokens(model), np.arange(model["batch_size"], dtype=np.int32)
    batch = {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "mask": np.ones((len(ids), model["length"]), np.float32),
        "segment": rows,
        "group": rows,
    }
    carried = [parallel.replicate(state)]
    del state

    def one_step() -> float:
        carried[0], sums = run(carried[0], batch)
        return float(sums["loss"][0]) / float(sums["loss"][1])

    return one_step


def theirs(model: dict):
    """The same in PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(workers.NUM_THREADS)
    torch.manual_seed(0)
    network = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=model["num_layers"], n_embd=model["width"],
            n_head=model["num_heads"], vocab_size=model["vocab_size"],
            n_positions=1024, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            use_cache=False, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    network.train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999), fused=True,
        weight_decay=WEIGHT_DECAY,
    )  # fmt: skip
    # Transformers shifts the labels itself: all but the first token are predicted.
    ids = torch.from_numpy(tokens(model)[:, :-1].astype(np.int64))

    def one_step() -> float:
        loss = network(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return one_step


SIDES = {"transformers": theirs, "rlm_jax": ours}


def compare(model: dict, rounds: int) -> dict:
    first, time = workers.compared("benchmarks.lm_vs_torch", SIDES, model, rounds)
    num_tokens = model["batch_size"] * model["length"]
    return {
        "model": model,
        "tokens_per_second": {
            side: round(num_tokens / seconds)
            for side, seconds in time["seconds"].items()
        },
        "first_losses": first,
        "time": time,
    }


def measure(quick: bool) -> dict:
    models = QUICK if quick else MODELS
    compared = {
        name: compare(m, rounds=3 if quick else 11) for name, m in models.items()
    }
    return {
        "claims": {
            f"tokens/s, ours / Transformers: {name}": record.claim(
                figures["time"]["ratio"]["median"], at_least=1.2
            )
            for name, figures in compared.items()
        },
        "models": compared,
    }


if __name__ == "__main__":
    record.main("lm_vs_torch", measure)
