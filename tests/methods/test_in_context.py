"""In-context RALM's ways to choose a document, against loops."""

import numpy as np
import pytest

from rlm_jax.methods import in_context

STRIDES, DOCUMENTS, BEFORE, STRIDE = 9, 4, 3, 5


@pytest.fixture
def values():
    """log p under each document; some are absent, and the last stride is short."""
    random = np.random.default_rng(0)
    shape = STRIDES, DOCUMENTS, BEFORE + STRIDE
    values = np.log(random.random(shape)).astype(np.float32)
    values[0] = values[2, 1:] = values[3, 0] = np.nan
    values[-1, :, : BEFORE + 2] = np.nan
    return values


def present(values, stride):
    return [k for k in range(DOCUMENTS) if np.isfinite(values[stride, k, -1])]


def total(values, stride, document, start, stop):
    """Summed log p of some tokens, those that there are."""
    part = values[stride, document, start:stop].astype(np.float64)
    return sum(x for x in part if np.isfinite(x))


@pytest.mark.parametrize(
    ("choose", "start", "stop"),
    [
        (in_context.reranked, 0, BEFORE),
        (in_context.oracle, BEFORE, BEFORE + STRIDE),
    ],
    ids=["reranked", "oracle"],
)
def test_the_likeliest_document(values, choose, start, stop):
    chosen = choose(values, BEFORE)
    assert chosen.shape == (STRIDES, STRIDE)
    picks = set()
    for i in range(1, STRIDES):
        best = max(present(values, i), key=lambda k: total(values, i, k, start, stop))
        np.testing.assert_array_equal(chosen[i], values[i, best, BEFORE:])
        picks.add(best)
    assert np.isnan(chosen[0]).all() and len(picks) > 1


def test_the_first_document(values):
    np.testing.assert_array_equal(
        in_context.first(values, BEFORE), values[:, 0, BEFORE:]
    )


def test_scores_choose_among_those_present(values):
    scores = np.tile(np.arange(DOCUMENTS, dtype=np.float32), (STRIDES, 1))
    wanted = [max(present(values, i), default=0) for i in range(STRIDES)]
    assert wanted[2] == 0 and wanted[4] == DOCUMENTS - 1
    np.testing.assert_array_equal(in_context.best(values, scores), wanted)
    np.testing.assert_array_equal(
        in_context.ranked_by(values, scores, BEFORE),
        values[np.arange(STRIDES), wanted, BEFORE:],
    )


def test_likelihoods_are_sums_of_what_there_is(values):
    for got, start, stop in (
        (in_context.likelihood_before(values, BEFORE), 0, BEFORE),
        (in_context.likelihood(values, BEFORE), BEFORE, BEFORE + STRIDE),
    ):
        assert got.dtype == np.float32
        for i, k in np.ndindex(STRIDES, DOCUMENTS):
            if k in present(values, i):
                wanted = total(values, i, k, start, stop)
                assert got[i, k] == pytest.approx(wanted, rel=1e-6)
            else:
                assert np.isneginf(got[i, k])


@pytest.mark.parametrize(
    ("placement", "wanted"),
    [("overwrite", [7, 8, 3, 4, 5]), ("prepend", [7, 8, 1, 2, 3, 4, 5])],
)
def test_what_the_language_model_reads(placement, wanted):
    document, window = np.array([7, 8]), np.array([1, 2, 3, 4, 5])
    got = in_context.with_document(document, window, placement)
    np.testing.assert_array_equal(got, wanted)
    none = in_context.with_document(document[:0], window, placement)
    np.testing.assert_array_equal(none, window)
