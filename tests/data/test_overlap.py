import itertools
import random
import time

import numpy as np
import pytest

from rlm_jax.data import overlap
from rlm_jax.errors import UserError


def ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    """The definition, as a loop over characters and a set of tuples."""
    words, word = [], ""
    for character in text.lower() + " ":
        if character in "日本":  # of a script without blanks between words
            words += [word, character] if word else [character]
            word = ""
        elif character.isalnum():
            word += character
        elif word:
            words.append(word)
            word = ""
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def overlapping(passages, evaluated, n):
    shared = set().union(*(ngrams(text, n) for text in evaluated))
    return [bool(ngrams(text, n) & shared) for text in passages]


def jaccard(a: str, b: str, n: int) -> float:
    a_set, b_set = ngrams(a, n), ngrams(b, n)
    return len(a_set & b_set) / max(len(a_set | b_set), 1)


def texts(count: int, longest: int, seed: int) -> list[str]:
    """Texts of few words, some with no word at all."""
    draw = random.Random(seed)
    words = ["a", "B2", "Straße", "été", "日本", "x_y", "it's", "-", "\n", "٣"]
    return [
        " ".join(draw.choices(words, k=draw.randrange(longest))) for _ in range(count)
    ]


@pytest.fixture(params=[1 << 21, 50], ids=["one block", "many blocks"])
def block(request, monkeypatch):
    monkeypatch.setattr(overlap, "_BLOCK", request.param)


@pytest.mark.parametrize("n", [1, 2, 5, 13])
@pytest.mark.parametrize("longest", [4, 40])
def test_overlapping_is_the_intersection_of_sets(block, n, longest):
    # Long passages against short texts, so that both answers occur.
    passages, evaluated = texts(200, longest, 1), texts(6, 40, 2)
    expected = overlapping(passages, evaluated, n)
    found = overlap.overlapping(iter(passages), iter(evaluated), n=n)
    assert found.dtype == bool and found.tolist() == expected
    if (n, longest) in [(2, 4), (2, 40), (5, 40)]:
        assert 0 < sum(expected) < 200


def test_thirteen_words_are_shared_and_twelve_are_not():
    words = [f"w{i}" for i in range(100)]
    evaluated = ["Before it. " + ", ".join(words).upper() + "!"]
    for start in (0, 40, 87):
        shared = " ".join(words[start : start + 13])
        passages = [
            f"other words {shared} and others",
            shared,
            " ".join(words[start : start + 12]) + " other",
            " ".join(words[start : start + 6]) + " x " + shared.partition(" ")[2],
            " ".join(reversed(shared.split())),
        ]
        found = overlap.overlapping(passages, evaluated)
        assert found.tolist() == [True, True, False, False, False]


def test_ngrams_do_not_cross_texts(block):
    first, second = "a b c d e f g", "h i j k l m n"
    both = f"{first} {second}"
    assert not overlap.overlapping([first, second], [both]).any()
    assert not overlap.overlapping([both], [first, second]).any()
    assert overlap.overlapping([both], ["", both, ""]).all()


@pytest.mark.parametrize("n", [2, 13])
def test_words_that_change_places_are_another_ngram(n):
    # Only the order tells these apart.
    rows = ["abbabaabbaaba", "baababbaabbab", "aaaaaaaaaaaaa", "aaaaaaaaaaaab"]
    rows = [" ".join(row[:n]) for row in dict.fromkeys(row[:n] for row in rows)]
    for a, b in itertools.product(rows, rows):
        assert overlap.overlapping([a], [b], n=n).tolist() == [a == b]


def test_nothing_overlaps_with_nothing():
    assert overlap.overlapping([], ["a"]).shape == (0,)
    assert overlap.overlapping(["a", ""], [], n=1).tolist() == [False, False]
    assert overlap.near_duplicates([], ["a"]).shape == (0,)
    assert overlap.near_duplicates(["a", ""], [], n=1).tolist() == [False, False]
    # A text of fewer than n words has no n-gram, so it is no duplicate of itself.
    short = "a b c d e f g h i j k l"
    assert not overlap.overlapping([short], [short]).any()
    assert not overlap.near_duplicates([short], [short]).any()


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.8, 1.0])
def test_near_duplicates_are_those_of_every_pair(block, n, threshold):
    others = texts(30, 12, 1)
    draw = random.Random(3)
    documents = texts(60, 12, 2) + [
        " ".join(w for w in text.split() if draw.random() < 0.9) for text in others
    ]
    best = [max(jaccard(d, o, n) for o in others) for d in documents]
    found = overlap.near_duplicates(iter(documents), iter(others), threshold, n=n)
    assert found.tolist() == [similarity >= threshold for similarity in best]
    assert 0 < found.sum() < len(documents)


def test_a_similarity_of_exactly_the_threshold_counts():
    # 8 shared of 10: 0.8.
    document, other = "a b c d e f g h i", "a b c d e f g h j"
    assert jaccard(document, other, 1) == 0.8
    assert overlap.near_duplicates([document], [other], 0.8, n=1).all()
    # Several texts together hold all of it, but no single one does.
    halves = ["a b c d e", "e f g h i"]
    assert not overlap.near_duplicates([document], halves, 0.8, n=1).any()


def test_megabytes_are_quick():
    draw = random.Random(0)
    large = " ".join(f"wörd{draw.randrange(10**6)}" for _ in range(100_000))
    assert len(large) > 1_000_000
    started = time.perf_counter()
    found = overlap.overlapping([large, large[:1000], large[::-1]], [large])
    assert found.tolist() == [True, True, False]
    found = overlap.near_duplicates([large, large[:500_000]], [large])
    assert found.tolist() == [True, False]
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: overlap.overlapping(["a"], ["a"], n=0), "n-grams of 0 words"),
        (lambda: overlap.near_duplicates(["a"], ["a"], n=-1), "n-grams of -1 words"),
        (lambda: overlap.near_duplicates([], [], n=0), "n-grams of 0 words"),
        (lambda: overlap.near_duplicates([], [], 0.0), "0.0 is no threshold"),
        (lambda: overlap.near_duplicates([], [], 1.1), "1.1 is no threshold"),
        (lambda: overlap.near_duplicates([], [], float("nan")), "no threshold"),
    ],
    ids=range(6),
)
def test_bad_input(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_one_text_is_not_an_iterable_of_texts():
    with pytest.raises(TypeError, match="not one text"):
        overlap.overlapping(["a"], "a")


@pytest.mark.parametrize(
    "text",
    [
        "蓝鲸是地球上现存最大的动物之一它生活在海里",
        "シロナガスクジラは地球上で最も大きな動物である",
        "วาฬสีน้ำเงินเป็นสัตว์ที่ใหญ่ที่สุดในโลก",
        "ວານສີຟ້າເປັນສັດທີ່ໃຫຍ່ທີ່ສຸດໃນໂລກ",
        "ត្រីបាឡែនខៀវជាសត្វធំជាងគេបំផុតនៅលើពិភពលោក",
        "ཕྱུགས་དེ་ནི་འཇིག་རྟེན་གྱི་སྲོག་ཆགས་ཆེ་ཤོས་ཡིན།",
        "नीली व्हेल पृथ्वी पर रहने वाला अब तक का सबसे बड़ा जानवर है और",
    ],
)
def test_every_script_can_leak(text):
    """A passage that holds the text word for word shares 13 words with it."""
    passages = [f"before {text} after", text[: len(text) // 8], "something else"]
    found = overlap.overlapping(passages, [text])
    assert found.tolist() == [True, False, False]


def test_words_keep_no_marks():
    assert overlap.words("Don't_stop: 3.14 Ünïted—日本!") == [
        *("don", "t", "stop", "3", "14", "ünïted", "日", "本")
    ]
    assert np.array_equal(
        overlap.overlapping(["ONE, two"], ["one_Two"], n=2), np.array([True])
    )
