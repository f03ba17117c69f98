"""Documents in rows and windows: every target once, chunks by their numbers."""

import numpy as np
import pytest

from rlm_jax.data import document_rows
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.errors import UserError

M, WINDOW = 2, 4
LENGTHS = (9, 3, 22, 4)


@pytest.fixture
def split():
    total = sum(LENGTHS)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    names = tuple("abcd")
    return TokenSplit(np.arange(100, 100 + total), offsets, total, total, names)


def known(numbers):
    return {"number": numbers[..., None].astype(np.int32)}


def long_ones(split, **changes):
    return document_rows.documents(split, M, window=WINDOW, shortest=4, **changes)


def test_which_documents_and_chunks(split):
    given = long_ones(split)
    assert [len(given.tokens(d)) for d in range(len(given))] == [9, 22, 4]
    np.testing.assert_array_equal(given.first_chunks, [0, 4, 15, 17])
    assert given.of_chunk(3) == (0, 3) and given.of_chunk(4) == (1, 0)
    assert len(long_ones(split, longest=7).tokens(1)) == 7
    cut = long_ones(split, max_tokens=14)
    assert [len(cut.tokens(d)) for d in range(len(cut))] == [9, 5]
    # A rest that is no window is left out.
    assert len(long_ones(split, max_tokens=12)) == 1


def test_what_is_too_short_is_refused(split):
    with pytest.raises(UserError, match="document b has 3 tokens, fewer than a window"):
        document_rows.documents(split, M, window=WINDOW)
    with pytest.raises(UserError, match="No document has 50 tokens"):
        document_rows.documents(split, M, window=WINDOW, shortest=50)
    with pytest.raises(UserError, match="8 rows of 4 tokens, fewer than a batch"):
        document_rows.rows(long_ones(split), known, batch_size=90, length=4)
    with pytest.raises(UserError, match="do not consist of chunks of 2"):
        document_rows.rows(long_ones(split), known, batch_size=1, length=5)


def test_rows_of_an_epoch_are_each_document_once(split):
    given = long_ones(split)
    batches = document_rows.rows(given, known, batch_size=2, length=8)
    assert batches.num_batches == batches.num_segments // 2
    seen = []
    for step in range(batches.num_batches):
        batch = batches.batch_at(5, step)
        np.testing.assert_array_equal(batch["step"], [step, step])
        for tokens, targets, mask, numbers in zip(
            batch["tokens"], batch["targets"], batch["mask"], batch["number"],
            strict=True,
        ):  # fmt: skip
            assert (targets[mask > 0] == tokens[mask > 0] + 1).all()
            assert (targets[mask == 0] == 0).all()
            seen += list(targets[mask > 0])
            for chunk, number in enumerate(numbers[:, 0]):
                part = tokens[chunk * M : (chunk + 1) * M]
                if number >= 0:
                    document, own = given.of_chunk(int(number))
                    begin = own * M
                    wanted = given.tokens(document)[begin : begin + M]
                    np.testing.assert_array_equal(part, wanted)
    assert len(seen) == len(set(seen))
    part = batches.batch_at(5, 0, rows=np.array([1]))
    whole = batches.batch_at(5, 0)
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][1:])


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_windows_read_every_target_once(split, batch_size):
    given = long_ones(split)
    seen, chunks, steps = [], [], 0
    for step in document_rows.windows(given, batch_size=batch_size, window=WINDOW):
        keep = step.batch["mask"] > 0
        assert step.batch["tokens"].shape == (batch_size, WINDOW)
        seen += list(step.batch["targets"][keep])
        chunks += list(step.numbers[step.numbers >= 0])
        steps += 1
    wanted = [x for d in range(len(given)) for x in given.tokens(d)[1:]]
    assert sorted(seen) == sorted(wanted)
    assert len(chunks) == len(set(chunks))
    assert steps == document_rows.num_steps(given, batch_size=batch_size, window=WINDOW)
