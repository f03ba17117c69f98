"""What documents' controls show the language model."""

import types
from typing import Any

import numpy as np
import pytest

from rlm_jax.evaluate import in_context
from rlm_jax.method import Neighbours
from rlm_jax.recipes import inspection
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


def test_the_inspector_shows_what_made_the_probability():
    """The seventh document was chosen: it is shown, first, and the others weigh 0."""
    tokens = np.arange(40, dtype=np.int32)
    at = in_context.strides(40, window=16, stride=8, query_length=4)
    count = len(at.end)
    ids = np.tile(np.arange(10, 18), (count, 1))
    ids[0] = -1
    found = Neighbours(np.linspace(8, 1, 8) * np.ones((count, 1)), ids)
    weights = np.zeros((count, 8))
    weights[:, 6] = 1
    text: Any = types.SimpleNamespace(
        tokenizer=types.SimpleNamespace(kind="bpe", decode=str)
    )
    shelf: Any = types.SimpleNamespace(
        tokens=lambda row: np.array([row]),
        passages={i: types.SimpleNamespace(id=str(i)) for i in range(10, 18)},
    )
    gains = np.random.default_rng(0).normal(size=39)
    log_probs = {"real": gains - 3, "off": np.full(39, -3.0)}
    part = documents.Part(tokens, at, (1, 1))
    positions = inspection.of_documents(text, part, found, log_probs, weights, shelf)
    with_documents = [x for x in positions if x.neighbours]
    assert with_documents
    for position in with_documents:
        sources = [x.source for x in position.neighbours]
        assert sources == ["16", "10", "11", "12", "13", "14"]
        assert [x.weight for x in position.neighbours] == [1, 0, 0, 0, 0, 0]
