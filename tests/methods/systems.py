"""Every method at its smallest, for the tests that all of them must pass."""

import dataclasses
from typing import Any

import numpy as np

from rlm_jax.method import Batch, Method, Neighbours
from rlm_jax.methods import METHODS
from rlm_jax.models.decoder import modern

ROWS, LENGTH, VOCAB = 4, 6, 13
SIZES = dict(
    vocab_size=VOCAB, num_layers=1, width=8, num_heads=2, feed_forward_width=12,
)  # fmt: skip

# Name -> (entry of METHODS, changes to its configuration).
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "lm": ("lm", {}),
    "knn_lm": ("knn_lm", {"k": 3, "temperature": 2.0}),
    "trime_local": ("trime", {"memory": "local"}),
    "trime_long": ("trime", {"memory": "long"}),
    "trime_external": ("trime", {"memory": "external", "own_memory_off": 0.0}),
    "trime_external_off": ("trime", {"memory": "external", "own_memory_off": 1.0}),
}


def config(name: str, **decoder) -> Any:
    """The system's configuration; TRIME's gradients reach keys everywhere."""
    entry, changes = SYSTEMS[name]
    if entry == "trime":
        changes = changes | {"remote_gradients": True}
    return METHODS[entry][0](decoder=modern(**SIZES, **decoder), **changes)


def method(name: str, **decoder) -> Method:
    """The system, over a datastore of every word once where it wants one."""
    entry, _ = SYSTEMS[name]
    options = {"values": np.arange(VOCAB)[::-1]} if entry == "knn_lm" else {}
    return METHODS[entry][1](config(name, **decoder), **options)


def batch(seed: int = 0, rows: int = ROWS) -> dict[str, np.ndarray]:
    """Counting from random starts, unevenly masked; two rows to a group."""
    random = np.random.default_rng(seed)
    start = random.integers(0, VOCAB, (rows, 1))
    tokens = ((start + np.arange(LENGTH + 1)) % VOCAB).astype(np.int32)
    mask = np.ones((rows, LENGTH), np.float32)
    mask[-1, 2:] = 0
    mask[0, 3] = 0
    number = np.arange(rows, dtype=np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "mask": mask,
        "segment": number,
        "group": number // 2,
    }


def evaluable(system: Method, batch: Batch) -> Batch:
    """The batch with neighbours, where the method wants some; one is absent."""
    if system.retrieval is None:
        return batch
    shape = batch["targets"].size, system.retrieval.k
    random = np.random.default_rng(1)
    scores = random.normal(size=shape).astype(np.float32)
    ids = random.integers(0, VOCAB, shape).astype(np.int32)
    ids[0, -1] = -1
    return system.retrieval.attach(batch, Neighbours(scores, ids))


def rebuilt(kind: type, fields: dict[str, Any]) -> Any:
    """A nested dataclass out of what JSON made of it."""
    nested = {f.name: type(getattr(kind(), f.name)) for f in dataclasses.fields(kind)}
    return kind(
        **{
            name: rebuilt(nested[name], value)
            if dataclasses.is_dataclass(nested[name])
            else nested[name](value)
            for name, value in fields.items()
        }
    )
