"""Chunks are encoded and searched once; what is left out is found by nobody."""

import contextlib

import jax
import numpy as np
import pytest

from rlm_jax import terminal
from rlm_jax.data import text_encoding
from rlm_jax.models.encoder import EncoderConfig, embedder
from rlm_jax.retrieval import chunk_database
from rlm_jax.retrievers import chunk_search, dense
from rlm_jax.retrievers.chunk_search import DatabaseConfig, Sources
from rlm_jax.retrievers.encoder_towers import Tower, fitted_to
from rlm_jax.storage.locks import locked

M, K = 4, 2
WORDS = [f"word{i}" for i in range(20)]


def decode(tokens: np.ndarray) -> str:
    return " ".join(WORDS[i] for i in tokens)


def chunks(seed: int, num_documents: int) -> chunk_database.Chunks:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 20, 16 * num_documents).astype(np.int32)
    offsets = np.arange(num_documents + 1) * 16
    return chunk_database.chunk_stream(tokens, offsets, M)


@pytest.fixture(scope="module")
def tower() -> Tower:
    tokenizer = text_encoding.train(WORDS, vocab_size=100)
    config = fitted_to(
        EncoderConfig(
            num_layers=1, width=16, num_heads=2, feed_forward_width=24, max_length=32
        ),
        tokenizer,
    )
    params = jax.device_get(embedder(config).init(jax.random.key(0)))
    return Tower(config, params, tokenizer)


def test_neighbours_are_the_nearest_of_other_documents(tower, tmp_path, monkeypatch):
    monkeypatch.setenv("RLM_CACHE", str(tmp_path / "cache"))
    splits = {"train": chunks(0, 6), "validation": chunks(1, 2), "test": chunks(2, 2)}
    sources = Sources(splits["train"], splits, decode, ["tokens"])
    config = DatabaseConfig(search=dense.SearchConfig(k=3, batch_tokens=256))
    times = []

    @contextlib.contextmanager
    def phases(name):
        times.append(name)
        yield

    def find():
        return chunk_search.find_neighbours(
            config, sources, tower, tmp_path / "database",
            k=K, segment_length=16, phases=phases,
        )  # fmt: skip

    database = find()
    assert times == ["database", "encode", "neighbours"]
    assert {name: x.ids.shape for name, x in database.neighbours.items()} == {
        "train": (24, K), "validation": (8, 3), "test": (8, 3),
    }  # fmt: skip
    train = splits["train"]
    vectors = tower.encode([decode(x) for x in train], max_length=32)
    for row, query in enumerate(vectors):
        order = np.argsort(((vectors - query) ** 2).sum(1), kind="stable")
        # A segment is a document here, and its last target is in the next one.
        own = {row // 4, row // 4 + 1}
        wanted = [i for i in order if i // 4 not in own][:K]
        assert database.neighbours["train"].ids[row].tolist() == wanted
    test = splits["test"]
    queries = tower.encode([decode(x) for x in test], max_length=32)
    order = [np.argsort(((vectors - x) ** 2).sum(1), kind="stable") for x in queries]
    wanted = np.stack(order)[:, :3]
    np.testing.assert_array_equal(database.neighbours["test"].ids, wanted)
    found = database.find(list(test), 3, config.depth, config.max_depth)
    np.testing.assert_array_equal(found.ids, wanted)
    assert database.facts["train"]["chunks_per_second"] > 0
    # Everything is there: nothing is encoded or searched again.
    assert find().facts["test"]["chunks_per_second"] is None


def test_an_index_is_opened_at_its_first_search(monkeypatch):
    opened = []
    store = type("Store", (), {"dim": 2, "num_entries": 9})()

    class Index:
        def search(self, queries, k):
            return "searched"

    monkeypatch.setattr(
        dense, "open_index", lambda *given, **named: opened.append(named) or Index()
    )
    late, kind = chunk_search.open_late(DatabaseConfig(), store)  # type: ignore
    assert kind == {"index": "exact", "metric": "l2"} and not opened
    assert (late.dim, late.num_entries) == (2, 9)
    for _ in range(2):
        assert late.search(np.zeros((1, 2)), 1) == "searched"
    assert opened == [{"metric": "l2"}]


def test_a_folder_that_another_run_fills_is_waited_for(tmp_path, monkeypatch):
    class Waits(Exception):
        pass

    def say(line):
        raise Waits(line)

    monkeypatch.setattr(terminal, "say", say)
    shared = tmp_path / "shared"
    with chunk_search.filling(str(shared)):
        assert (shared / ".lock").exists()
    with locked(shared / ".lock"):
        with pytest.raises(Waits, match="another run, which fills"):
            with chunk_search.filling(str(shared)):
                pass
        with chunk_search.filling(""):  # a workdir's own is nobody else's
            pass
