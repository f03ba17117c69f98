"""Controls keep what they should keep and never tell the future."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlm_jax.errors import UserError
from rlm_jax.evaluate import controls
from rlm_jax.method import Neighbours

memories = st.tuples(
    st.integers(1, 60),  # positions of the stream
    st.integers(0, 40),  # size
    st.integers(1, 20),  # segment
    st.integers(0, 5),  # seed
)


def segments(memory, control):
    num_positions, size, segment, seed = memory
    rng = np.random.default_rng(seed)
    for start in range(0, num_positions, segment):
        at = np.arange(start - size, start + segment)
        yield (
            start,
            at,
            *controls.slot_sources(control, at, start, num_positions, rng),
        )


def test_shuffled_values_are_a_permutation():
    values = np.arange(1000) // 10
    shuffled = controls.shuffled_values(values, seed=3)
    np.testing.assert_array_equal(np.sort(shuffled), values)
    assert (shuffled != values).mean() > 0.9
    np.testing.assert_array_equal(shuffled, controls.shuffled_values(values, seed=3))
    assert (shuffled != controls.shuffled_values(values, seed=4)).any()


def test_foreign_positions_are_elsewhere():
    for n in (2, 7, 10):
        moved = controls.foreign_positions(n)
        assert sorted(moved) == list(range(n))
        assert (np.abs(moved - np.arange(n)) >= n // 2).all()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(memories)
def test_real(memory):
    n, *_ = memory
    for _, at, keys, values in segments(memory, controls.REAL):
        present = (at >= 0) & (at < n)
        np.testing.assert_array_equal(keys, np.where(present, at, -1))
        np.testing.assert_array_equal(keys, values)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(memories)
def test_shuffled_never_looks_ahead(memory):
    """A query sees the slots before its own; none brings it its target or later."""
    n, *_ = memory
    for start, at, keys, values in segments(memory, controls.SHUFFLED):
        present = (at >= 0) & (at < n)
        np.testing.assert_array_equal(keys, np.where(present, at, -1))
        assert (values[~present] == -1).all()
        assert (values[present] >= max(0, at[0])).all()
        assert (values[present] <= np.maximum(at[present], start - 1)).all()
        older = present & (at < start)
        np.testing.assert_array_equal(np.sort(values[older]), at[older])


def test_shuffled_shuffles():
    *_, last = segments((400, 200, 50, 0), controls.SHUFFLED)
    _, at, _, values = last
    assert (values != at).mean() > 0.8


@settings(max_examples=200, deadline=None, derandomize=True)
@given(memories)
def test_foreign_never_holds_the_running_segment(memory):
    """Nothing that a query of the segment is, or has as its target."""
    n, size, segment, _ = memory
    for start, at, keys, values in segments(memory, controls.FOREIGN):
        np.testing.assert_array_equal(keys, values)
        present = (at >= 0) & (at < n)
        assert (keys[~present] == -1).all()
        assert not ((keys >= start) & (keys < start + segment)).any()
        if 2 * (size + segment) <= n:  # nothing has to be left out
            np.testing.assert_array_equal(keys[present], (at[present] + n // 2) % n)


def test_an_unknown_control_is_named():
    with pytest.raises(ValueError, match="'none' is not real, shuffled or foreign"):
        controls.slot_sources("none", np.arange(3), 0, 3, None)


def test_one_query_alone_has_no_other():
    alone = Neighbours(np.ones((1, 3), np.float32), np.zeros((1, 3), np.int32))
    with pytest.raises(UserError, match="cannot be given another's"):
        controls.shuffled_neighbours(alone)


@pytest.mark.parametrize("count", [2, 6, 7])
def test_shuffled_neighbours_are_those_of_another_query(count):
    ids = np.arange(count, dtype=np.int32)[:, None]
    shuffled = controls.shuffled_neighbours(Neighbours(ids.astype(np.float32), ids))
    np.testing.assert_array_equal(shuffled.scores, shuffled.ids)
    assert sorted(shuffled.ids[:, 0].tolist()) == list(range(count))
    moved = (ids - shuffled.ids) % count
    assert (moved == count // 2).all()
