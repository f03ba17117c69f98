"""Batches for contrastive training: what a row may hold, and that nothing is lost."""

import numpy as np
import pytest

from rlm_jax.data import contrastive
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.errors import UserError

CLS, SEP, PAD = 1, 2, 0
MARKS = {"cls_id": CLS, "sep_id": SEP, "pad_id": PAD}


def split_of(*sizes):
    """Documents of counting tokens: document d has 1000 d + 10, 1000 d + 11, ..."""
    parts = [1000 * d + 10 + np.arange(n) for d, n in enumerate(sizes)]
    offsets = np.cumsum([0, *sizes])
    return TokenSplit(np.concatenate(parts).astype(np.uint16), offsets, 0, 0)


def crops(split=None, **changes):
    options: dict = {**MARKS, "batch_size": 3, "window": 20} | changes
    return contrastive.crops(split or split_of(45, 90, 3, 20), **options)


def windows_of(batches, seed, epoch, side="query"):
    """(document, window) of every row of an epoch."""
    found = []
    for index in range(batches.num_batches):
        batch = batches.batch_at(seed, epoch * batches.num_batches + index)
        for ids, mask in zip(batch[f"{side}_ids"], batch[f"{side}_mask"], strict=True):
            inner = ids[mask > 0][1:-1]
            places = {(int(x) // 1000, (int(x) % 1000 - 10) // 20) for x in inner}
            assert len(places) == 1
            found.append(places.pop())
    return found


def test_an_epoch_sees_every_window_once():
    """45 = 20 + 20 + 5, where 5 is a quarter; 90 leaves 10; 3 is too short."""
    batches = crops(batch_size=1, crop=(0.5, 0.9), deletion=0.0)
    wanted = [(0, i) for i in range(3)] + [(1, i) for i in range(5)] + [(3, 0)]
    assert batches.num_segments == batches.num_batches == len(wanted)
    epochs = [windows_of(batches, 4, epoch) for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == wanted
    assert epochs[0] != epochs[1]
    assert windows_of(batches, 4, 0, "key") == epochs[0]


def test_crops_are_consecutive_tokens_between_marks():
    batch = crops(deletion=0.0, crop=(0.2, 0.5)).batch_at(0, 0)
    assert set(batch) == {"query_ids", "query_mask", "key_ids", "key_mask", "weight"}
    assert batch["weight"].dtype == np.float32 and batch["weight"].all()
    for side in ("query", "key"):
        ids, mask = batch[f"{side}_ids"], batch[f"{side}_mask"]
        assert ids.shape == mask.shape == (3, 12) and ids.dtype == np.int32
        for row, kept in zip(ids, mask, strict=True):
            size = kept.sum()
            assert kept[:size].all() and (row[size:] == PAD).all()
            assert row[0] == CLS and row[size - 1] == SEP
            assert (np.diff(row[1 : size - 1]) == 1).all()
    assert (batch["query_ids"] != batch["key_ids"]).any()


def test_shares_and_deletion():
    """Sizes are spread over the whole range; a tenth of the tokens is gone."""
    batches = crops(split_of(*[200] * 200), batch_size=200, window=200, crop=(0.1, 0.5))
    batch = batches.batch_at(1, 0)
    ids = np.concatenate([batch["query_ids"], batch["key_ids"]])
    mask = np.concatenate([batch["query_mask"], batch["key_mask"]])
    spans, kept = [], []
    for row, keep in zip(ids, mask, strict=True):
        inner = row[keep > 0][1:-1]
        spans.append(inner[-1] - inner[0] + 1)
        kept.append(len(inner))
    assert min(spans) < 30 and max(spans) > 90 and max(spans) <= 100
    assert 0.87 < sum(kept) / sum(spans) < 0.93


def test_length_cuts_a_crop():
    options = {"deletion": 0.0, "crop": (0.5, 0.5), "length": 5}
    batch = crops(split_of(60), **options).batch_at(0, 0)
    assert batch["query_ids"].shape == (3, 5)
    assert (batch["query_ids"][:, 4] == SEP).all()


@pytest.mark.parametrize("kind", ["crops", "pairs"])
def test_rows_of_a_process_are_those_of_the_whole(kind):
    batches = crops() if kind == "crops" else pairs(batch_size=3)
    for rows in (np.array([2, 0]), slice(1, 3)):
        whole, part = batches.batch_at(5, 1), batches.batch_at(5, 1, rows=rows)
        for name, x in part.items():
            np.testing.assert_array_equal(x, whole[name][rows])
    again = (crops() if kind == "crops" else pairs(batch_size=3)).batch_at(5, 1)
    for name, x in batches.batch_at(5, 1).items():
        np.testing.assert_array_equal(x, again[name])


QUESTIONS = [np.array([CLS, 20 + i, SEP], np.int32) for i in range(7)]
POSITIVES = [np.array([i, (i + 1) % 7]) for i in range(7)]
NEGATIVES = np.array([[10 + i, 20 + i, 30 + i] for i in range(7)], np.int32)
NEGATIVES[3] = [13, -1, -1]


def lookup(numbers):
    """A passage is its number, some words, and its end."""
    return [np.array([CLS, 100 + n, 5, 6, SEP], np.int32) for n in numbers]


def pairs(
    questions=QUESTIONS,
    positives=POSITIVES,
    negatives: np.ndarray | None = NEGATIVES,
    **changes,
):
    options: dict = {"batch_size": 7, "hard_negatives": 2, "question_length": 4}
    options |= {"passage_length": 6, "pad_id": PAD} | changes
    return contrastive.pairs(questions, lookup, positives, negatives, **options)


def test_a_pair_is_a_question_with_its_passages():
    batches = pairs()
    drawn = []
    for step in range(8):  # an epoch each
        batch = batches.batch_at(0, step)
        assert batch["passage_ids"].shape == (7, 3, 6)
        questions = batch["question_ids"][:, 1] - 20
        assert sorted(questions) == list(range(7))
        for row, question in enumerate(questions):
            passage = batch["passage"][row]
            assert passage[0] in POSITIVES[question]
            found = NEGATIVES[question][NEGATIVES[question] >= 0]
            assert set(passage[1:]) <= {*found, -1}
            assert len(set(passage[1:])) == 2 and (passage[1:] < 0).sum() == (
                1 if question == 3 else 0
            )
            texts = np.where(passage < 0, passage[0], passage)
            np.testing.assert_array_equal(batch["passage_ids"][row, :, 1], texts + 100)
            assert (batch["passage_mask"][row].sum(-1) == 5).all()
            drawn.append((question, *passage))
    # Another positive and other negatives from epoch to epoch.
    assert len({x for x in drawn if x[0] == 0}) > 3
    assert {x[1] for x in drawn if x[0] == 0} == {0, 1}


def test_known_positives_are_those_in_the_batch():
    batch = pairs().batch_at(0, 0)
    for row, question in enumerate(batch["question_ids"][:, 1] - 20):
        own = batch["passage"][row, 0]
        others = set(POSITIVES[question]) & set(batch["passage"].ravel()) - {own}
        known = batch["known"][row]
        assert known.shape == (8,) and set(known) - {-1} == others
    assert (batch["known"] >= 0).any() and (batch["known"] < 0).any()
    many = [np.arange(7)] * 7
    known = pairs(positives=many, known=2).batch_at(0, 0)["known"]
    assert known.shape == (7, 2)


def test_long_texts_keep_their_end():
    batch = pairs(passage_length=4, hard_negatives=0, negatives=None).batch_at(0, 0)
    assert batch["passage"].shape == (7, 1)
    np.testing.assert_array_equal(batch["passage_ids"][:, 0, [0, 3]], [[CLS, SEP]] * 7)
    assert (batch["passage_ids"][:, 0, 2] == 5).all()


BAD_CROPS = {
    "empty": ({"crop": (0.0, 0.5)}, "shares above 0"),
    "all_deleted": ({"deletion": 1.0}, "deletion below 1"),
    "short": ({"length": 2}, "length of 3"),
    "few": ({"batch_size": 100}, "9 windows of text"),
}
BAD_PAIRS = {
    "unmined": ({"negatives": None}, "none were mined"),
    "uneven": ({"positives": POSITIVES[:3]}, "3 lists"),
    "unanswered": ({"positives": [*POSITIVES[:6], []]}, "Question 6"),
    "few": ({"batch_size": 8}, "7 questions"),
    "short": ({"question_length": 2}, "length of 3"),
}


@pytest.mark.parametrize("case", BAD_CROPS)
def test_bad_crops(case):
    change, says = BAD_CROPS[case]
    with pytest.raises(UserError, match=says):
        crops(**change)


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_bad_pairs(case):
    change, says = BAD_PAIRS[case]
    with pytest.raises(UserError, match=says):
        pairs(**change)
