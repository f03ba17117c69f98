"""Salient spans by rules, and the inverse cloze task."""

import numpy as np
import pytest

from rlm_jax.data import inverse_cloze, salient_spans
from rlm_jax.data.passages import Passage
from rlm_jax.errors import UserError

TEXT = (
    "Paris is the capital of France. The city of Paris grew to 2,102,650 people on 1 "
    "January 2023, or 3.1% of France. Many people of the United States of America "
    "visited it in May 1924 and in the 1930s for $5 million. People still do."
)


def told(spans, text=TEXT):
    return [text[a:b] for a, b in spans]


@pytest.fixture(scope="module")
def rules():
    corpus = [TEXT, "many people saw the city . people still do . the capital grew"]
    return salient_spans.rules_of(corpus)


def test_dates():
    found = told(salient_spans.dates(TEXT))
    assert found == ["1 January 2023", "May 1924", "1930s"]
    others = "On July 4, 1776 and in March, not 12345 or 3000."
    assert told(salient_spans.dates(others), others) == ["July 4, 1776"]


def test_numbers():
    found = told(salient_spans.numbers(TEXT))
    assert {"2,102,650", "3.1%", "$5 million"} <= set(found)
    others = "B2 and 2nd are none, 7 is one."
    assert told(salient_spans.numbers(others), others) == ["7"]


def test_names(rules):
    """A first word is a name only if the collection seldom has it in lower case."""
    found = told(rules[1](TEXT))
    assert found == [
        *("Paris", "France", "Paris", "January", "France"),
        *("United States of America", "May"),
    ]


def test_spans_do_not_overlap_and_dates_come_first(rules):
    spans = salient_spans.salient(TEXT, rules)
    assert spans == sorted(spans)
    for (_, stop), (start, _) in zip(spans, spans[1:], strict=False):
        assert stop <= start
    found = told(spans)
    assert "1 January 2023" in found and "January" not in found
    assert salient_spans.salient("", rules) == []


def test_another_rule_may_stand_beside_these(rules):
    shouted = lambda text: [(0, 5)] if text.startswith("WORLD") else []
    assert salient_spans.salient("WORLD of 7", (shouted, *rules))[0] == (0, 5)


def test_sentences():
    found = told(salient_spans.sentences(TEXT))
    assert len(found) == 4 and found[0] == "Paris is the capital of France."
    assert "".join(found).replace(" ", "") == TEXT.replace(" ", "")
    assert salient_spans.sentences("  ") == []


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("then Beyonce\u0301 Knowles sang.", ["Beyonce\u0301 Knowles"]),  # decomposed
        ("Ве́ра и Анна пели.", ["Ве́ра", "Анна"]),  # an accent over a letter
        ("由Google于1998年9月4日创立。", ["Google", "1998", "9", "4"]),
        ("東京は23区から成る。", ["23"]),
        ("in ปี 2015ที่ went Ελένη", ["2015", "Ελένη"]),
        ("the film cost ৫০০ and २५ in all", ["৫০০", "२५"]),
    ],
)
def test_spans_of_every_script(rules, text, spans):
    assert told(salient_spans.salient(text, rules), text) == spans


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Он ушёл. Она осталась. и всё.", 2),  # a small letter begins none
        ("È finita. Élan vital. Ça va?", 3),
        ("蓝鲸很大。它「游泳。」它吃！真的？", 4),
        ("यह एक है। वह दो है। अंत", 3),
        ("هل ذهب؟ نعم. لا", 3),
        ("One. two. three", 1),
        ("Ends here.\nεδώ. Εκεί", 3),
    ],
)
def test_sentences_of_every_script(text, number):
    found = told(salient_spans.sentences(text), text)
    assert len(found) == number
    assert "".join(found).replace(" ", "") == "".join(text.split())


# --- the inverse cloze task ----------------------------------------------------------

BLOCK = Passage("p", "Title", "One is here. Two is there. Three is away.")


def test_a_sentence_and_the_rest_of_its_block():
    stays = 0
    for seed in range(400):
        drawn = inverse_cloze.draw(np.random.default_rng(seed), BLOCK)
        assert drawn is not None
        sentence, rest = drawn
        assert sentence in BLOCK.text and sentence.endswith(".")
        if rest.text == BLOCK.text:
            stays += 1
        else:
            assert sentence not in rest.text
            words = f"{rest.text} {sentence}".split()
            assert sorted(words) == sorted(BLOCK.text.split())
    assert 20 <= stays <= 65  # 0.1 of 400
    one = BLOCK._replace(text="Only this.")
    rng = np.random.default_rng(0)
    assert inverse_cloze.draw(rng, one, keep=0) is None
    assert inverse_cloze.draw(rng, one, keep=1) == ("Only this.", one)
    assert inverse_cloze.draw(rng, BLOCK._replace(text="")) is None


def test_batches_are_those_of_dpr():
    def encode(texts):
        return [np.arange(2, 2 + len(text.split()), dtype=np.int32) for text in texts]

    def blocks(passages):
        return encode([passage.text for passage in passages])

    one = BLOCK._replace(text="Only this.")
    made = inverse_cloze.batches(
        [BLOCK, one, BLOCK], encode, blocks, batch_size=3, question_length=4,
        passage_length=9, pad_id=0, keep=0.0,
    )  # fmt: skip
    batch = made.batch_at(0, 0)
    assert batch["question_ids"].shape == (3, 4)
    assert batch["passage_ids"].shape == batch["passage_mask"].shape == (3, 1, 9)
    assert sorted(batch["passage"][:, 0].tolist()) == [0, 1, 2]
    lost = batch["weight"] == 0
    assert batch["passage"][lost].tolist() == [[1]]
    part = made.batch_at(0, 0, rows=np.array([2]))
    for name, x in part.items():
        np.testing.assert_array_equal(x, batch[name][2:])
    for size, keep, message in ((4, 0.1, "no batch"), (1, 2.0, "a probability")):
        with pytest.raises(UserError, match=message):
            inverse_cloze.batches(
                [BLOCK], encode, blocks, batch_size=size, question_length=4,
                passage_length=9, pad_id=0, keep=keep,
            )  # fmt: skip
