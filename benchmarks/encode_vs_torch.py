"""Encoding passages: our encoder against sentence-transformers, in PyTorch.

    python -m benchmarks.encode_vs_torch --encoder=FOLDER --collection=beir:FOLDER

The same weights (a folder of sentence-transformers, such as all-MiniLM-L6-v2), the same
texts, float32, the same batches of passages, on two cores each. A turn encodes one
slice of the collection, sorted by length as sentence-transformers does, from text to
vectors on the host. Both sides' vectors of all passages and questions are then judged
alike, by exact search, and ours by ScaNN at its default target too.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import record, workers
from rlm_jax.data import passages, questions
from rlm_jax.evaluate import ranking
from rlm_jax.retrieval import datastore, exact, scann

ROWS = 32  # texts of a batch, sentence-transformers' default
LENGTH = 256
SLICE = 512


def texts_of(collection: str) -> tuple[list[str], list[str]]:
    """(passages, test questions) of a collection, as text."""
    asked = questions.load(collection, "test").questions
    return [p.joined for p in passages.load(collection)], [q.text for q in asked]


def slices(argument: dict) -> list[list[str]]:
    """What a turn encodes, turn after turn: passages, then questions.

    A slice holds whole batches of texts of like length, longest first.
    """
    found = texts_of(argument["collection"])
    parts = []
    for texts in found:
        texts = texts[: argument["limit"] or None]
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        step = argument["slice"]
        parts += [
            [texts[i] for i in order[start : start + step]]
            for start in range(0, len(order), step)
        ]
    return parts


def side(argument: dict, encode, name: str):
    """() -> a number: encodes the next slice, and keeps its vectors in a file."""
    parts, folder = slices(argument), Path(argument["folder"])
    # The first two turns warm up on the first slice, and are not kept.
    turns = iter([-1, -1, *range(len(parts))])

    def work() -> float:
        number = next(turns)
        vectors = encode(parts[max(number, 0)])
        if number >= 0:
            np.save(folder / f"{name}-{number:05d}.npy", vectors)
        return float(vectors[0, 0])

    return work


def ours(argument: dict):
    from rlm_jax import pretrained
    from rlm_jax.data import text_encoding
    from rlm_jax.models.encoder import embedder
    from rlm_jax.retrieval import encode_passages

    config, params = pretrained.load_encoder(argument["encoder"])
    tokenizer = text_encoding.load(argument["encoder"])
    encoder = encode_passages.TextEncoder(
        embedder(config).embed,
        params,
        max_length=LENGTH,
        batch_tokens=ROWS * LENGTH,
        pad_id=tokenizer.pad_id,
        max_rows=ROWS,
    )
    # All shapes are compiled before the clock starts, as a long run would soon have.
    for width in encode_passages.widths(LENGTH):
        encoder([np.full(width, tokenizer.cls_id, np.int32)] * ROWS)
    return side(
        argument,
        lambda texts: encoder(tokenizer.encode(texts, max_length=LENGTH)),
        "rlm_jax",
    )


def theirs(argument: dict):
    import sentence_transformers  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(workers.NUM_THREADS)
    model = sentence_transformers.SentenceTransformer(argument["encoder"], device="cpu")
    model.max_seq_length = LENGTH
    return side(
        argument,
        lambda texts: model.encode(
            texts, batch_size=ROWS, normalize_embeddings=True, show_progress_bar=False
        ),
        "sentence_transformers",
    )


SIDES = {"sentence_transformers": theirs, "rlm_jax": ours}


def measure(
    quick: bool, encoder: str, collection: str, limit: int, vectors: str
) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        folder = vectors or stack.enter_context(tempfile.TemporaryDirectory())
        Path(folder).mkdir(parents=True, exist_ok=True)
        argument = {
            "encoder": encoder, "collection": collection, "folder": folder,
            "slice": 8 if quick else SLICE, "limit": 16 if quick else limit,
        }  # fmt: skip
        measured = Path(folder) / "time.json"
        if not measured.exists():
            measured.write_text(json.dumps(encode(argument)))
        spent = json.loads(measured.read_text())
        figures = judge(argument)
    difference = {
        name: abs(figures["ndcg@10"][name] - figures["ndcg@10"][other])
        for name, other in (
            ("rlm_jax", "sentence_transformers"), ("rlm_jax_scann", "rlm_jax"),
        )
    }  # fmt: skip
    return {
        "collection": Path(collection).name,
        "batch": [ROWS, LENGTH],
        "claims": {
            "passages/s, ours / sentence-transformers": record.claim(
                spent["ratio"]["median"], at_least=1.2
            ),
            "nDCG@10, ours against sentence-transformers, difference": record.claim(
                difference["rlm_jax"], at_most=0.005
            ),
            "nDCG@10, ScaNN at its default target against exact, difference": (
                record.claim(difference["rlm_jax_scann"], at_most=0.005)
            ),
        },
        **figures,
        "time": spent,
    }


def encode(argument: dict) -> dict[str, Any]:
    """Both sides encode everything, slice by slice in turn; the times."""
    rounds = len(slices(argument))
    return workers.compared("benchmarks.encode_vs_torch", SIDES, argument, rounds)[1]


def judge(argument: dict) -> dict[str, Any]:
    """nDCG@10 of both sides' vectors by exact search, and of ours by ScaNN."""
    collection, folder = argument["collection"], Path(argument["folder"])
    pool, asked = passages.load(collection), questions.load(collection, "test")
    ids = [question.id for question in asked.questions]
    limit = argument["limit"] or len(pool)
    vectors = {}
    for name in SIDES:
        files = sorted(folder.glob(f"{name}-*.npy"))
        rows = np.concatenate([np.load(f, allow_pickle=False) for f in files])
        found = texts_of(collection)
        place, at = {}, 0
        for kind, texts in zip(("passages", "questions"), found, strict=True):
            texts = texts[: argument["limit"] or None]
            order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
            restored = np.empty((len(texts), rows.shape[1]), np.float32)
            restored[order] = rows[at : at + len(texts)]
            place[kind], at = restored, at + len(texts)
        vectors[name] = place
    results = {
        name: _ndcg(exact.build(v["passages"], metric="ip"), v, ids, pool, asked)
        for name, v in vectors.items()
    }
    own = vectors["rlm_jax"]
    with tempfile.TemporaryDirectory() as name:
        writer = datastore.create(
            Path(name) / "store", dim=own["passages"].shape[1], dtype="float32",
            num_entries=len(own["passages"]), identity={},
        )  # fmt: skip
        writer.append(own["passages"], np.arange(len(own["passages"])))
        index = scann.build(writer.publish(), metric="ip")
        results["rlm_jax_scann"] = _ndcg(index, own, ids, pool, asked)
    worst = {
        kind: float(np.abs(own[kind] - vectors["sentence_transformers"][kind]).max())
        for kind in own
    }
    return {
        "num_passages": min(len(pool), limit),
        "num_questions": len(own["questions"]),
        "ndcg@10": results,
        "largest_difference": worst,
    }


def _ndcg(index, vectors, ids, pool, asked) -> float:
    found = index.search(vectors["questions"], 10)
    names = {int(i): pool[int(i)].id for i in np.unique(found.ids) if i >= 0}
    run = ranking.to_run(found, ids[: len(found.ids)], names)
    relevance = {q: asked.relevance[q] for q in run}
    return ranking.evaluate(run, relevance, ["ndcg@10"]).means["ndcg@10"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--collection", required=True)
    parser.add_argument("--limit", type=int, default=0, help="passages; 0: all")
    parser.add_argument(
        "--vectors",
        default="",
        help="folder that keeps them and the times; a full one is judged only",
    )
    own, others = parser.parse_known_args()
    sys.argv[1:] = others
    record.main(
        "encode_vs_torch",
        lambda quick: {
            **measure(quick, own.encoder, own.collection, own.limit, own.vectors),
            "encoder": Path(own.encoder).name,
        },
    )
