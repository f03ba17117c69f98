"""One of every file that vouches for itself, small, and what is read from it."""

import dataclasses
import json
import pathlib
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rlm_jax.data import (
    corpora,
    passage_tokens,
    passages,
    questions,
    salient_spans,
    similarity,
    token_store,
    tokenizers,
)
from rlm_jax.method import Neighbours
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.readers import reader
from rlm_jax.recipes import runs, stale_decisions, stale_training
from rlm_jax.recipes.phrases import asking
from rlm_jax.retrieval import bm25, datastore, mining, refresh
from rlm_jax.retrievers import (
    contamination,
    encode_snapshot,
    encoder_towers,
    memory_parts,
    published_index,
    reading,
)
from rlm_jax.retrievers.phrase_answers import FillConfig
from rlm_jax.storage import row_shards, run_files, sealed
from rlm_jax.train.rounds import RefreshConfig

TEXTS = ["Oslo lies by the sea.", "In May 1943 a cat sat in Bergen.", "so it goes"]


class Kept(NamedTuple):
    """Files, and what is read from them."""

    folder: pathlib.Path
    read: Callable[[], Any]


def _collection(tmp_path) -> passages.Passages:
    records = [{"id": f"p{i}", "title": "a", "text": x} for i, x in enumerate(TEXTS)]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, records)))
    name = f"jsonl:{tmp_path}/p.jsonl"
    return passages.load(name, cache_dir=tmp_path / "cache", progress=False)


def _corpus(tmp_path) -> corpora.Corpus:
    folder = tmp_path / "corpus"
    if not folder.exists():
        folder.mkdir(parents=True)
        for name, text in zip(("train", "valid", "test"), TEXTS, strict=True):
            (folder / f"{name}.txt").write_text(f"{text}\n")
    return corpora.load(f"text:{folder}", cache_dir=tmp_path / "cache")


def of_corpus(tmp_path):
    def read():
        corpus = _corpus(tmp_path)
        return {name: list(corpus.documents(name)) for name in corpus.splits}

    return Kept(tmp_path / "cache" / "corpora", read)


def of_tokens(tmp_path):
    corpus = _corpus(tmp_path)
    tokenizer = tokenizers.build("bytes", corpus, vocab_size=0)

    def read():
        made = token_store.build(
            corpus, tokenizer, cache_dir=tmp_path / "cache", progress=False
        )
        return made.fingerprint, {
            name: {**vars(split), "tokens": split.tokens.tolist(),
                   "document_offsets": split.document_offsets.tolist()}
            for name, split in made.splits.items()
        }  # fmt: skip

    return Kept(tmp_path / "cache" / "tokens", read)


def of_tokenizer(tmp_path):
    corpus, cache_dir = _corpus(tmp_path), tmp_path / "cache"

    def read():
        made = tokenizers.build("word", corpus, vocab_size=0, cache_dir=cache_dir)
        return made.fingerprint, made.encode("Oslo lies").tolist()

    return Kept(tmp_path / "cache" / "tokenizers", read)


def of_word_pieces(tmp_path):
    collection = _collection(tmp_path)

    def read():
        made = encoder_towers.train_tokenizer(collection, 120)
        return made.fingerprint, [
            x.tolist() for x in made.encode(["Oslo"], max_length=8)
        ]

    return Kept(tmp_path / "cache" / "tokenizers", read)


def of_passages(tmp_path):
    def read():
        made = _collection(tmp_path)
        return made.fingerprint, list(made), made.rows_of(["p1", "p9"]).tolist()

    return Kept(tmp_path / "cache" / "passages", read)


def of_questions(tmp_path):
    asked = {"id": "q", "question": "where is it?", "answers": ["Oslo"]}
    asked |= {"positive": "it is in Oslo", "passage_id": "p0"}
    (tmp_path / "q.jsonl").write_text(json.dumps(asked))

    def read():
        name, cache_dir = f"jsonl:{tmp_path}/q.jsonl", tmp_path / "cache"
        made = questions.load(name, "test", cache_dir=cache_dir)
        return made.questions, made.relevance, list(made.passages), made.given

    return Kept(tmp_path / "cache" / "questions", read)


def of_passage_tokens(tmp_path):
    collection = _collection(tmp_path)
    letters: Any = types.SimpleNamespace(
        vocab_size=256,
        fingerprint="letters",
        passages=lambda rows, max_length: [
            np.frombuffer(x.text.encode(), np.uint8)[:max_length] for x in rows
        ],
    )

    def read():
        made = passage_tokens.build(
            collection, letters, max_length=9, cache_dir=tmp_path / "cache",
            progress=False,
        )  # fmt: skip
        return [made[row].tolist() for row in range(len(made))]

    return Kept(tmp_path / "cache" / "passage_tokens", read)


def of_casing(tmp_path):
    collection = _collection(tmp_path)

    def read():
        rules = salient_spans.rules_of_passages(
            collection, cache_dir=tmp_path / "cache"
        )
        return [salient_spans.salient(text, rules) for text in TEXTS]

    return Kept(tmp_path / "cache" / "casing", read)


def of_walk(tmp_path):
    segments = np.random.default_rng(0).integers(0, 9, (6, 5))

    def read():
        cache_dir = tmp_path / "cache"
        made = similarity.walk(segments, cache_dir=cache_dir, progress=False)
        return made.tolist()

    return Kept(tmp_path / "cache" / "walks", read)


def of_left_out(tmp_path):
    from rlm_jax.retrieval import chunk_database

    tokens = np.arange(40, dtype=np.int32)
    database = chunk_database.chunk_stream(tokens, np.array([0, 20, 40]), 4)
    other = chunk_database.chunk_stream(tokens[:8] + 100, np.array([0, 8]), 4)

    def read():
        out, counts = contamination.excluded_chunks(
            database, [other], lambda ids: " ".join(map(str, ids)), ["f"],
            duplicates=0.8, num_words=3,
        )  # fmt: skip
        return out.tolist(), counts

    return Kept(tmp_path / "cache" / "left_out", read)


def of_datastore(tmp_path):
    keys = np.arange(12, dtype=np.float32).reshape(6, 2)
    identity = {"model": "m"}
    writer = datastore.create(
        tmp_path / "kept", dim=2, dtype="float32", num_entries=6, identity=identity,
        shard_size=4,
    )  # fmt: skip
    writer.append(keys, np.arange(6))
    writer.publish()

    def read():
        made = datastore.open(tmp_path / "kept", identity=identity)
        return made.keys(0, 6).tolist(), made.values(0, 6).tolist(), made.manifest

    return Kept(tmp_path / "kept", read)


def of_words(tmp_path):
    bm25.save(bm25.build(TEXTS, bm25.published(), source="s"), tmp_path / "kept")

    def read():
        made = bm25.load(tmp_path / "kept", source="s")
        return [x.tolist() for x in made.search(["cat"], 2)], made.config

    return Kept(tmp_path / "kept", read)


def of_negatives(tmp_path):
    mining.save(tmp_path / "kept", np.arange(6, dtype=np.int32).reshape(2, 3), {"a": 1})
    read = lambda: mining.load(tmp_path / "kept", {"a": 1}).tolist()
    return Kept(tmp_path / "kept", read)


def of_rows(tmp_path):
    dtype = np.dtype([("a", "<i4"), ("b", "<f4")])
    row_shards.build(
        tmp_path / "kept", "form", dtype, 5, lambda a, b: np.ones(b - a, dtype),
        identity={"a": 1}, shard_size=2,
    )  # fmt: skip
    read = lambda: row_shards.open(tmp_path / "kept", "form", dtype).tolist()
    return Kept(tmp_path / "kept", read)


def of_candidates(tmp_path):
    ids = np.arange(8, dtype=np.int32).reshape(2, 2, 2)
    refresh.write_candidates(tmp_path / "kept", 0, {"q": "x"}, lambda: ids)

    def read():
        found = refresh.candidates(tmp_path / "kept", 0)
        return found.tolist(), refresh.searched(tmp_path / "kept")

    return Kept(tmp_path / "kept", read)


def of_reading(tmp_path):
    found = Neighbours(np.ones((2, 2), np.float32), np.arange(4).reshape(2, 2))
    reading._save(tmp_path / "kept", found, {"n": 2}, {"a": 1})

    def read():
        ids, scores, facts = reading._load(tmp_path / "kept", {"a": 1})
        return ids.tolist(), scores.tolist(), facts

    return Kept(tmp_path / "kept", read)


@dataclasses.dataclass
class Config:
    """Of a run."""

    steps: int = 2
    names: tuple[str, ...] = ("a", "b")
    method: RefreshConfig = dataclasses.field(default_factory=RefreshConfig)


def of_config(tmp_path):
    run = runs.Run("lm", "tiny", tmp_path / "kept", False)
    runs.claim(run, Config(), "text", same=("steps",), identity={"tokenizer": "t"})

    def read():
        stored = runs.configuration_of(tmp_path / "kept", "text")
        runs.claim(run, Config(), "text", same=("steps",), identity={"tokenizer": "t"})
        return stored

    return Kept(tmp_path / "kept", read)


def of_part(tmp_path):
    identity = {"seed": 0, "method": {"width": 4}, "passages": "abc"}
    folder = tmp_path / "kept"

    def read():
        runs.claim_part(folder, identity)
        return identity

    read()
    return Kept(folder, read)


def of_refreshes(tmp_path):
    path = tmp_path / "kept" / "refreshes.json"
    path.parent.mkdir(parents=True)
    told = [{"step": 2, "age": 2, "stale_recall": 0.5}]
    sealed.write(path, {"refreshes": told})
    arguments: Any = (None, None, None, path)
    return Kept(path.parent, lambda: stale_training._Staleness(*arguments).refreshes)


def of_decisions(tmp_path):
    path = tmp_path / "kept" / stale_decisions.FILE
    path.parent.mkdir(parents=True)
    sealed.write(path, {"decisions": [{"step": 4, "keys_step": 2}], "begin": [4]})
    arguments: Any = (RefreshConfig(), None, path.parent, None)
    made = stale_decisions.Decisions(*arguments)
    return Kept(path.parent, lambda: (made.read(), made._read()))


def of_reads(tmp_path):
    path = tmp_path / "kept" / reader.FOLDER / reader.READS
    path.parent.mkdir(parents=True)
    told = {"retriever": "bm25", "num": 4, "source": "abc", "passage_end": True}
    sealed.write(path, told)
    read = lambda: {x: reader.reads(tmp_path / "kept")[x] for x in told}
    return Kept(path.parent, read)


def of_job(tmp_path):
    job = encode_snapshot.Job(
        "stdlib", "f", EncoderConfig(), encoder_towers.TextConfig(),
        published_index.SearchConfig(), (0, 1),
    )  # fmt: skip
    (tmp_path / "kept" / refresh.SNAPSHOT).mkdir(parents=True)
    encode_snapshot.write(tmp_path / "kept", job)
    return Kept(tmp_path / "kept", lambda: encode_snapshot.read(tmp_path / "kept"))


def of_searcher(tmp_path):
    (tmp_path / "kept").mkdir(parents=True)
    words = dataclasses.asdict(bm25.published())
    published_index.publish(tmp_path / "kept", _collection(tmp_path), {"bm25": words})
    return Kept(
        tmp_path / "kept",
        lambda: (
            published_index._record(tmp_path / "kept"),
            published_index.fingerprints(tmp_path / "kept"),
        ),
    )


def of_removed(tmp_path):
    (tmp_path / "kept").mkdir(parents=True)
    memory_parts.write_removed(tmp_path / "kept", ["p1", "p0"])
    path = tmp_path / "kept" / memory_parts.REMOVED
    return Kept(path.parent, lambda: memory_parts._removed(path, needed=True))


def of_source(tmp_path):
    path = tmp_path / "kept" / "source.json"
    path.parent.mkdir(parents=True)
    sealed.write(path, {"fingerprint": "abc"})
    return Kept(path.parent, lambda: memory_parts._fingerprint(path.parent))


def of_memory(tmp_path):
    path = tmp_path / "kept" / asking.FILE
    path.parent.mkdir(parents=True)
    told = {
        "folder": "memory",
        "memory": dataclasses.asdict(memory_parts.MemoryConfig()),
        "fill": dataclasses.asdict(FillConfig()),
        **{"masks": 2, "scale": 1.5},
    }
    sealed.write(path, told)
    return Kept(path.parent, lambda: asking.kept(path.parent))


def of_run_file(tmp_path):
    path = tmp_path / "kept" / "run.trec.gz"
    run_files.write({"q": {"a": 0.25, "b": 1 / 3}, "r": {"a": -1.0}}, path)
    return Kept(path.parent, lambda: run_files.read(path))


EVERY = (
    of_corpus, of_tokens, of_tokenizer, of_word_pieces, of_passages, of_questions,
    of_passage_tokens, of_casing, of_walk, of_left_out, of_datastore, of_words,
    of_negatives, of_rows, of_candidates, of_reading, of_config, of_part, of_refreshes,
    of_decisions, of_reads, of_job, of_searcher, of_removed, of_source, of_memory,
    of_run_file,
)  # fmt: skip
