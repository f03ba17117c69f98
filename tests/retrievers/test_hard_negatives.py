"""Hard negatives: by words, by the file's own, by a model; kept once."""

import jax
import numpy as np
import pytest

from rlm_jax.data.passages import Passage
from rlm_jax.data.questions import Answerable, Pairs
from rlm_jax.data.text_encoding import train
from rlm_jax.errors import UserError
from rlm_jax.models.encoder import EncoderConfig, embedder
from rlm_jax.retrievers import dense, hard_negatives
from rlm_jax.retrievers.encoder_towers import TextConfig, Tower, Towers, fitted_to

POOL = [
    Passage("0", "", "the river runs to the sea"),
    Passage("1", "", "the river bank"),
    Passage("2", "", "the answer is blue , says the river"),
    Passage("3", "", "a stone"),
]


def asked(negatives=((), ())) -> Answerable:
    rows = tuple(np.array(x, np.int32) for x in negatives)
    positives = tuple(np.array([i], np.int32) for i in (0, 3))
    return Answerable(
        ["which river ?", "stone or river ?"],
        [("blue",), ()],
        Pairs(POOL, positives, rows, 0),
        0,
        "toy",
    )


def holds(text, answers):
    return any(answer in text for answer in answers)


def test_words_find_what_neither_answers_nor_is_known_to():
    negatives = hard_negatives.by_words(asked(), 3, holds)
    assert negatives.shape == (2, 3)
    # 0 answers the first question, and 2 holds its answer.
    assert negatives[0].tolist() == [1, -1, -1]
    assert set(negatives[1].tolist()) == {0, 1, 2}


def test_the_files_own_negatives_are_taken():
    negatives = hard_negatives.by_words(asked(((3, 1, 2), ())), 2, holds)
    assert negatives.tolist() == [[3, 1], [-1, -1]]


def test_a_model_finds_its_nearest(tmp_path):
    tokenizer = train((x.text for x in POOL), vocab_size=120)
    config = fitted_to(
        EncoderConfig(
            num_layers=1, width=16, num_heads=2, feed_forward_width=24, max_length=16
        ),
        tokenizer,
    )
    assert config.vocab_size == tokenizer.vocab_size
    params = jax.device_get(embedder(config).init(jax.random.key(0)))
    tower = Tower(config, params, tokenizer)
    text, search = TextConfig(), dense.SearchConfig(batch_tokens=64)
    negatives = hard_negatives.by_model(
        asked(), 2, holds, Towers(tower, tower), text, search, tmp_path / "v"
    )
    vectors = tower.encode([x.text for x in POOL])
    queries = tower.encode(asked().texts)
    for row, query, out in zip(negatives, queries, ({0, 2}, {3}), strict=True):
        order = np.argsort(-(vectors @ query), kind="stable")
        assert row.tolist() == [i for i in order if i not in out][:2]


def test_what_was_mined_is_kept_and_belongs_to_its_model(tmp_path):
    mined = np.array([[1, 2]], np.int32)

    def again():
        raise AssertionError("it was mined before")

    folder = tmp_path / "negatives"
    first = hard_negatives.found_once(folder, {"model": "a"}, lambda: mined)
    second = hard_negatives.found_once(folder, {"model": "a"}, again)
    np.testing.assert_array_equal(first, second)
    with pytest.raises(UserError, match="model"):
        hard_negatives.found_once(folder, {"model": "b"}, again)
