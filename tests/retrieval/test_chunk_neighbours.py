"""Precomputed neighbours: which are kept, and that they come back as written."""

from typing import Any

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.method import Neighbours
from rlm_jax.retrieval import (
    chunk_database,
    chunk_neighbours,
    datastore,
    encode_passages,
    exact,
)
from rlm_jax.storage import row_shards

M = 4
# Twelve documents of several chunks each, on no grid, the third of them long.
LENGTHS = np.array([9, 14, 130, 8, 11, 7, 20, 13, 10, 16, 12, 21])
OFFSETS = np.concatenate([[0], np.cumsum(LENGTHS)])
TOKENS = np.random.default_rng(0).integers(0, 9, OFFSETS[-1]).astype(np.uint16)


class Recording:
    """An index that remembers its searches, and may fail at one of them."""

    def __init__(self, index, fail_at=None):
        self.index, self.fail_at, self.calls = index, fail_at, []
        self.dim, self.num_entries = index.dim, index.num_entries

    def search(self, queries, k) -> Neighbours:
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append((len(queries), k))
        return self.index.search(queries, k)


@pytest.fixture(scope="module")
def chunks():
    return chunk_database.chunk_stream(TOKENS, OFFSETS, M)


@pytest.fixture(scope="module")
def vectors(chunks, tmp_path_factory):
    made = np.random.default_rng(1).normal(size=(len(chunks), 3)).astype(np.float32)
    # The long document's chunks lie together: each other's nearest, to a depth of 30.
    made[chunks.first_document == 2] = made[chunks.first_document == 2] / 100 + 9
    writer = datastore.create(
        tmp_path_factory.mktemp("vectors") / "store",
        dim=3,
        dtype="float32",
        num_entries=len(chunks),
        identity={},
    )
    writer.append(made, np.arange(len(chunks)))
    return writer.publish()


@pytest.fixture(scope="module")
def index(vectors):
    return exact.build(vectors, metric="l2")


def build(index, vectors, directory, **options: Any):
    options = {"k": 2, "depth": 8, "max_depth": 100, "block_size": 8} | options
    return chunk_neighbours.build(
        index,
        vectors,
        directory,
        identity={"database": vectors.checksum},
        shard_size=options.pop("shard_size", 16),
        **options,
    )


def documents_between(first, stop):
    """The documents of the tokens first..stop-1."""
    positions = np.arange(first, min(stop, len(TOKENS)))
    return set(np.searchsorted(OFFSETS, positions, side="right") - 1)


def expected(vectors, chunks, k, depth, segment):
    """By sorting all distances, one chunk after another."""
    keys = vectors.keys(0, vectors.num_entries)
    rows = []
    for number in range(len(chunks)):
        begin = number * M // segment * segment
        own = documents_between(begin, begin + segment + 1)
        order = np.argsort(((keys - keys[number]) ** 2).sum(1), kind="stable")
        kept = [
            other
            for other in order[:depth].tolist()
            if not own & documents_between(other * M, other * M + M)
        ]
        rows.append((kept + [-1] * k)[:k])
    return np.array(rows)


@pytest.mark.parametrize("segment", [4, 16], ids=["chunk", "four_chunks"])
def test_nearest_of_other_documents(segment, index, vectors, chunks, tmp_path):
    filters = [chunk_neighbours.same_document(chunks, chunks, segment)]
    found = build(index, vectors, tmp_path / "n", filters=filters)
    assert found.ids.dtype == np.int32
    wanted = expected(vectors, chunks, 2, len(chunks), segment)
    np.testing.assert_array_equal(found.ids, wanted)
    assert found.empty_share == 0
    assert found.chunks_per_second


def test_the_document_of_a_segments_last_target_is_its_own():
    offsets = np.array([0, 8, 16, 24])
    chunks = chunk_database.chunk_stream(np.arange(24), offsets, M)
    drops = chunk_neighbours.same_document(chunks, chunks, 8).drops
    every = np.tile(np.arange(6), (6, 1))
    wanted = np.repeat(np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1]]), 2, axis=0)
    found = drops(np.arange(6), every)
    np.testing.assert_array_equal(found, np.repeat(wanted, 2, axis=1) > 0)


def test_no_neighbour_shows_text_of_its_segment(index, vectors, chunks, tmp_path):
    segment = 8
    filters = [chunk_neighbours.same_document(chunks, chunks, segment)]
    ids = build(index, vectors, tmp_path / "n", filters=filters).ids
    positions = chunk_database.chunk_stream(np.arange(len(TOKENS)), OFFSETS, M)
    for number, row in enumerate(ids):
        begin = number * M // segment * segment
        shown, mask = positions.values(row)
        for position in shown[mask > 0]:
            there = documents_between(position, position + 1)
            assert not there & documents_between(begin, begin + segment + 1)


def test_chunks_are_encoded_as_passages_are(chunks, tmp_path):
    encoder = encode_passages.TextEncoder(
        lambda params, batch: (batch["ids"] * batch["mask"]).sum(1)[:, None] * params,
        np.float32(1),
        max_length=M,
        batch_tokens=64,
        pad_id=7,
    )
    made = encode_passages.build(
        encoder, chunks, list, tmp_path / "store", identity=chunks.identity
    )
    sums = [tokens.sum() for tokens in chunks]
    np.testing.assert_array_equal(made.keys(0, len(chunks))[:, 0], sums)


def test_an_exhausted_search_leaves_slots_empty(index, vectors, chunks, tmp_path):
    filters = [chunk_neighbours.same_document(chunks, chunks, M)]
    found = build(index, vectors, tmp_path / "n", filters=filters, max_depth=8)
    wanted = expected(vectors, chunks, 2, 8, M)
    np.testing.assert_array_equal(found.ids, wanted)
    assert found.empty_share == (wanted < 0).mean() > 0.1


def test_only_chunks_that_keep_too_few_are_searched_deeper(
    index, vectors, chunks, tmp_path
):
    recording = Recording(index)
    filters = [chunk_neighbours.same_document(chunks, chunks, M)]
    build(
        recording, vectors, tmp_path / "n", filters=filters, block_size=100,
        shard_size=100,
    )  # fmt: skip
    (first, *rest), total = recording.calls, len(chunks)
    assert first == (total, 8)
    assert [k for _, k in rest] == [32, total]
    assert total > rest[0][0] >= rest[1][0] > 0


def test_excluded_chunks_are_no_neighbours(index, vectors, chunks, tmp_path):
    rows = np.zeros(len(chunks), bool)
    rows[::2] = True
    filters = [chunk_neighbours.excluded(rows)]
    found = build(index, vectors, tmp_path / "n", k=8, filters=filters).ids
    assert (found[found >= 0] % 2 == 1).all()
    assert (found[1::2, 0] == np.arange(1, len(chunks), 2)).all()  # itself is left
    none = [chunk_neighbours.excluded(np.ones(len(chunks), bool))]
    assert build(index, vectors, tmp_path / "none", filters=none).empty_share == 1


def test_the_first_part_of_a_joined_database(index, vectors, chunks, tmp_path):
    more = chunk_database.chunk_stream(TOKENS[:64], np.array([0, 40, 64]), M)
    database = chunk_database.join(chunks, more)
    # The second part's vectors are those of the first's first chunks.
    keys = vectors.keys(0, len(chunks))
    both = exact.build(np.concatenate([keys, keys[: len(more)]]), metric="l2")
    filters = [chunk_neighbours.same_document(chunks, database, M)]
    found = build(both, vectors, tmp_path / "n", filters=filters, num_chunks=10).ids
    assert len(found) == 10
    np.testing.assert_array_equal(found[:, 0], len(chunks) + np.arange(10))
    with pytest.raises(UserError, match="num_chunks"):
        build(both, vectors, tmp_path / "n", filters=filters)


def test_a_database_smaller_than_k(vectors, tmp_path):
    small = exact.build(vectors.keys(0, 3), metric="l2")
    found = build(small, vectors, tmp_path / "n", k=5)
    assert (found.ids[:, :3] >= 0).all() and (found.ids[:, 3:] == -1).all()
    assert found.empty_share == 2 / 5


@pytest.mark.parametrize("calls", [0, 3, 4, 7], ids="after_{}".format)
def test_a_killed_build_goes_on(calls, index, vectors, chunks, tmp_path):
    filters = [chunk_neighbours.excluded(np.arange(len(chunks)) == 1)]
    build(index, vectors, tmp_path / "whole", filters=filters)
    with pytest.raises(KeyboardInterrupt):
        failing = Recording(index, fail_at=calls)
        build(failing, vectors, tmp_path / "n", filters=filters)
    assert not (tmp_path / "n").exists()
    with pytest.raises(UserError, match="no finished"):
        row_shards.open(
            tmp_path / "n", chunk_neighbours.FORM, chunk_neighbours.dtype(2)
        )
    going_on, advanced = Recording(index), []
    build(going_on, vectors, tmp_path / "n", filters=filters, advance=advanced.append)
    assert going_on.calls[0][0] == 8
    # Two searches of 8 make a shard of 16; whole shards are kept.
    blocks = -(-len(chunks) // 8)
    assert len(going_on.calls) == blocks - calls // 2 * 2
    assert sum(advanced) == len(chunks)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "n" / path.name).read_bytes()


def test_opened_not_searched_again(index, vectors, tmp_path):
    made = build(index, vectors, tmp_path / "n")
    never = Recording(index, fail_at=0)
    opened = build(never, vectors, tmp_path / "n")
    np.testing.assert_array_equal(opened.ids, made.ids)
    assert opened.checksum == made.checksum
    assert opened.chunks_per_second is None
    assert not opened.ids.flags.writeable


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 3}, "k = 2"),
        ({"depth": 9}, "depths"),
        ({"filters": [chunk_neighbours.excluded(np.zeros(99, bool))]}, "filters"),
    ],
    ids=["k", "depth", "filters"],
)
@pytest.mark.parametrize("killed", [False, True], ids=["whole", "killed"])
def test_other_neighbours_are_refused(killed, change, says, index, vectors, tmp_path):
    if killed:
        with pytest.raises(KeyboardInterrupt):
            build(Recording(index, fail_at=3), vectors, tmp_path / "n")
    else:
        build(index, vectors, tmp_path / "n")
    with pytest.raises(UserError, match=says):
        build(index, vectors, tmp_path / "n", **change)


@pytest.mark.parametrize("killed", [False, True], ids=["whole", "killed"])
def test_damage_is_found(killed, index, vectors, tmp_path):
    folder = tmp_path / "n"
    if killed:
        with pytest.raises(KeyboardInterrupt):
            build(Recording(index, fail_at=3), vectors, folder)
    else:
        build(index, vectors, folder)
    file = (tmp_path / ("n.partial" if killed else "n")) / row_shards.FILE
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="not those that were written"):
        build(index, vectors, folder)
    file.write_bytes(data[:-1])
    with pytest.raises(UserError, match="bytes"):
        build(index, vectors, folder)


def test_shuffled_is_others_neighbours(index, vectors, chunks, tmp_path):
    filters = [chunk_neighbours.same_document(chunks, chunks, M)]
    ids = build(index, vectors, tmp_path / "n", filters=filters).ids
    numbers = np.arange(50, dtype=np.int32)[:, None]
    moved = chunk_neighbours.shuffled(numbers, 3)
    assert sorted(moved[:, 0]) == list(range(50))
    assert (moved != numbers).all()
    np.testing.assert_array_equal(moved, chunk_neighbours.shuffled(numbers, 3))
    others = chunk_neighbours.shuffled(ids, 3, filters=filters)
    assert others.dtype == np.int32 and others.shape == ids.shape
    rows = np.arange(len(ids))
    assert not (filters[0].drops(rows, others) & (others >= 0)).any()
    assert (others < 0).any()  # what a permutation alone would have given away


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"k": 0}, "0 neighbours"),
        ({"k": 9}, "9 neighbours"),
        ({"depth": 101}, "depth 101 to 100"),
        ({"block_size": 0}, "blocks of 0"),
        ({"num_chunks": 10**6}, "1000000 chunks"),
    ],
    ids=["k", "depth", "max_depth", "block", "chunks"],
)
def test_bad_input(change, says, index, vectors, tmp_path):
    with pytest.raises(UserError, match=says):
        build(index, vectors, tmp_path / "n", **change)


def test_segments_are_whole_chunks(chunks):
    with pytest.raises(UserError, match="multiple"):
        chunk_neighbours.same_document(chunks, chunks, 6)
