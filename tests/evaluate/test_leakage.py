"""What a chunk has in common with its neighbours, and the curve over it."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.evaluate import leakage, perplexity
from rlm_jax.retrieval import chunk_database

M = 8


def loop(chunk, other):
    """The longest common substring by trying every pair of places."""
    longest = 0
    for i in range(len(chunk)):
        for j in range(len(other)):
            n = 0
            while (
                i + n < len(chunk)
                and j + n < len(other)
                and chunk[i + n] == other[j + n]
            ):
                n += 1
            longest = max(longest, n)
    return longest


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 2**31), vocabulary=st.integers(1, 6), masked=st.booleans()
)
def test_longest_common_substring_is_that_of_a_loop(seed, vocabulary, masked):
    random = np.random.default_rng(seed)
    chunks = random.integers(0, vocabulary, (3, 2, 7))
    others = random.integers(0, vocabulary, (3, 2, 15))
    mask = random.random(others.shape) > (0.2 if masked else -1)
    found = leakage.longest_common_substring(chunks, others, mask)
    assert found.shape == (3, 2)
    for at in np.ndindex(3, 2):
        # What is masked equals nothing.
        other = [
            x if keep else None for x, keep in zip(others[at], mask[at], strict=True)
        ]
        assert found[at] == loop(chunks[at].tolist(), other)


def make_chunks(tokens, ends=()):
    offsets = np.array([0, *ends, len(tokens)])
    return chunk_database.chunk_stream(np.asarray(tokens), offsets, M)


def test_leaked_shares():
    database = make_chunks(np.arange(64))
    text = [
        *range(16, 24),  # a whole chunk, of neighbour 2
        *range(20, 28),  # in neighbour 2's continuation
        *range(100, 104), *range(3, 7),  # half of it, in neighbour 0
        *range(60, 64), *range(0, 4),  # not over a stream's end
        *range(200, 208),  # nothing
        5, 6, 7,  # short, and whole
    ]  # fmt: skip
    chunks = make_chunks(text)
    ids = np.array([[1, 2], [2, -1], [3, 0], [7, 0], [1, 1], [0, -1]], np.int32)
    advanced = []
    found = leakage.leaked_shares(chunks, ids, database.values, advance=advanced.append)
    np.testing.assert_array_equal(found, [1, 1, 0.5, 0.5, 0, 1])
    assert sum(advanced) == len(chunks)
    none = leakage.leaked_shares(chunks, np.full_like(ids, -1), database.values)
    np.testing.assert_array_equal(none, 0)


def test_blocks_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    database = make_chunks(random.integers(0, 3, 400), [130, 290])
    chunks = make_chunks(random.integers(0, 3, 301))
    ids = random.integers(-1, len(database), (len(chunks), 3)).astype(np.int32)
    whole = leakage.leaked_shares(chunks, ids, database.values)
    monkeypatch.setattr(leakage, "_BLOCK_BYTES", 2000)
    parts = leakage.leaked_shares(chunks, ids, database.values)
    np.testing.assert_array_equal(whole, parts)
    assert 0 < whole.min() < whole.max() <= 1


@pytest.mark.parametrize("num_tokens", [2, 8, 9, 41])
def test_chunk_nll_holds_every_token_once(num_tokens):
    log_probs = -np.random.default_rng(0).random(num_tokens - 1)
    found = leakage.chunk_nll(log_probs, M)
    assert len(found) == -(-num_tokens // M)
    costs = [0, *-log_probs]
    wanted = [sum(costs[i : i + M]) for i in range(0, num_tokens, M)]
    np.testing.assert_allclose(found, wanted)


def test_chunk_bytes_add_up_to_the_text():
    text = "naïve café, größer, 数 " * 9
    chunks = make_chunks(np.frombuffer(text.encode(), np.uint8))

    def decode(tokens):
        return bytes(tokens.astype(np.uint8)).decode(errors="replace")

    total = len(text.encode())
    found = leakage.chunk_bytes(chunks, decode, total)
    assert len(found) == len(chunks)
    np.testing.assert_allclose(found.sum(), total)
    assert abs(found[:-1] - M).max() < 4  # a cut character is three bytes, replaced
    with pytest.raises(UserError, match="no text"):
        leakage.chunk_bytes(chunks, lambda tokens: "", total)


def test_curve():
    shares = np.array([0, 0.125, 0.5, 1])
    nll = {"retro": np.array([1.0, 2, 3, 4]), "lm": np.array([2.0, 2, 5, 9])}
    num_bytes = np.array([10.0, 20, 30, 40])
    found = leakage.curve(shares, nll, num_bytes, alphas=[0, 0.125, 0.4, 0.5, 1])
    assert found.alphas == [0, 0.125, 0.4, 0.5, 1]
    assert found.num_chunks == [1, 2, 2, 3, 4]
    bits = np.log(2)
    np.testing.assert_allclose(
        np.array(found.bits_per_byte["retro"]) * bits,
        [1 / 10, 3 / 30, 3 / 30, 6 / 60, 10 / 100],
    )
    np.testing.assert_allclose(
        np.array(found.bits_per_byte["lm"]) * bits,
        [2 / 10, 4 / 30, 4 / 30, 9 / 60, 18 / 100],
    )


def test_at_100_percent_the_curve_is_the_plain_figure():
    random = np.random.default_rng(0)
    tokens = random.integers(97, 123, 203)
    chunks, database = make_chunks(tokens), make_chunks(random.integers(97, 123, 99))
    ids = random.integers(0, len(database), (len(chunks), 2)).astype(np.int32)
    log_probs = np.log(random.random(202)).astype(np.float32)
    found = leakage.text_curve(
        chunks,
        lambda t: bytes(t.astype(np.uint8)).decode(),
        230,
        leakage.leaked_shares(chunks, ids, database.values),
        {"lm": log_probs},
    )
    plain = perplexity.text_metrics(log_probs, num_words=40, num_bytes=230)
    assert found.alphas[-1] == 1 and found.num_chunks[-1] == len(chunks)
    assert found.alphas == [i / 8 for i in range(9 - len(found.alphas), 9)]
    np.testing.assert_allclose(
        found.bits_per_byte["lm"][-1], plain["bits_per_byte"], rtol=1e-12
    )


def test_alphas_without_chunks_are_left_out():
    found = leakage.curve(np.array([0.6, 1]), {"lm": np.ones(2)}, np.ones(2))
    assert found.alphas == [0.625, 0.75, 0.875, 1]
    assert found.num_chunks == [1, 1, 1, 2]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: leakage.curve(np.ones(2), {"lm": np.ones(3)}, np.ones(2)),
            r"\[2, 3\]",
        ),
        (
            lambda: leakage.curve(np.ones(2), {}, np.ones(2), alphas=[0.5]),
            "alpha of 1",
        ),
        (
            lambda: leakage.leaked_shares(
                make_chunks(range(9)),
                np.zeros((1, 2), np.int32),
                lambda ids: (ids, ids),
            ),
            "2 chunks",
        ),
    ],
    ids=["sizes", "none", "ids"],
)
def test_bad_input(call, says):
    with pytest.raises(UserError, match=says):
        call()
