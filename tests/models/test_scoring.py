"""Rows whose beginnings are computed once, against rows by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.models import scoring
from rlm_jax.models.decoder import Decoder, gpt2, modern

LAST = 5


@pytest.fixture(scope="module")
def rows():
    """12 rows of 80 tokens, some of them shorter; 3 documents begin all but one."""
    random = np.random.default_rng(0)
    draw = lambda *shape: random.integers(0, 40, shape, np.int32)
    tokens, documents = draw(12, 80), draw(3, 40)
    for row in range(11):
        tokens[row, :40] = documents[row % 3]
    return tokens, np.array([80, 77, 80, 79] * 3, np.int32)


@pytest.mark.parametrize("make", [modern, gpt2])
def test_shared_beginnings_give_the_same(monkeypatch, make, rows):
    config = make(
        vocab_size=40, num_layers=2, width=16, num_heads=2, feed_forward_width=24,
        max_length=80,
    )  # fmt: skip
    tokens, lengths = rows
    shapes = jax.eval_shape(
        lambda: Decoder(config).init(jax.random.key(0), tokens, tokens, method="score")
    )["params"]
    random = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: (0.3 * random.normal(size=x.shape)).astype(np.float32), shapes
    )
    shared = scoring.shared_prefixes(tokens, lengths, LAST)
    assert shared is not None
    # 32 tokens of 4 beginnings and no more rows than a whole number of quarters.
    assert shared.prefixes.shape == (6, 32) and len(np.unique(shared.which)) == 4
    monkeypatch.setattr(scoring, "GROUP", 3 * 80)
    alone = scoring.last_log_probs(config)(params, tokens, lengths, LAST)
    found = scoring.shared_log_probs(config)(params, *shared, LAST)
    np.testing.assert_allclose(found, alone, atol=2e-5)
    assert np.ptp(alone) > 0.1


@pytest.mark.parametrize(
    ("group", "expected"), [(0, 1), (80, 1), (5 * 80 + 1, 4), (10_000, 12)]
)
def test_groups_of_rows(monkeypatch, rows, group, expected):
    """As many rows as there may be and as make equal groups; they keep their order."""
    tokens, _ = rows
    monkeypatch.setattr(scoring, "GROUP", group)
    sizes = []

    def features(some):
        sizes.append(len(some))
        return some[..., None] * jnp.arange(1.0, 4.0)

    found = scoring.in_groups(features, tokens)
    assert sizes[0] == expected
    np.testing.assert_array_equal(found, tokens[..., None] * np.arange(1.0, 4.0))


def test_rows_are_put_together_again(rows):
    tokens, lengths = rows
    shared = scoring.shared_prefixes(tokens, lengths, LAST)
    assert shared is not None
    whole = np.concatenate([shared.prefixes[shared.which], shared.rests], axis=1)
    np.testing.assert_array_equal(whole, tokens)
    np.testing.assert_array_equal(shared.lengths + shared.prefixes.shape[1], lengths)


def test_what_is_not_shared_stays_whole(rows):
    tokens, lengths = rows
    different = np.random.default_rng(2).integers(0, 40, tokens.shape, np.int32)
    assert scoring.shared_prefixes(different, lengths, LAST) is None
    # The scored tokens, and one before them, are never in a prefix.
    assert scoring.shared_prefixes(tokens[:, :36], lengths - 44, LAST) is None
