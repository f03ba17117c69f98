"""Which phrases are masked, and that batches are pure functions of seed and step."""

from typing import Any

import numpy as np
import pytest

from rlm_jax.data import phrase_masking, text_encoding
from rlm_jax.data.cloze_tokens import ClozeTokenizer
from rlm_jax.data.phrase_masking import MaskingConfig, PhraseMasking
from rlm_jax.errors import UserError

TEXTS = ["the cat sat on the mat .", "a dog ran to the red house , so it goes ."]


@pytest.fixture(scope="module")
def tokenizer() -> ClozeTokenizer:
    return ClozeTokenizer(text_encoding.train(TEXTS * 3, vocab_size=100))


@pytest.fixture(scope="module")
def masking(tokenizer) -> PhraseMasking:
    return masked(tokenizer)


def masked(tokenizer, batch_size=8, **changes: Any):
    """Three documents of sentences in any order."""
    rng = np.random.default_rng(0)
    words = [tokenizer.text.encode([t], max_length=64)[0][1:-1] for t in TEXTS]
    lengths = (400, 300, 500)
    documents = [
        np.concatenate([words[i] for i in rng.integers(0, 2, 60)])[:n] for n in lengths
    ]
    tokens = np.concatenate(documents).astype(np.uint16)
    sizes: dict[str, Any] = {"length": 22, "sequences_per_run": 4}
    config = MaskingConfig(**sizes | changes)
    return PhraseMasking(
        tokens, np.cumsum([0, *lengths]), tokenizer, config, batch_size=batch_size
    )


def holds(text, phrase):
    windows = np.lib.stride_tricks.sliding_window_view(text, len(phrase))
    return (windows == phrase).all(1).any()


def test_every_phrase_is_whole_words_of_another_sequence(masking, tokenizer):
    masked_tokens = sizes = total = 0
    for step in range(masking.num_batches):
        texts, spans = masking.drawn(3, step)
        assert len(texts) == 8
        for row, (text, own) in enumerate(zip(texts, spans, strict=True)):
            end = 0
            for start, size in own:
                assert start >= end and 1 <= size <= 10
                end = start + size
                phrase = text[start:end]
                assert any(
                    holds(other, phrase) for i, other in enumerate(texts)
                    if i != row and len(other) >= size
                )  # fmt: skip
                assert not tokenizer.inside[phrase[0]]
                assert end == len(text) or not tokenizer.inside[text[end]]
                masked_tokens, sizes = masked_tokens + size, max(sizes, size)
            total += len(text)
            assert sum(size for _, size in own) <= round(0.15 * len(text))
    assert masked_tokens > 0.1 * total and sizes > 1


def test_what_is_shared_by_brute_force(tokenizer):
    rng = np.random.default_rng(1)
    texts = [rng.integers(5, 40, n).astype(np.int32) for n in (30, 18, 25)]
    allowed, grams = phrase_masking.shared_phrases(texts, tokenizer, 3)
    assert allowed.any()
    for size in (1, 2, 3):
        seen: dict[int, tuple] = {}
        for row, text in enumerate(texts):
            for start in range(len(text)):
                phrase = text[start : start + size]
                whole = len(phrase) == size and not tokenizer.special[phrase].any()
                elsewhere = whole and any(
                    holds(other, phrase) for i, other in enumerate(texts) if i != row
                )
                following = text[start + size : start + size + 1]
                words = not tokenizer.inside[phrase[:1]].any()
                words &= not tokenizer.inside[following].any()
                assert allowed[size - 1, row, start] == (elsewhere and words)
                if elsewhere:
                    number = int(grams[size - 1, row, start])
                    assert seen.setdefault(number, tuple(phrase)) == tuple(phrase)
        assert len(set(seen.values())) == len(seen)


def test_a_batch_holds_each_sequence_twice(masking, tokenizer):
    batch = masking.batches("phrase").batch_at(0, 1)
    texts, spans = masking.drawn(0, 1)
    marks = tokenizer.text
    assert batch["span_mask"].sum() > 8
    for row, text in enumerate(texts):
        ids = batch["ids"][row][batch["mask"][row] > 0]
        np.testing.assert_array_equal(ids, [marks.cls_id, *text, marks.sep_id])
        again, masked = [], batch["masked_ids"][row][batch["masked_mask"][row] > 0]
        kept = int(batch["span_mask"][row].sum())
        end = 0
        for place in range(kept):
            at = batch["at"][row, place]
            assert (masked[at : at + 2] == marks.mask_id).all()
            phrase = batch["spans"][row, place]
            again += [*masked[end:at], *phrase[phrase >= 0]]
            end = at + 2
        assert (masked == marks.mask_id).sum() == 2 * kept
        again += list(masked[end:])
        if len(masked) < 22:  # none was cut
            assert kept == len(spans[row])
            np.testing.assert_array_equal(again, ids)
        else:
            np.testing.assert_array_equal(again[:-1], ids[: len(again) - 1])


def test_a_masked_language_model_learns_the_same_phrases(masking, tokenizer):
    texts, spans = masking.drawn(0, 2)
    batch = masking.batches("each").batch_at(0, 2)
    for row, (text, own) in enumerate(zip(texts, spans, strict=True)):
        kept = batch["target_mask"][row] > 0
        at, targets = batch["at"][row][kept], batch["targets"][row][kept]
        assert list(at) == [1 + s + i for s, n in own for i in range(n)]
        np.testing.assert_array_equal(targets, text[at - 1])
        assert (batch["ids"][row][at] == tokenizer.text.mask_id).all()
        back = batch["ids"][row].copy()
        back[at] = targets
        np.testing.assert_array_equal(back[1 : 1 + len(text)], text)


def test_single_tokens_have_one_mask(masking, tokenizer):
    batch = masking.batches("token").batch_at(0, 0)
    assert batch["spans"].shape[-1] == 1
    count = (batch["masked_ids"] == tokenizer.text.mask_id).sum()
    assert count == batch["span_mask"].sum() > 8
    assert (batch["masked_ids"] != batch["ids"]).sum() == count


def test_batches_are_pure_and_processes_take_their_rows(masking, tokenizer):
    first, again = (masked(tokenizer).batches("phrase") for _ in range(2))
    for seed, step in ((0, 0), (1, 5)):
        a, b = first.batch_at(seed, step), again.batch_at(seed, step)
        some = again.batch_at(seed, step, rows=slice(2, 5))
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
            np.testing.assert_array_equal(a[name][2:5], some[name])
    later = first.batch_at(0, first.num_batches)  # the next epoch
    assert (later["masked_ids"] != first.batch_at(0, 0)["masked_ids"]).any()


def test_an_epoch_sees_runs_of_a_document_or_anything(tokenizer):
    def runs(**changes):
        masking = masked(tokenizer, **changes)
        order = masking._order(0, 0)
        assert len(np.unique(order)) == len(order)
        return np.diff(order.reshape(-1, 4), axis=1)

    assert (runs() == 1).all()
    assert (runs(order="shuffled") != 1).any()


def test_shares_tell_what_is_masked(masking):
    shares = masking.shares()
    assert 0.1 < shares["masked"] <= 0.16
    assert 0.5 < shares["with_positive"] <= 1


def test_documents_are_runs_of_one_title():
    found = phrase_masking.documents(iter("aabbba"), np.arange(7) * 10)
    assert found.tolist() == [0, 20, 50, 60]


@pytest.mark.parametrize(
    ("batch_size", "changes", "says"),
    [
        (8, {"share": 0.0}, "share"),
        (8, {"order": "similar"}, "same_document, shuffled"),
        (6, {}, "runs of 4"),
        (400, {}, "too few"),
    ],
)
def test_bad_input(tokenizer, batch_size, changes, says):
    with pytest.raises(UserError, match=says):
        masked(tokenizer, batch_size, **changes)


def test_punctuation_alone_is_masked_seldom(tokenizer):
    def share(punctuation):
        masking = masked(tokenizer, punctuation=punctuation, most_times=1000)
        alone = count = 0
        for step in range(masking.num_batches):
            for text, own in zip(*masking.drawn(0, step), strict=True):
                for start, size in own:
                    phrase = text[start : start + size]
                    alone += tokenizer.punctuation[phrase].all()
                    count += 1
        return alone / count

    assert share(0.0) == 0 < share(0.1) < 0.5 * share(1.0)
