"""A training step of Fusion-in-Decoder against PyTorch's T5 with FiD's reshaping.

    python -m benchmarks.fid_step_vs_torch

One T5 of small's sizes, with the same random weights on both sides (ours writes them in
Hugging Face's layout) and the same questions, passages and answers; float32, no
dropout, AdamW, on two cores each. PyTorch encodes all passages of a batch at once and
joins their states, as the released code does. The losses of the first two steps must
agree. Peaks of memory are those of a step above what the process holds between steps,
ours with the passages in micro-batches. FiD-Light and sparse cross-attention, and
decoding with them, are timed against plain Fusion-in-Decoder, all of them ours.
"""

import functools
import tempfile
from typing import Any

import jax
import numpy as np

from benchmarks import record, workers

SMALL = {
    "width": 512, "num_layers": 6, "num_decoder_layers": 6, "num_heads": 8,
    "head_width": 64, "feed_forward_width": 2048, "vocab_size": 32_128,
    "dropout": 0.0,
}  # fmt: skip
TINY = {
    "width": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2,
    "head_width": 8, "feed_forward_width": 64, "vocab_size": 512, "dropout": 0.0,
}  # fmt: skip
STEP = {"questions": 1, "passages": 10, "length": 128, "answer": 16, "model": SMALL}
MANY = STEP | {"passages": 40}
QUICK = {"questions": 2, "passages": 3, "length": 8, "answer": 4, "model": TINY}
CHUNK = 5
LIGHT = 16  # vectors of a passage
VARIANTS = {
    "FiD-Light, 16 vectors": {"vectors": LIGHT},
    "cross-attention in every third layer": {"cross_attention_every": 3},
    "one head of keys and values": {"decoder_kv_heads": 1},
}
LEARNING_RATE = 1e-4


def batch_of(case: dict) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    words = case["model"]["vocab_size"]
    rows = case["questions"], case["passages"], case["length"]
    targets = random.integers(2, words, (case["questions"], case["answer"]))
    return {
        "passage_ids": random.integers(2, words, rows).astype(np.int32),
        "passage_mask": np.ones(rows, np.int32),
        "targets": targets.astype(np.int32),
        "target_mask": np.ones(targets.shape, np.float32),
        "weight": np.ones(case["questions"], np.float32),
    }


def config_of(case: dict) -> Any:
    from rlm_jax.methods.fid import FiDConfig
    from rlm_jax.models.t5 import T5Config

    changes = dict(case.get("variant", {}))
    reader = {n: changes.pop(n) for n in ("vectors", "chunk") if n in changes}
    return FiDConfig(
        "t5", T5Config(**case["model"] | changes), k=case["passages"], **reader
    )


def save_model(case: dict, folder: str) -> None:
    from rlm_jax import pretrained
    from rlm_jax.methods import fid

    config = config_of(case)
    params = jax.jit(fid.fid(config).init)(jax.random.key(0))
    pretrained.save_t5(folder, config.t5, params)


def ours(case: dict):
    """() -> the mean loss before the step; each call is a step."""
    from rlm_jax import pretrained
    from rlm_jax.methods import fid
    from rlm_jax.train import optim, parallel, step

    config = config_of(case)
    method = fid.fid(config)
    if "folder" in case:
        _, params = pretrained.load_t5(case["folder"], dropout=0.0)
    else:
        params = jax.jit(method.init)(jax.random.key(0))
    optimizer = optim.optimizer(
        optim.OptimConfig(
            learning_rate=LEARNING_RATE, schedule="constant", b2=0.999, clip_norm=0
        ),
        total_steps=1,
    )
    run = parallel.parallelise(
        functools.partial(step.train_step, method=method, optimizer=optimizer, seed=0)
    )
    carried = [parallel.replicate(step.init(params, optimizer))]
    del params
    batch = batch_of(case)

    def one_step() -> float:
        carried[0], sums = run(carried[0], batch)
        return float(sums["loss"][0]) / float(sums["loss"][1])

    return one_step


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
    network.train()
    network.config.use_cache = False
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=LEARNING_RATE, fused=True, weight_decay=0.0
    )
    batch = {n: torch.from_numpy(x.astype("int64")) for n, x in batch_of(case).items()}
    questions, number, length = batch["passage_ids"].shape

    def one_step() -> float:
        states = network.encoder(
            input_ids=batch["passage_ids"].view(questions * number, length),
            attention_mask=batch["passage_mask"].view(questions * number, length),
        ).last_hidden_state
        loss = network(
            encoder_outputs=BaseModelOutput(
                last_hidden_state=states.view(questions, number * length, -1)
            ),
            attention_mask=batch["passage_mask"].view(questions, number * length),
            labels=batch["targets"],
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return one_step


SIDES = {"transformers": theirs, "rlm_jax": ours}


def peak_mb(side: str, case: dict) -> float:
    """Of a step, above what the process holds between steps."""
    one_step = SIDES[side](case)
    one_step()  # which compiles
    start = record.start_of_memory()
    one_step()
    return round(record.added_memory(start), 1)


def compare(case: dict, rounds: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        save_model(case, folder)
        first, time = workers.compared(
            "benchmarks.fid_step_vs_torch", SIDES, case | {"folder": folder}, rounds
        )
    return {
        "case": case,
        "first_losses": first,
        "time": time,
    }


def peaks(case: dict) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        save_model(case, folder)
        told = case | {"folder": folder}
        module = "benchmarks.fid_step_vs_torch"
        return {
            "transformers": record.in_fresh_process(
                module, "peak_mb", "transformers", told
            ),
            "rlm_jax": record.in_fresh_process(
                module, "peak_mb", "rlm_jax", told | {"variant": {"chunk": CHUNK}}
            ),
        }


def decoding(case: dict):
    """() -> nothing; each call answers the questions greedily."""
    from rlm_jax.methods import fid

    functions = fid.reader_of(config_of(case))
    params = jax.jit(functions.init)(jax.random.key(0))
    # An answer that never ends takes as long on all sides.
    model = functions.model._replace(end_id=case["model"]["vocab_size"])
    functions = functions._replace(model=model)
    answer, batch = fid.answerer(functions, length=case["answer"]), batch_of(case)
    return lambda: answer(params, batch)


def variants(case: dict, rounds: int) -> dict[str, dict]:
    """How many times faster than plain each variant trains and answers."""
    figures = {}
    plain_step, plain_answer = ours(case), decoding(case)
    for name, variant in VARIANTS.items():
        changed = case | {"variant": variant}
        step, answer = ours(changed), decoding(changed)
        for work in (plain_step, step, plain_answer, answer):
            work()
        figures[name] = {
            "step": record.interleaved(
                {"plain": record.timed(plain_step), "variant": record.timed(step)},
                rounds,
            ),
            "answer": record.interleaved(
                {"plain": record.timed(plain_answer), "variant": record.timed(answer)},
                rounds,
            ),
        }
    return figures


def measure(quick: bool) -> dict:
    case, many = (QUICK, QUICK | {"passages": 9}) if quick else (STEP, MANY)
    rounds = 3 if quick else 7
    compared = compare(case, rounds)
    memory = peaks(many)
    return {
        "claims": {
            "steps a second, ours / PyTorch": record.claim(
                compared["time"]["ratio"]["median"], at_least=1.2
            ),
            f"peak memory at {many['passages']} passages, ours / PyTorch": (
                record.claim(memory["rlm_jax"] / memory["transformers"], at_most=0.5)
            ),
        },
        "step": compared,
        "peak_mb": memory,
        "variants": variants(case, rounds),
    }


if __name__ == "__main__":
    record.main("fid_step_vs_torch", measure)
