"""Chunks of a stream: where they lie, and what they show as neighbours."""

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.retrieval import chunk_database

# Documents of 5, 0, 9 and 3 tokens; token i is 100 + i.
OFFSETS = np.array([0, 5, 5, 14, 17])
TOKENS = np.arange(100, 117).astype(np.uint16)


def stream(m=4):
    return chunk_database.chunk_stream(TOKENS, OFFSETS, m)


def documents(m=4):
    return chunk_database.chunk_documents(TOKENS, OFFSETS, m)


def test_chunks_of_the_stream_lie_on_its_grid():
    chunks = stream()
    np.testing.assert_array_equal(chunks.starts, [0, 4, 8, 12, 16])
    np.testing.assert_array_equal(chunks.stops, [4, 8, 12, 16, 17])
    np.testing.assert_array_equal(chunks.first_document, [0, 0, 2, 2, 3])
    np.testing.assert_array_equal(chunks.last_document, [0, 2, 2, 3, 3])
    # A continuation ends with the last document that the chunk itself touches.
    np.testing.assert_array_equal(chunks.ends, [5, 12, 14, 17, 17])


def test_chunks_of_documents_end_with_them():
    chunks = documents()
    np.testing.assert_array_equal(chunks.starts, [0, 4, 5, 9, 13, 14])
    np.testing.assert_array_equal(chunks.stops, [4, 5, 9, 13, 14, 17])
    np.testing.assert_array_equal(chunks.first_document, chunks.last_document)
    np.testing.assert_array_equal(chunks.ends, [5, 5, 13, 14, 14, 17])


@pytest.mark.parametrize("make", [stream, documents])
def test_chunks_hold_every_token_once(make):
    chunks = make()
    np.testing.assert_array_equal(np.concatenate(list(chunks)), TOKENS)
    assert all(tokens.dtype == np.int32 for tokens in chunks[1:3])
    np.testing.assert_array_equal(chunks[-1], chunks[len(chunks) - 1 :][0])


@pytest.mark.parametrize("make", [stream, documents])
def test_values_are_what_is_shown_and_nothing_else(make):
    chunks = make()
    ids = np.array([[0, -1], [3, len(chunks) - 1]])
    tokens, mask = chunks.values(ids)
    assert tokens.shape == mask.shape == (2, 2, 8)
    assert tokens.dtype == mask.dtype == np.int32
    for at, number in np.ndenumerate(ids):
        shown = chunks.shown(number, number + 1)[0] if number >= 0 else []
        np.testing.assert_array_equal(tokens[at][mask[at] > 0], shown)
        np.testing.assert_array_equal(mask[at], np.arange(8) < len(shown))
        assert not tokens[at][len(shown) :].any()


@pytest.mark.parametrize("make", [stream, documents])
def test_a_neighbour_shows_no_document_that_its_chunk_does_not_touch(make):
    chunks = make()
    for number in range(len(chunks)):
        positions = chunks.shown(number, number + 1)[0] - 100
        seen = chunk_database.documents_of(OFFSETS, positions)
        assert seen.min() == chunks.first_document[number]
        assert seen.max() == chunks.last_document[number]


def test_joined_databases_are_one_after_another():
    others = chunk_database.chunk_documents(TOKENS + 100, OFFSETS, 4)
    database, first = chunk_database.join(stream(), others), len(stream())
    assert len(database) == first + len(others)
    for number, tokens in enumerate([*stream(), *others]):
        np.testing.assert_array_equal(database[number], tokens)
    for part, at in ((stream(), 0), (others, first)):
        ids = np.arange(len(part)).reshape(1, -1)
        for found, wanted in zip(
            database.values(ids + at), part.values(ids), strict=True
        ):
            np.testing.assert_array_equal(found, wanted)
    mixed = np.array([[first, 0], [-1, first + 2]])
    np.testing.assert_array_equal(
        database.values(mixed)[0][0, 0], others.values(np.array(0))[0]
    )
    np.testing.assert_array_equal(
        database.first_document,
        [*stream().first_document, *(others.first_document + 4)],
    )
    marked = np.zeros(8, bool)
    marked[4] = True  # the other's first document
    np.testing.assert_array_equal(np.flatnonzero(database.touching(marked)), [5, 6])
    with pytest.raises(UserError, match="alike"):
        chunk_database.join(stream(4), stream(5))


def test_touching():
    found = stream().touching(np.array([False, True, False, True]))
    np.testing.assert_array_equal(found, [False, False, False, True, True])
    found = stream().touching(np.array([True, False, False, False]))
    np.testing.assert_array_equal(found, [True, True, False, False, False])


def test_identity_tells_grids_apart():
    grids = [stream(4), stream(5), documents(4)]
    assert len({str(chunks.identity) for chunks in grids}) == 3
    assert stream().identity == stream().identity


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: stream(0), "chunks of 0"),
        (lambda: chunk_database.chunk_stream(TOKENS[:0], OFFSETS[:1], 4), "0 tokens"),
        (lambda: chunk_database.chunk_stream(TOKENS, OFFSETS[:-1], 4), "cover"),
        (lambda: stream().values(np.array([5])), "5 chunks"),
        (lambda: stream().values(np.array([-2])), "-2"),
    ],
    ids=["length", "empty", "offsets", "beyond", "negative"],
)
def test_bad_input(call, says):
    with pytest.raises(UserError, match=says):
        call()
