"""Every method at its smallest, for the tests that all of them must pass."""

import dataclasses
from typing import Any

import jax
import numpy as np

from rlm_jax.method import Batch, Method, Params
from rlm_jax.methods import METHODS
from rlm_jax.methods.rpt import SamplingConfig
from rlm_jax.models.decoder import modern
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.models.encoder_decoder import EncoderDecoderConfig
from rlm_jax.models.neighbours import NeighbourEncoderConfig
from rlm_jax.models.t5 import T5Config
from tests.methods import batches
from tests.methods.batches import CHUNK, LENGTH, ROWS, VOCAB

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
    "retro": (
        "retro",
        {
            "encoder": NeighbourEncoderConfig(num_layers=1, width=4, num_heads=1),
            "chunk_length": CHUNK,
            "cca_layers": (1,),
        },
    ),
    "rpt": ("rpt", {"chunk_length": CHUNK, "sampling": SamplingConfig(0.5, 0.5, 1)}),
    "rpt_given": (
        "rpt",
        {"chunk_length": CHUNK, "neighbours": "given", "lower_layers": 1},
    ),
    "dpr": ("dpr", {}),
    "dpr_distinct": (
        "dpr",
        {"towers": "separate", "negatives": "distinct", "chunk": 3, "scale": 0.5},
    ),
    "contriever": (
        "contriever",
        {
            "queue_size": 11,
            "momentum": 0.5,
            "temperature": 0.5,
            "label_smoothing": 0.01,
        },
    ),
    "contriever_in_batch": ("contriever_in_batch", {"temperature": 1.0}),
    "replug": ("replug", {"temperature": 0.5}),
    "replug_lsr": ("replug_lsr", {"gamma": 0.5, "beta": 0.5, "chunk": 5}),
    "fid_kd": ("fid_kd", {"temperature": 0.5}),
    "reranker": ("reranker", {"chunk": 5}),
    "npm": ("npm", {}),
    "masked_lm": ("masked_lm", {}),
    "fid": ("fid", {"k": 3, "chunk": 5}),
    "fid_encoder": ("fid", {"k": 3, "copy": True, "vectors": 4}),
    "atlas": (
        "atlas",
        {"temperature": 0.3, "gold_temperature": 0.5, "chunk": 5, "weight": 2.0},
    ),
    "atlas_emdr2": (
        "atlas",
        {
            "loss": "emdr2",
            "towers": "shared",
            "temperature": 0.3,
            "vocabulary_temperature": 0.5,
        },
    ),
    "realm": ("realm", {"k": 3, "chunk": 5, "temperature": 0.3}),
}
# Whose sibling is tried in full: what differs shows in the loss and its gradient.
VARIANTS = (
    "trime_external_off", "dpr_distinct", "contriever_in_batch", "fid_encoder",
    "atlas_emdr2", "rpt_given",
)  # fmt: skip
JOINT = ("atlas", "realm")  # a reader and its retriever
TAUGHT = ("replug_lsr", "fid_kd", "reranker")  # by a language model
MASKED = ("npm", "masked_lm")  # encoders that fill in masks
RETRIEVERS = ("dpr", "contriever", "contriever_in_batch", *TAUGHT)


def config(name: str, **model) -> Any:
    """The system's configuration; TRIME's gradients reach keys everywhere."""
    entry, changes = SYSTEMS[name]
    if entry == "fid":
        return METHODS[entry][0](**_reader(name, model), **changes)
    if entry in JOINT:
        sizes = {"dropout": 0.0, "max_length": 12} | model
        encoder = EncoderConfig(**SIZES, **sizes)
        if entry == "realm":
            return METHODS[entry][0](encoder=encoder, retriever=encoder, **changes)
        fields = _reader("fid" if name == "atlas" else name, model)
        copy = {"copy": True} if name == "atlas_emdr2" else {"chunk": 5}
        reader = METHODS["fid"][0](k=3, **fields, **copy)
        return METHODS[entry][0](reader=reader, encoder=encoder, **changes)
    if entry in (*RETRIEVERS, *MASKED):
        if entry == "reranker":
            model = {"pooling": "cls", "projection": 1} | model
        encoder = EncoderConfig(**SIZES, **{"dropout": 0.0, "max_length": 8} | model)
        return METHODS[entry][0](encoder=encoder, **changes)
    if entry == "rpt":
        model = {"num_layers": 2, "attention_window": batches.WINDOW} | model
    if entry == "trime":
        changes = changes | {"remote_gradients": True}
    return METHODS[entry][0](decoder=modern(**SIZES | model), **changes)


def _reader(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The fields of T5, or of a small decoder over an encoder."""
    sizes: dict[str, Any] = {**SIZES, "dropout": 0.0}
    if name == "fid":
        sizes |= {"num_decoder_layers": 2, "head_width": 4}
        sizes |= {"num_buckets": 4, "max_distance": 6} | changes
        return {"architecture": "t5", "t5": T5Config(**sizes)}
    sizes |= {"max_length": 8} | changes
    encoder = EncoderConfig(**sizes)
    return {"encoder_decoder": EncoderDecoderConfig(encoder, num_decoder_layers=1)}


def method(name: str, **model) -> Method:
    """The system."""
    entry, _ = SYSTEMS[name]
    return METHODS[entry][1](config(name, **model))


def parameters(name: str, seed: int = 3) -> Params:
    """Larger weights than the initial ones, so that the memory has a say."""
    shapes = jax.eval_shape(method(name).init, jax.random.key(0))
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: (0.4 * random.normal(size=x.shape)).astype(np.float32), shapes
    )


def batch(name: str = "lm", seed: int = 0, rows: int = ROWS) -> dict[str, np.ndarray]:
    """What the system is trained on; some rows or tokens have no weight."""
    entry, _ = SYSTEMS[name]
    if entry == "retro":
        return batches.tokens(seed, rows) | batches.neighbours(seed, rows)
    if entry == "rpt":
        batch = batches.documents(seed, rows)
        if name == "rpt_given":  # what it reads, in place of what it learns from
            batch["neighbours"] = batch.pop("candidates")[..., :2]
            del batch["targets_of_candidates"]
        return batch
    if entry == "replug":
        return batches.ensembles(seed, rows)
    if entry in TAUGHT:
        return batches.candidates(seed, rows)
    if entry == "fid":
        return batches.readings(seed, rows)
    if entry in JOINT:
        # REALM's candidates are to help unequally.
        return batches.joint(entry, seed + 7 * (entry == "realm"), rows)
    if entry in MASKED:
        return batches.masked(entry, seed, rows)
    return (
        batches.texts(seed, rows) if entry in RETRIEVERS else batches.tokens(seed, rows)
    )


_batch = batch


def learnable(name: str, seed: int) -> dict[str, np.ndarray]:
    """A batch of something to learn: how words are counted, or paired with others."""
    batch = batches.tokens(seed, ROWS)
    if SYSTEMS[name][0] == "retro":
        batch |= batches.neighbours(seed, ROWS)
    if SYSTEMS[name][0] == "rpt":
        return _batch(name, seed, ROWS)
    if SYSTEMS[name][0] == "replug":
        return batches.ensembles(seed, ROWS)
    if SYSTEMS[name][0] == "fid":
        batch = batches.readings(0, 8)
        return batch | {"weight": np.ones(8, np.float32)}
    if SYSTEMS[name][0] in JOINT:
        batch = batches.joint(SYSTEMS[name][0], 0, 8)
        return batch | {"weight": np.ones(8, np.float32)}
    if SYSTEMS[name][0] in MASKED:
        batch = batches.masked(SYSTEMS[name][0], seed % 4, 8)
        return batch | {"weight": np.ones(8, np.float32)}
    if SYSTEMS[name][0] in TAUGHT:
        batch = batches.candidates(seed, 8)
        batch["weight"][:] = 1
        batch["present"][:] = True
        # Words in the lower half help, whatever the context.
        scores = -2 * (batch["ids"][..., 0] > VOCAB // 2).astype(np.float32)
        batch |= {"lm_scores": scores, "teacher_scores": scores}
        for side in ("ids", "passage_ids"):
            batch[side] = np.tile(batch["ids"][..., :1], LENGTH)
        return batch
    if SYSTEMS[name][0] in RETRIEVERS:
        batch = batches.texts(seed, 8)
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


def counted(batch: Batch) -> float:
    """What the loss is a mean over: a reader's are the tokens of its answers."""
    if "target_mask" in batch:
        return (batch["target_mask"] * batch["weight"][:, None]).sum()
    if "span_mask" in batch:
        return (batch["span_mask"] * batch["weight"][:, None]).sum()
    return batch[weight_of(batch)].sum()


def without_gradient(name: str, path: tuple) -> bool:
    """What is added to every passage alike, which moves a question's scores alike."""
    where = jax.tree_util.keystr(path, simple=True, separator="/")
    if name == "rpt_given" and where.startswith(("retriever/query", "retriever/key")):
        return True  # nothing is retrieved
    if name == "rpt":  # it moves all chunks' scores alike
        return where == "retriever/key/bias"
    ends = ["passage/block_0/feed_forward_norm/bias"]
    if name == "reranker":  # whose score is linear in the last hidden state
        ends = ["projection/bias", "block_0/feed_forward_norm/bias"]
    return where.endswith(tuple(ends))


def prepared(system: Method, params, batch: Batch) -> Batch:
    """The batch as the loss gets it, from the first state of what moves."""
    if system.moving is None:
        return batch
    moving = system.moving

    def first(params, batch):
        state = moving.init(params, jax.random.key(5))
        return moving.update(params, state, batch, jax.random.key(6))[1]

    return jax.jit(first)(params, batch)


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
