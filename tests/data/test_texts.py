"""A corpus in tokens: its batches in each order, and the size of its beginning."""

import types
from typing import Any

import numpy as np
import pytest

from rlm_jax.data import texts, tokenizers
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.errors import UserError


def test_repeated_tokens_are_distinct_or_as_frequent_as_in_the_text():
    split = TokenSplit(
        np.arange(640) % 20 // 9, np.array([0, 640]), 0, 0
    )  # three kinds
    config = texts.DataConfig(batch_size=4, length=32, order="repeats")
    with pytest.raises(UserError, match="has 3"):
        texts.batches(config, split)
    config.order = "frequent_repeats"
    row = texts.batches(config, split).batch_at(0, 0)["tokens"][0]
    assert 1 < len(np.unique(row)) <= 3


def test_an_unknown_order_is_named():
    split = TokenSplit(np.zeros(640, np.int32), np.array([0, 640]), 0, 0)
    with pytest.raises(UserError, match="data.order is 'upwards'; choose one of"):
        texts.batches(texts.DataConfig(order="upwards"), split)  # type: ignore


def in_bytes(text: str) -> texts.Text:
    tokenizer = tokenizers.build("bytes", Any, vocab_size=0)  # type: ignore
    tokens = tokenizer.encode(text)
    split = TokenSplit(
        tokens, np.array([0, len(tokens)]), len(text.encode()), len(text.split())
    )
    store: Any = types.SimpleNamespace(split=lambda name: split)
    return texts.Text(tokenizer, store)


def test_the_beginning_of_a_split_has_its_own_size():
    text = in_bytes("four words and more of them")
    tokens, size = texts.head(text, "test", 14)
    assert len(tokens) == 14 and size == (14, 3)  # "four words and"
    tokens, size = texts.head(text, "test", 0)
    assert size == (27, 6) and len(tokens) == 27


def test_what_decoding_loses_counts_in_proportion():
    """Tokens that decode to half of the text's bytes stand for all of them."""
    text = in_bytes("ab cd ef gh ij")
    split = text.store.split("test")
    split = TokenSplit(split.tokens, split.document_offsets, 2 * 14, 5)
    store: Any = types.SimpleNamespace(split=lambda name: split)
    assert texts.head(text._replace(store=store), "test", 7)[1] == (14, 3)
