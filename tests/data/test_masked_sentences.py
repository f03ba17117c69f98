"""Masked sentences, alone and beside documents."""

import numpy as np
import pytest

from rlm_jax.data import masked_sentences, salient_spans, text_encoding
from rlm_jax.data.passages import Passage
from rlm_jax.errors import UserError

TEXT = "It rained . Paris lies on the river Seine . Nobody was there in 1924 ."
RULES = (salient_spans.dates, salient_spans.names(salient_spans.casing([TEXT.lower()])))


@pytest.fixture(scope="module")
def tokenizer():
    return text_encoding.train([TEXT] * 3, vocab_size=120)


def draws(tokenizer, text=TEXT, number=30, **options):
    options = {"length": 24, **options}
    for seed in range(number):
        rng = np.random.default_rng(seed)
        yield masked_sentences.draw(rng, text, RULES, tokenizer, **options)


def test_a_span_is_masked_in_its_sentence(tokenizer):
    rules = (salient_spans.dates, lambda text: [span(text, "Seine")])
    shown = set()
    for seed in range(20):
        made = masked_sentences.draw(
            np.random.default_rng(seed), TEXT, rules, tokenizer, length=24
        )
        assert made is not None
        assert (made.ids[made.positions] == tokenizer.mask_id).all()
        assert len(made.positions) == len(made.targets) > 0
        hidden = tokenizer.decode(made.targets).replace(" ", "")
        assert hidden in ("seine", "1924")
        shown.add(hidden)
        # Put back, it is the sentence, and the sentence alone.
        whole = made.ids.copy()
        whole[made.positions] = made.targets
        (wanted,) = tokenizer.encode(
            ["Paris lies on the river Seine ."]
            if hidden == "seine"
            else ["Nobody was there in 1924 ."],
            max_length=24,
        )
        np.testing.assert_array_equal(whole, wanted)
        (again,) = tokenizer.encode([made.text], max_length=24)
        np.testing.assert_array_equal(again, made.ids)
    assert shown == {"seine", "1924"}


def span(text, word):
    start = text.index(word)
    return start, start + len(word)


def test_of_a_long_sentence_what_is_around_the_span_is_read(tokenizer):
    text = "on the river " * 30 + "in 1924 " + "lies the river " * 30
    for made in draws(tokenizer, text, 3, length=16):
        assert made is not None and len(made.ids) <= 16
        assert (made.ids[made.positions] == tokenizer.mask_id).all()
        assert tokenizer.decode(made.targets).replace(" ", "") == "1924"


def test_nothing_to_mask(tokenizer):
    assert all(x is None for x in draws(tokenizer, "it rained .", 3))
    assert all(x is None for x in draws(tokenizer, "in 1924 .", 3, most=1)) == (
        len(tokenizer.encode(["1924"], max_length=9)[0]) > 3
    )
    for made in draws(tokenizer, "[MASK] in 1924", 3):
        assert made is not None and made.text.count("[MASK]") == len(made.targets)


def test_batches_hold_the_sentence_beside_each_document(tokenizer):
    (made,) = draws(tokenizer, "Nobody was there in 1924 .", 1)
    assert made is not None
    documents = tokenizer.encode(["the river", "it rained"], max_length=12)
    batch = masked_sentences.batch(
        [made, None],
        [[documents[0], None], [documents[1], documents[0]]],
        tokenizer,
        sentence_length=24,
        document_length=12,
        most=6,
    )
    size = len(made.ids)
    assert batch["passage_ids"].shape == (2, 3, 36)
    np.testing.assert_array_equal(batch["present"], [[1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(batch["weight"], [1, 0])
    for k, rest in enumerate(([tokenizer.sep_id], documents[0][1:])):
        row = batch["passage_ids"][0, k]
        np.testing.assert_array_equal(row[:size], made.ids)
        np.testing.assert_array_equal(row[size : size + len(rest)], rest)
        assert batch["passage_mask"][0, k].sum() == size + len(rest)
        types = batch["passage_types"][0, k]
        assert (types[:size] == 0).all() and types.sum() == len(rest)
        places = batch["positions"][0, : len(made.positions)]
        assert (row[places] == tokenizer.mask_id).all()
    assert batch["passage_mask"][0, 2].sum() == 0
    null = batch["candidate_ids"][0, 0][batch["candidate_mask"][0, 0] > 0]
    np.testing.assert_array_equal(null, [tokenizer.cls_id, tokenizer.sep_id])
    kept = batch["target_mask"][0] > 0
    np.testing.assert_array_equal(batch["targets"][0][kept], made.targets)
    assert batch["target_mask"][1].sum() == 0


def test_passages_are_drawn_and_some_are_held_out(tokenizer):
    passages = [Passage(str(i), "", f"In {1900 + i} .") for i in range(9)]
    passages.append(Passage("x", "", "it rained ."))
    drawn = masked_sentences.of_passages(
        passages, RULES, tokenizer, batch_size=4, num_judged=2, length=16
    )
    held_out, sentences = drawn.judged
    assert len(sentences) == 2 and drawn.num_batches == 2
    seen = set()
    for step in range(4):
        places, asked = drawn.at(0, step)
        part, some = drawn.at(0, step, np.array([1, 3]))
        assert part.tolist() == places[[1, 3]].tolist()
        told = [x and x.text for x in asked]
        assert [x and x.text for x in some] == [told[1], told[3]]
        seen |= set(places.tolist())
    assert not seen & set(held_out.tolist())
    for few, size in (([passages[-1]] * 3, 1), (passages[:3], 4)):
        with pytest.raises(UserError, match="make no batch"):
            masked_sentences.of_passages(
                few, RULES, tokenizer, batch_size=size, num_judged=1, length=16
            )
