"""Pairs of questions and passages, and their scores."""

import types
from typing import Any

import jax
import numpy as np

from rlm_jax.data.passages import Passage
from rlm_jax.data.text_encoding import train
from rlm_jax.method import Neighbours
from rlm_jax.models.encoder import EncoderConfig, embedder
from rlm_jax.retrievers import cross_encoder, dense
from rlm_jax.retrievers.encoder_towers import Tower, fitted_to

PASSAGES: Any = [Passage(str(i), "Title", f"passage {i} of five") for i in range(5)]
QUESTIONS = ["which one ?", "of five ?"]


def test_every_question_meets_its_passages_in_order():
    calls = []

    def encode(texts, others, *, max_length):
        calls.append((texts, others, max_length))
        return [np.zeros(1, np.int32)] * len(texts)

    tower: Any = types.SimpleNamespace(tokenizer=types.SimpleNamespace(encode=encode))
    ids = np.array([[3, 1], [4, -1]])
    rows = cross_encoder.pairs(tower, QUESTIONS, PASSAGES, ids, 12)
    assert len(rows) == 4
    ((texts, others, length),) = calls
    assert texts == [QUESTIONS[0]] * 2 + [QUESTIONS[1]] * 2 and length == 12
    assert others == [PASSAGES[i].joined for i in (3, 1, 4, 0)]


def test_scores_are_the_encoders_of_each_pair_alone():
    tokenizer = train((x.joined for x in PASSAGES), vocab_size=120)
    config = fitted_to(
        EncoderConfig(
            num_layers=1, width=16, num_heads=2, feed_forward_width=24, max_length=32
        ),
        tokenizer,
        pooling="cls",
        projection=1,
        normalise=False,
    )
    assert (config.pooling, config.pad_id) == ("cls", tokenizer.pad_id)
    model = embedder(config)
    params = jax.device_get(model.init(jax.random.key(0)))
    neighbours = Neighbours(
        np.zeros((2, 2), np.float32), np.array([[3, 1], [4, -1]], np.int32)
    )
    search = dense.SearchConfig(batch_tokens=64)
    tower = Tower(config, params, tokenizer)
    scores = cross_encoder.scores(tower, QUESTIONS, PASSAGES, neighbours, search, 20)
    assert scores.shape == (2, 2) and np.isneginf(scores[1, 1])
    for (row, k), passage in {(0, 0): 3, (0, 1): 1, (1, 0): 4}.items():
        (ids,) = tokenizer.encode(
            [QUESTIONS[row]], [PASSAGES[passage].joined], max_length=20
        )
        batch = {"ids": ids[None], "mask": np.ones_like(ids)[None]}
        alone = np.asarray(model.embed(params, batch))
        np.testing.assert_allclose(scores[row, k], alone[0, 0], rtol=1e-4, atol=1e-5)
