"""Batches with neighbours: every chunk gets its own, at every step the same."""

import functools

import numpy as np
import pytest

from rlm_jax.data import batching, neighbour_batches
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.errors import UserError

M, K, LENGTH = 4, 2, 12


def make_split(num_tokens=103):
    tokens = np.random.default_rng(0).integers(0, 500, num_tokens).astype(np.uint16)
    return TokenSplit(tokens, np.array([0, num_tokens]), num_bytes=0, num_words=0)


def make_ids(num_tokens=103, k=3):
    """Neighbour j of chunk u has the number 10 u + j; chunk 2's second is absent."""
    ids = 10 * np.arange(-(-num_tokens // M))[:, None] + np.arange(k)
    ids[2:3, 1] = -1
    return ids.astype(np.int32)


def lookup(ids):
    """A neighbour is its number, again and again."""
    tokens = np.repeat(ids[..., None], 2 * M, axis=-1).astype(np.int32)
    mask = np.repeat((ids >= 0)[..., None], 2 * M, axis=-1).astype(np.int32)
    return np.where(mask, tokens, 0), mask


shuffled = functools.partial(batching.shuffled, batch_size=4, length=LENGTH)


def in_order(stride=LENGTH, batch_size=4, length=LENGTH):
    return functools.partial(
        neighbour_batches.in_order, batch_size=batch_size, length=length, stride=stride
    )


def make(order, split=None, ids=None, **options):
    return neighbour_batches.with_neighbours(
        split or make_split(),
        order,
        make_ids() if ids is None else ids,
        lookup,
        **{"chunk_length": M, "k": K} | options,
    )


def chunks_of(batch):
    """Of each row its first chunk's number, found by its tokens."""
    stream = make_split().tokens
    places = {tuple(stream[i : i + M]): i // M for i in range(0, len(stream), M)}
    return [places[tuple(row[:M])] for row in batch["tokens"]]


@pytest.mark.parametrize("order", [shuffled, in_order(), in_order(4)])
def test_rows_have_the_neighbours_of_their_own_chunks(order):
    batches = make(order)
    seen = set()
    for step in range(batches.num_batches):
        batch = batches.batch_at(5, step)
        shape = 4, LENGTH // M, K, 2 * M
        for name in ("neighbours", "neighbour_mask"):
            assert batch[name].shape == shape and batch[name].dtype == np.int32
        for row, first in enumerate(chunks_of(batch)):
            for chunk in range(LENGTH // M):
                number = first + chunk
                for neighbour in range(K):
                    tokens = batch["neighbours"][row, chunk, neighbour]
                    mask = batch["neighbour_mask"][row, chunk, neighbour]
                    absent = (number, neighbour) == (2, 1) or number >= 26
                    assert (mask == (not absent)).all()
                    wanted = 0 if absent else 10 * number + neighbour
                    assert (tokens == wanted).all()
                    seen.add(number)
    assert len(seen) >= 20


@pytest.mark.parametrize("order", [shuffled, in_order(8)], ids=["shuffled", "in_order"])
def test_the_rest_is_what_the_order_makes(order):
    split, batches = make_split(), make(order)
    plain = order(split)
    assert batches.num_batches == plain.num_batches
    assert batches.num_segments == plain.num_segments
    for step in (0, 1, plain.num_batches + 1):
        batch = batches.batch_at(3, step)
        for name, array in plain.batch_at(3, step).items():
            assert batch[name].dtype == array.dtype
            np.testing.assert_array_equal(batch[name], array)


def test_batches_are_pure_and_rows_are_a_slice():
    batch, again = (make(shuffled).batch_at(7, 3) for _ in range(2))
    for rows in (slice(1, 3), np.array([3, 0])):
        part = make(shuffled).batch_at(7, 3, rows=rows)
        for name, array in batch.items():
            np.testing.assert_array_equal(array, again[name])
            np.testing.assert_array_equal(array[rows], part[name])
    other = make(shuffled).batch_at(8, 3)
    assert (other["neighbours"] != batch["neighbours"]).any()


@pytest.mark.parametrize("num_tokens", [2, 13, 97, 98, 103])
@pytest.mark.parametrize(
    ("stride", "batch_size"), [(12, 4), (4, 3), (8, 5), (12, 1)], ids=str
)
def test_every_target_counts_once_in_order(stride, batch_size, num_tokens):
    split = make_split(num_tokens)
    ids = make_ids(num_tokens)
    batches = make(in_order(stride, batch_size), split, ids)
    targets = []
    for step in range(batches.num_batches):
        batch = batches.batch_at(0, step)
        kept = batch["mask"] > 0
        targets.append(batch["targets"][kept])
        inputs = batch["tokens"][kept]
        at = sum(map(len, targets[:-1]))
        np.testing.assert_array_equal(inputs, split.tokens[at : at + len(inputs)])
    np.testing.assert_array_equal(np.concatenate(targets), split.tokens[1:])


def test_new_targets_have_context():
    batch = make(in_order(4)).batch_at(0, 1)  # windows 4 to 7
    np.testing.assert_array_equal(batch["mask"][:, :8], 0)
    np.testing.assert_array_equal(batch["mask"][:, 8:], 1)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: make(shuffled, k=4), "enough"),
        (lambda: make(shuffled, k=0), "enough"),
        (lambda: make(shuffled, ids=make_ids()[:-1]), "26 chunks"),
        (lambda: make(shuffled, chunk_length=5), "21 chunks"),
        (
            lambda: make(
                functools.partial(batching.shuffled, batch_size=2, length=10)
            ).batch_at(0, 0),
            "whole chunks",
        ),
        (lambda: make(in_order(6)).batch_at(0, 0), "whole chunks"),
        (lambda: make(in_order(13)), "stride 13"),
        (lambda: make(in_order(4, 0)), "0 at a time"),
        (
            lambda: make(
                functools.partial(
                    batching.similar, batch_size=2, length=8, progress=False
                )
            ),
            "shuffled",
        ),
    ],
    ids=[
        "k", "no_k", "ids", "chunk", "length", "stride", "wide", "empty", "similar",
    ],
)  # fmt: skip
def test_bad_input(call, says):
    with pytest.raises(UserError, match=says):
        call()


def test_an_order_with_offsets_is_refused():
    order = functools.partial(
        batching.consecutive, batch_size=2, length=LENGTH, segments_per_group=2
    )
    batches = make(order)
    with pytest.raises(UserError, match="whole chunks"):
        for seed in range(20):  # the offset of an epoch is random
            batches.batch_at(seed, 0)
