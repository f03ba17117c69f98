"""Every method at its smallest, for the tests that all of them must pass."""

import dataclasses
from typing import Any

import jax
import numpy as np

from rlm_jax.method import Batch, Method, Neighbours
from rlm_jax.methods import METHODS
from rlm_jax.models.decoder import modern
from rlm_jax.models.encoder import EncoderConfig

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
    "dpr": ("dpr", {}),
    "dpr_distinct": (
        "dpr",
        {"towers": "separate", "negatives": "distinct", "chunk": 3, "scale": 0.5},
    ),
    "contriever": (
        "contriever",
        {
            "queue_size": 9,
            "momentum": 0.5,
            "temperature": 0.5,
            "label_smoothing": 0.01,
        },
    ),
    "contriever_in_batch": ("contriever_in_batch", {"temperature": 1.0}),
}
RETRIEVERS = ("dpr", "contriever", "contriever_in_batch")


def config(name: str, **model) -> Any:
    """The system's configuration; TRIME's gradients reach keys everywhere."""
    entry, changes = SYSTEMS[name]
    if entry in RETRIEVERS:
        encoder = EncoderConfig(**SIZES, **{"dropout": 0.0, "max_length": 8} | model)
        return METHODS[entry][0](encoder=encoder, **changes)
    if entry == "trime":
        changes = changes | {"remote_gradients": True}
    return METHODS[entry][0](decoder=modern(**SIZES, **model), **changes)


def method(name: str, **model) -> Method:
    """The system, over a datastore of every word once where it wants one."""
    entry, _ = SYSTEMS[name]
    options = {"values": np.arange(VOCAB)[::-1]} if entry == "knn_lm" else {}
    return METHODS[entry][1](config(name, **model), **options)


def batch(name: str = "lm", seed: int = 0, rows: int = ROWS) -> dict[str, np.ndarray]:
    """What the system is trained on; some rows or tokens have no weight."""
    entry, _ = SYSTEMS[name]
    return texts(seed, rows) if entry in RETRIEVERS else tokens(seed, rows)


def learnable(name: str, seed: int) -> dict[str, np.ndarray]:
    """A batch of something to learn: how words are counted, or paired with others."""
    batch = tokens(seed, ROWS)
    if SYSTEMS[name][0] in RETRIEVERS:
        batch = texts(seed, 8)
        words = np.random.default_rng(seed).permutation(VOCAB - 1)[:9].astype(np.int32)
        answers = 1 + (words + 5) % (VOCAB - 1)
        for side in ("question_ids", "query_ids"):
            batch[side] = np.tile(1 + words[:8, None], 4)
        batch["key_ids"] = np.tile(answers[:8, None], LENGTH)
        batch["passage_ids"] = np.tile(answers[[np.arange(8), [8] * 8]].T[..., None], 6)
        batch["passage"] = np.arange(16, dtype=np.int32).reshape(8, 2)
        batch["passage"][1:, 1] = -1  # the ninth answer is a negative once
        batch["weight"] = np.ones(8, np.float32)
    return batch


def weight_of(batch: Batch) -> str:
    """The name of the array that says what counts."""
    return "weight" if "weight" in batch else "mask"


def tokens(seed: int, rows: int) -> dict[str, np.ndarray]:
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


def texts(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Random texts, and beginnings of them as questions; the last row is padding.

    Two questions have one passage, and a third's negative answers the first as well.
    """
    random = np.random.default_rng(seed)
    passages = random.integers(1, VOCAB, (rows, 2, LENGTH)).astype(np.int32)
    passages[2, 0] = passages[1, 0]
    passage_mask = np.ones_like(passages)
    passage_mask[0, :, 4:] = 0
    number = 2 * np.arange(rows, dtype=np.int32)[:, None] + np.arange(2, dtype=np.int32)
    number[2, 0] = number[1, 0]
    known = np.full((rows, 3), -1, np.int32)
    known[0, 1] = number[2, 1]
    number[1, 1] = -1
    weight = np.ones(rows, np.float32)
    weight[-1] = 0
    sides = {
        "ids": passages[:, 0, :4],
        "mask": np.ones((rows, 4), np.int32),
    }
    keys = {"ids": passages[:, 0], "mask": passage_mask[:, 0]}
    return {
        **{f"question_{k}": x for k, x in sides.items()},
        **{f"query_{k}": x for k, x in sides.items()},
        **{f"key_{k}": x for k, x in keys.items()},
        "passage_ids": passages,
        "passage_mask": passage_mask,
        "passage": number,
        "known": known,
        "weight": weight,
    }


def without_gradient(path: tuple) -> bool:
    """What is added to every passage alike, which moves a question's scores alike."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return name.endswith("passage/block_0/feed_forward_norm/bias")


def prepared(system: Method, params, batch: Batch) -> Batch:
    """The batch as the loss gets it, from the first state of what moves."""
    if system.moving is None:
        return batch
    state = system.moving.init(params, jax.random.key(5))
    return system.moving.update(params, state, batch, jax.random.key(6))[1]


def evaluable(system: Method, batch: Batch) -> Batch:
    """The batch with neighbours, where the method wants some; one is absent."""
    if system.retrieval is None or system.score is None:
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
