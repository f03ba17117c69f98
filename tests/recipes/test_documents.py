"""What documents' controls show the language model."""

import types

import numpy as np
import pytest

from rlm_jax.recipes.with_passages import documents


@pytest.mark.parametrize(("length", "holds"), [(12, 8), (8, 8), (5, 5)])
@pytest.mark.parametrize("placement", ["overwrite", "prepend"])
def test_the_answer_is_the_stride_itself(placement, length, holds):
    """Every token is another, so what stands twice in a row was given as document."""
    config = documents.Experiment()
    config.evaluate.window, config.evaluate.stride = 40, 8
    config.documents.reuse = 1
    config.documents.length, config.documents.placement = length, placement
    config.documents.rank_tokens, config.documents.query_length = 8, 4
    tokens = np.arange(1, 102, dtype=np.int32)
    seen = []

    def log_probs(rows, lengths, last):
        for row, end in zip(rows, lengths, strict=True):
            stride, before = row[end - 8 : end], row[: end - 8]
            seen.append(np.isin(stride, before).tolist())
        return np.zeros((len(rows), last), np.float32)

    text = types.SimpleNamespace(store=None)
    split = types.SimpleNamespace(tokens=tokens, num_bytes=101, num_words=101)
    text.store = types.SimpleNamespace(split=lambda name: split)
    part = documents.part(config, text, "test", 0)  # type: ignore
    model = types.SimpleNamespace(log_probs=log_probs)
    documents.answered(config, model, part)  # type: ignore
    expected = [True] * holds + [False] * (8 - holds)
    strides = len(part.at.end) - 1
    assert seen.count(expected) >= strides - 1 > 5  # the last one may be short
