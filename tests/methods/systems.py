"""Every method at its smallest, for the tests that all of them must pass."""

import dataclasses
from typing import Any

import jax
import numpy as np

from rlm_jax.method import Batch, Method, Params
from rlm_jax.methods import METHODS
from rlm_jax.models.decoder import modern
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.models.encoder_decoder import EncoderDecoderConfig
from rlm_jax.models.neighbours import NeighbourEncoderConfig
from rlm_jax.models.t5 import T5Config

ROWS, LENGTH, VOCAB = 4, 6, 13
CHUNK = 2
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
    return {"encoder_decoder": EncoderDecoderConfig(encoder, num_decoder_layers=2)}


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
        return tokens(seed, rows) | neighbours(seed, rows)
    if entry == "replug":
        return ensembles(seed, rows)
    if entry in TAUGHT:
        return candidates(seed, rows)
    if entry == "fid":
        return readings(seed, rows)
    if entry in JOINT:
        # REALM's candidates are to help unequally.
        return joint(entry, seed + 7 * (entry == "realm"), rows)
    if entry in MASKED:
        return masked(entry, seed, rows)
    return texts(seed, rows) if entry in RETRIEVERS else tokens(seed, rows)


def learnable(name: str, seed: int) -> dict[str, np.ndarray]:
    """A batch of something to learn: how words are counted, or paired with others."""
    batch = tokens(seed, ROWS)
    if SYSTEMS[name][0] == "retro":
        batch |= neighbours(seed, ROWS)
    if SYSTEMS[name][0] == "replug":
        return ensembles(seed, ROWS)
    if SYSTEMS[name][0] == "fid":
        batch = readings(0, 8)
        return batch | {"weight": np.ones(8, np.float32)}
    if SYSTEMS[name][0] in JOINT:
        batch = joint(SYSTEMS[name][0], 0, 8)
        return batch | {"weight": np.ones(8, np.float32)}
    if SYSTEMS[name][0] in MASKED:
        batch = masked(SYSTEMS[name][0], seed % 4, 8)
        return batch | {"weight": np.ones(8, np.float32)}
    if SYSTEMS[name][0] in TAUGHT:
        batch = candidates(seed, 8)
        batch["weight"][:] = 1
        batch["present"][:] = True
        # Words in the lower half help, whatever the context.
        scores = -2 * (batch["ids"][..., 0] > VOCAB // 2).astype(np.float32)
        batch |= {"lm_scores": scores, "teacher_scores": scores}
        for side in ("ids", "passage_ids"):
            batch[side] = np.tile(batch["ids"][..., :1], LENGTH)
        return batch
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


def counted(batch: Batch) -> float:
    """What the loss is a mean over: a reader's are the tokens of its answers."""
    if "target_mask" in batch:
        return (batch["target_mask"] * batch["weight"][:, None]).sum()
    if "span_mask" in batch:
        return (batch["span_mask"] * batch["weight"][:, None]).sum()
    return batch[weight_of(batch)].sum()


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


def neighbours(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Two of each chunk, at random; some are absent and one is short."""
    random = np.random.default_rng(seed + 1)
    shape = rows, LENGTH // CHUNK, 2, 2 * CHUNK
    mask = np.ones(shape, np.float32)
    mask[0, 1] = 0
    mask[1, 0, 1] = 0
    mask[2, 1, 0, 3:] = 0
    tokens = random.integers(0, VOCAB, shape).astype(np.int32)
    return {"neighbours": tokens, "neighbour_mask": mask}


def ensembles(seed: int, rows: int) -> dict[str, np.ndarray]:
    """What `tokens` counts to, after documents that count as well; two are absent."""
    counted, k, new = tokens(seed, rows), 3, 3
    random = np.random.default_rng(seed)
    first = random.integers(0, VOCAB, (rows, k, 1))
    documents = ((first + np.arange(2)) % VOCAB).astype(np.int32)
    context = np.repeat(counted["tokens"][:, None], k, axis=1)
    scores = random.normal(size=(rows, k)).astype(np.float32)
    scores[0, 1:] = -np.inf
    return {
        "tokens": np.concatenate([documents, context], axis=-1),
        "targets": counted["targets"][:, -new:],
        "mask": counted["mask"][:, -new:],
        "scores": scores,
    }


def readings(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Random passages of uneven length and an answer that is in one of them.

    One passage is absent, and the last row is padding.
    """
    random = np.random.default_rng(seed)
    passages = random.integers(4, VOCAB, (rows, 3, LENGTH)).astype(np.int32)
    mask = np.arange(LENGTH) < random.integers(3, LENGTH + 1, (rows, 3, 1))
    mask[0, 2] = False
    targets = np.concatenate([passages[:, 1, :3], np.full((rows, 1), 3)], axis=1)
    target_mask = np.ones(targets.shape, np.float32)
    target_mask[1, 2:] = 0
    weight = np.ones(rows, np.float32)
    weight[-1] = 0
    return {
        "passage_ids": passages,
        "passage_mask": mask.astype(np.int32),
        "targets": targets.astype(np.int32),
        "target_mask": target_mask,
        "weight": weight,
    }


def joint(entry: str, seed: int, rows: int) -> dict[str, Any]:
    """A reader's batch, and its passages as the retriever reads them.

    REALM's sentence stands before each of its candidates, and the null one is empty.
    """
    batch, found = readings(seed, rows), candidates(seed, rows)
    alone = {f"query_{x}": found[f"query_{x}"] for x in ("ids", "mask")}
    alone |= {f"candidate_{x}": found[f"passage_{x}"] for x in ("ids", "mask")}
    if entry == "atlas":
        return batch | alone | {"present": batch["passage_mask"].any(-1)}
    sentence = np.repeat(alone["query_ids"][:, None], 3, axis=1)
    mask = alone["candidate_mask"].copy()
    mask[:, 0, 1:] = 0
    alone["candidate_mask"] = mask
    parts = {"ids": alone["candidate_ids"], "mask": mask, "types": np.ones_like(mask)}
    before = {"ids": sentence, "mask": np.ones_like(sentence)}
    before["types"] = np.zeros_like(sentence)
    together = {
        f"passage_{name}": np.concatenate([before[name], parts[name]], axis=-1)
        for name in parts
    }
    random = np.random.default_rng(seed)
    positions = np.stack([random.permutation(4)[:2] for _ in range(rows)])
    target_mask = np.ones((rows, 2), np.float32)
    target_mask[1, 1] = 0
    present = found["present"].copy()
    present[:, 0] = True
    present[0, 2] = False
    return {
        **alone,
        **together,
        "positions": positions.astype(np.int32),
        "targets": batch["targets"][:, :2],
        "target_mask": target_mask,
        "present": present,
        "weight": batch["weight"],
    }


def candidates(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Random texts and what a language model says of them; the last row is padding."""
    random = np.random.default_rng(seed)
    shape = rows, 3, LENGTH
    passages = random.integers(1, VOCAB, shape).astype(np.int32)
    mask = (np.arange(LENGTH) < random.integers(2, LENGTH + 1, (rows, 3, 1))).astype(
        np.int32
    )
    present = np.ones(shape[:2], bool)
    present[0, 1] = False
    weight = np.ones(rows, np.float32)
    weight[-1] = 0
    queries = random.integers(1, VOCAB, (rows, 4)).astype(np.int32)
    scores = random.normal(size=shape[:2]).astype(np.float32)
    return {
        "query_ids": queries,
        "query_mask": np.ones((rows, 4), np.int32),
        "passage_ids": passages,
        "passage_mask": mask,
        "ids": passages,
        "mask": mask,
        "lm_scores": scores,
        "teacher_scores": scores,
        "present": present,
        "weight": weight,
    }


def texts(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Random texts, and beginnings of them as questions; the last row is padding.

    Two questions have one passage, and a third's negative answers the first as well.
    """
    random = np.random.default_rng(seed)
    passages = random.integers(1, VOCAB, (rows, 2, LENGTH)).astype(np.int32)
    # Crops are told apart by their texts alone; of equal ones rounding would decide.
    crops = passages[:, 0].copy()
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
    ones = np.ones((rows, 4), np.int32)
    return {
        **{"question_ids": passages[:, 0, :4], "question_mask": ones},
        **{"query_ids": crops[:, :4], "query_mask": ones},
        **{"key_ids": crops, "key_mask": passage_mask[:, 0]},
        "passage_ids": passages,
        "passage_mask": passage_mask,
        "passage": number,
        "known": known,
        "weight": weight,
    }


def masked(entry: str, seed: int, rows: int) -> dict[str, np.ndarray]:
    """Sequences that count, two words of each masked; the last row is padding.

    Every row has the words 5, 6 and 7 one after another somewhere, which are masked in
    every row: whatever rows are left out, some other row has them.
    """
    random = np.random.default_rng(seed)
    ids = random.integers(8, VOCAB, (rows, LENGTH)).astype(np.int32)
    at = random.integers(0, LENGTH - 2, rows)
    ids[np.arange(rows)[:, None], at[:, None] + np.arange(3)] = 5, 6, 7
    mask = np.ones((rows, LENGTH), np.int32)
    weight = np.ones(rows, np.float32)
    weight[-1] = 0
    masked, mask_id = ids.copy(), 4
    if entry == "npm":  # 5, 6, 7 gives way to two masks, and the last place is free
        masked = np.stack([np.r_[r[:a], [mask_id] * 2, r[a + 3 :], 0] for r, a in
                           zip(ids, at, strict=True)]).astype(np.int32)  # fmt: skip
        spans = np.tile(np.array([5, 6, 7, -1], np.int32), (rows, 2, 1))
        places = np.stack([at, np.zeros(rows, np.int64)], 1)
        span_mask = np.tile(np.array([1, 0], np.float32), (rows, 1))
    else:
        places = np.stack([at, at + 2], 1)
        masked[np.arange(rows)[:, None], places] = mask_id
        spans = np.tile(np.array([[5], [7]], np.int32), (rows, 1, 1))
        span_mask = np.ones((rows, 2), np.float32)
    masked_mask = (masked > 0).astype(np.int32)
    places = places.astype(np.int32)
    if entry == "masked_lm":
        return {
            **{"ids": masked, "mask": masked_mask, "at": places, "weight": weight},
            **{"targets": spans[..., 0], "target_mask": span_mask},
        }
    return {
        **{"ids": ids, "mask": mask, "masked_ids": masked, "masked_mask": masked_mask},
        **{"at": places, "spans": spans, "span_mask": span_mask, "weight": weight},
    }


def without_gradient(name: str, path: tuple) -> bool:
    """What is added to every passage alike, which moves a question's scores alike."""
    ends = ["passage/block_0/feed_forward_norm/bias"]
    if name == "reranker":  # whose score is linear in the last hidden state
        ends = ["projection/bias", "block_0/feed_forward_norm/bias"]
    return jax.tree_util.keystr(path, simple=True, separator="/").endswith(tuple(ends))


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
