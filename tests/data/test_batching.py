import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from rlm_jax.data import batching
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.errors import UserError

ORDERS = ("shuffled", "consecutive", "same_document", "similar", "related")
settings = hypothesis.settings(max_examples=40, deadline=None)


def make_split(document_lengths):
    """A split whose tokens are their own positions plus one."""
    offsets = np.concatenate([[0], np.cumsum(document_lengths)]).astype(np.int64)
    tokens = np.arange(1, offsets[-1] + 1).astype(np.uint16)
    return TokenSplit(tokens, offsets, num_bytes=0, num_words=0)


def make_batches(order, split, tmp_path, *, groups=2, per_group=2, length=5):
    sizes = {"batch_size": groups * per_group, "length": length}
    if order == "shuffled":
        return batching.shuffled(split, **sizes)
    if order == "similar":
        return batching.similar(split, **sizes, cache_dir=tmp_path, progress=False)
    if order == "related":
        sizes["segments_per_row"] = length  # of one token each
        return batching.related(split, **sizes, cache_dir=tmp_path, progress=False)
    make = getattr(batching, order)
    return make(split, **sizes, segments_per_group=per_group)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


documents = st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(
    lambda lengths: sum(lengths) >= 80
)


@pytest.mark.parametrize("order", ORDERS)
def test_shapes_and_types(order, cache):
    batch = make_batches(order, make_split([100, 50]), cache).batch_at(0, 0)
    assert {name: (array.dtype, array.shape) for name, array in batch.items()} == {
        "tokens": (np.int32, (4, 5)),
        "targets": (np.int32, (4, 5)),
        "mask": (np.float32, (4, 5)),
        "segment": (np.int32, (4,)),
        "group": (np.int32, (4,)),
    }


@pytest.mark.parametrize("order", ORDERS)
@settings
@hypothesis.given(
    lengths=documents, seed=st.integers(0, 2**31), step=st.integers(0, 50)
)
def test_targets_are_the_next_tokens_and_rows_are_a_slice(
    order, cache, lengths, seed, step
):
    split = make_split(lengths)
    try:
        batches = make_batches(order, split, cache)
    except UserError:  # many short documents hold no two groups of segments
        return
    batch = batches.batch_at(seed, step)
    keep = batch["mask"] == 1
    np.testing.assert_array_equal(batch["targets"][keep], batch["tokens"][keep] + 1)
    assert not batch["tokens"][~keep].any() and not batch["targets"][~keep].any()

    part = batches.batch_at(seed, step, rows=slice(1, 3))
    fresh = make_batches(order, split, cache).batch_at(seed, step)
    for name in batch:
        np.testing.assert_array_equal(part[name], batch[name][1:3])
        np.testing.assert_array_equal(fresh[name], batch[name])


@pytest.mark.parametrize("order", ["shuffled", "similar"])
@settings
@hypothesis.given(
    num_tokens=st.integers(41, 300), seed=st.integers(0, 99), epoch=st.integers(0, 3)
)
def test_every_segment_once_an_epoch(order, cache, num_tokens, seed, epoch):
    batches = make_batches(order, make_split([num_tokens]), cache)
    steps = range(epoch * batches.num_batches, (epoch + 1) * batches.num_batches)
    seen = [batches.batch_at(seed, step)["tokens"][:, 0] for step in steps]
    starts = np.concatenate(seen) - 1
    assert len(np.unique(starts)) == len(starts) == batches.num_batches * 4
    assert batches.num_segments - len(starts) < 4
    assert (starts % 5 == 0).all() and starts.max() + 5 < num_tokens


@settings
@hypothesis.given(lengths=documents, seed=st.integers(0, 99))
def test_same_document_covers_every_target_once(lengths, seed):
    split = make_split(lengths)
    batches = batching.same_document(
        split, batch_size=1, length=5, segments_per_group=1
    )
    batch_of = [batches.batch_at(seed, step) for step in range(batches.num_batches)]
    targets = np.concatenate([b["targets"][b["mask"] == 1] for b in batch_of])
    firsts = split.document_offsets[:-1][np.diff(split.document_offsets) > 0] + 1
    expected = np.setdiff1d(split.tokens, firsts)
    np.testing.assert_array_equal(np.sort(targets), expected)


def document_of(split, tokens):
    return np.searchsorted(split.document_offsets, tokens - 1, side="right")


@settings
@hypothesis.given(lengths=documents, step=st.integers(0, 20))
def test_groups_of_same_document_never_cross_one(lengths, step):
    split = make_split(lengths)
    try:
        batches = make_batches("same_document", split, None)
    except UserError:
        return
    batch = batches.batch_at(7, step)
    for group in np.unique(batch["group"]):
        rows = batch["group"] == group
        keep = batch["mask"][rows] == 1
        tokens, targets = batch["tokens"][rows][keep], batch["targets"][rows][keep]
        assert (np.diff(tokens) == 1).all()  # one row goes on where the last one ended
        assert len(np.unique(document_of(split, np.append(tokens, targets)))) == 1


def test_consecutive_rows_of_a_group_are_consecutive_text():
    split = make_split([200])
    batches = make_batches("consecutive", split, None, groups=2, per_group=3)
    batch = batches.batch_at(3, 1)
    np.testing.assert_array_equal(batch["group"], [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(batch["segment"], np.arange(6))
    for group in (0, 1):
        tokens = batch["tokens"][batch["group"] == group].reshape(-1)
        np.testing.assert_array_equal(np.diff(tokens), 1)


def test_consecutive_cuts_move_between_epochs():
    split = make_split([1000])
    batches = make_batches("consecutive", split, None, length=7)
    phases = {
        int(batches.batch_at(0, epoch * batches.num_batches)["tokens"][0, 0] % 7)
        for epoch in range(20)
    }
    assert len(phases) > 3


@pytest.mark.parametrize("order", ORDERS)
def test_epochs_and_seeds_differ(order, cache):
    batches = make_batches(order, make_split([700, 300]), cache)
    first = batches.batch_at(0, 0)["tokens"]
    assert (first != batches.batch_at(1, 0)["tokens"]).any()
    assert (first != batches.batch_at(0, batches.num_batches)["tokens"]).any()


@pytest.mark.parametrize("order", ORDERS)
def test_too_few_tokens_says_how_many_and_what_to_lower(order, cache):
    with pytest.raises(UserError, match="has 6 tokens.*lower the batch size"):
        make_batches(order, make_split([6]), cache)
    with pytest.raises(UserError, match="has 0 tokens"):
        make_batches(order, make_split([0]), cache)


def subjects(num, length):
    """Segments of `num` subjects, in any order, each in the words of its own."""
    random = np.random.default_rng(0)
    subject = random.permutation(np.repeat(np.arange(num), 6))
    words = 20 * subject[:, None] + random.integers(20, size=(6 * num, length))
    tokens = np.append(words.reshape(-1), 0).astype(np.uint16)
    return TokenSplit(tokens, np.array([0, len(tokens)]), 0, 0)


def test_a_related_row_joins_segments_of_one_subject(cache):
    split = subjects(num=30, length=8)
    batches = batching.related(
        split,
        batch_size=4,
        length=24,
        segments_per_row=3,
        cache_dir=cache,
        progress=False,
    )
    assert batches.num_segments == (180 - 2) // 3
    for epoch in range(2):
        pieces, same = [], 0
        for step in range(batches.num_batches):
            batch = batches.batch_at(5, epoch * batches.num_batches + step)
            assert batch["mask"].all()
            for row, targets in zip(batch["tokens"], batch["targets"], strict=True):
                at = [segment_of(split, x) for x in row.reshape(3, 8)]
                pieces += at
                for i, found in zip(at, targets.reshape(3, 8), strict=True):
                    after = split.tokens[8 * i + 1 : 8 * i + 9]
                    np.testing.assert_array_equal(found, after)
                same += len(np.unique(row // 20)) == 1
        assert len(set(pieces)) == len(pieces) == 12 * batches.num_batches
        # Five of six segments have one of their subject after them in the walk.
        assert same > 0.5 * len(pieces) / 3


def segment_of(split, piece):
    rows = split.tokens[:-1].reshape(-1, len(piece))
    (found,) = np.flatnonzero((rows == piece).all(axis=1))
    return found


def test_related_rows_begin_elsewhere_in_another_epoch(cache):
    split = subjects(num=30, length=8)
    batches = batching.related(
        split, batch_size=1, length=16, segments_per_row=2, cache_dir=cache
    )

    def followed(epoch):
        first = epoch * batches.num_batches
        steps = range(first, first + batches.num_batches)
        rows = (batches.batch_at(0, step)["tokens"] for step in steps)
        return {tuple(segment_of(split, x) for x in row.reshape(2, 8)) for row in rows}

    pairs = [followed(epoch) for epoch in range(6)]
    # The walk is cut at one of two places, so that there are two sets of pairs.
    assert {len(x) for x in pairs} == {batches.num_segments}
    assert len(set.union(*pairs)) == 2 * batches.num_segments
    with pytest.raises(UserError, match="16 tokens cannot be made of 3 segments"):
        batching.related(split, batch_size=1, length=16, segments_per_row=3)


def test_repeats_read_random_tokens_again_and_again():
    split = make_split([190, 30])
    batches = batching.repeats(split, batch_size=4, length=48)
    batch = batches.batch_at(0, 3)
    for tokens, targets, mask in zip(
        batch["tokens"], batch["targets"], batch["mask"], strict=True
    ):
        np.testing.assert_array_equal(tokens[1:], targets[:-1])
        period = len(np.unique(tokens))
        assert 6 <= period <= 16  # 48 / 8 and 48 / 3
        np.testing.assert_array_equal(tokens[period:], tokens[:-period])
        assert np.isin(tokens, split.tokens).all()
        # What counts is what followed the same token before.
        np.testing.assert_array_equal(mask, np.arange(48) >= period)
    np.testing.assert_array_equal(batch["group"], np.arange(4))


def test_frequent_repeats_draw_tokens_as_often_as_they_stand_in_the_text():
    split = TokenSplit(
        np.where(np.arange(400) % 4, np.arange(400), 0), np.array([0, 400]), 0, 0
    )
    batches = batching.frequent_repeats(split, batch_size=8, length=48)
    zeros = spans = 0
    for step in range(6):
        batch = batches.batch_at(0, step)
        for tokens, mask in zip(batch["tokens"], batch["mask"], strict=True):
            period = int(48 - mask.sum())
            assert 6 <= period <= 16
            np.testing.assert_array_equal(tokens[period:], tokens[:-period])
            zeros, spans = zeros + (tokens[:period] == 0).sum(), spans + period
    assert 0.15 < zeros / spans < 0.35  # a quarter of the text


def test_repeats_never_come_twice_and_rows_are_a_slice():
    batches = batching.repeats(make_split([190, 30]), batch_size=4, length=48)
    again = batching.repeats(make_split([190, 30]), batch_size=4, length=48)
    other = batching.repeats(make_split([190, 31]), batch_size=4, length=48)
    batch = batches.batch_at(5, 0)
    for name, array in again.batch_at(5, 0, rows=slice(1, 3)).items():
        np.testing.assert_array_equal(array, batch[name][1:3])
    for different in (
        batches.batch_at(6, 0),
        batches.batch_at(5, batches.num_batches),
        other.batch_at(5, 0),
    ):
        assert (different["tokens"] != batch["tokens"]).any(axis=1).all()
    assert len(np.unique(batch["tokens"], axis=0)) == 4


def test_repeats_need_room_and_kinds():
    with pytest.raises(UserError, match=r"another data\.length"):
        batching.repeats(make_split([99]), batch_size=4, length=12)
    few = TokenSplit(np.tile(np.arange(9), 40), np.array([0, 360]), 0, 0)
    with pytest.raises(UserError, match="has 9"):
        batching.repeats(few, batch_size=2, length=48)
    batching.frequent_repeats(few, batch_size=2, length=48).batch_at(0, 0)
    with pytest.raises(UserError, match="too few for one batch"):
        batching.repeats(make_split([40]), batch_size=2, length=48)


def test_batch_must_hold_whole_groups():
    with pytest.raises(UserError, match="multiple"):
        batching.consecutive(
            make_split([99]), batch_size=4, length=5, segments_per_group=3
        )
    with pytest.raises(UserError, match="at least 1"):
        batching.shuffled(make_split([99]), batch_size=4, length=0)
