"""Questions with blanks in tokens: masks, cuts, whole words, what cannot be written."""

import json

import numpy as np
import pytest
import tokenizers as hugging_face

from rlm_jax.data import cloze_questions, passages, text_encoding
from rlm_jax.data.cloze_tokens import ClozeTokenizer
from rlm_jax.data.passages import Passage
from rlm_jax.errors import UserError

TEXTS = ["the cats sat on the mats .", "a dog ran to the red house , so it goes ."]


@pytest.fixture(scope="module")
def tokenizer() -> ClozeTokenizer:
    return ClozeTokenizer(text_encoding.train(TEXTS * 3, vocab_size=100))


@pytest.fixture(scope="module")
def roberta(golden_folder) -> ClozeTokenizer:
    """Byte-level BPE, as RoBERTa's; trained here, on the same words."""
    library = hugging_face.ByteLevelBPETokenizer()
    library.train_from_iterator(
        TEXTS * 9, vocab_size=330, min_frequency=2, show_progress=False,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
    )  # fmt: skip
    mask = hugging_face.AddedToken("<mask>", lstrip=True, special=True)
    library.add_special_tokens([mask])
    content = json.loads(library.to_str())
    content["post_processor"] = {
        "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0],
        "trim_offsets": True, "add_prefix_space": False,
    }  # fmt: skip
    return ClozeTokenizer(text_encoding.parse(content))


@pytest.fixture(params=["tokenizer", "roberta"])
def either(request) -> ClozeTokenizer:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("masks", [1, 2])
def test_every_blank_becomes_masks(either, masks):
    cloze = either.cloze("the [MASK] sat on [MASK] .", masks=masks, max_length=30)
    ids, mask = cloze.ids, either.text.mask_id
    assert cloze.at.shape == (2, masks)
    assert (ids[cloze.at] == mask).all() and (ids == mask).sum() == 2 * masks
    plain = either.text.encode(["the sat on ."], max_length=30)[0]
    np.testing.assert_array_equal(ids[ids != mask], plain)


def test_a_long_question_is_cut_around_its_blanks(either):
    text = f"{'the red house . ' * 20}[MASK] cats {'ran to the mats ' * 20}"
    whole = either.cloze(text, masks=2, max_length=400)
    short = either.cloze(text, masks=2, max_length=16)
    assert len(short.ids) == 16
    assert (short.ids[[0, -1]] == whole.ids[[0, -1]]).all()
    assert (short.ids[short.at] == either.text.mask_id).all()
    shift = whole.at[0, 0] - short.at[0, 0]
    np.testing.assert_array_equal(short.ids[1:-1], whole.ids[1 + shift : 15 + shift])
    assert 3 < short.at[0, 0] < 12
    at_end = either.cloze("ran to the mats " * 20 + "[MASK]", masks=2, max_length=16)
    assert at_end.at[0, 1] == 14


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no blank", "no blank"),
        (f"[MASK] {'the ' * 30} [MASK]", "tokens apart"),
    ],
)
def test_bad_questions(tokenizer, text, says):
    with pytest.raises(UserError, match=says):
        tokenizer.cloze(text, masks=2, max_length=16)


def test_words_and_what_goes_on(either):
    ids = either.phrase("the cats")
    assert either.decode(ids) == "the cats"
    assert not either.inside[ids[0]]
    whole = either.text.encode(["so the cats sat"], max_length=30)[0].tolist()
    assert str(ids.tolist())[1:-1] in str(whole)  # as it stands in a sentence
    ids = either.phrase("redhouse")
    assert either.inside[ids[1:]].all() and len(ids) > 1
    dot = either.phrase(".")
    assert either.punctuation[dot].all() and not either.inside[dot].any()


WORLD = ["el café está frío", "काल कुल किला", "Über größe straße", "日本語", "ça “va”"]


@pytest.fixture(scope="module", params=["bytes", "pieces"])
def of_the_world(request) -> ClozeTokenizer:
    """Both kinds, trained on scripts with accents, vowel signs and no blanks."""
    if request.param == "pieces":
        return ClozeTokenizer(text_encoding.train(WORLD * 9, vocab_size=200))
    library = hugging_face.ByteLevelBPETokenizer()
    library.train_from_iterator(
        WORLD * 9, vocab_size=290, min_frequency=2, show_progress=False,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    )  # fmt: skip
    content = json.loads(library.to_str())
    content["post_processor"] = {
        "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0],
        "trim_offsets": True, "add_prefix_space": False,
    }  # fmt: skip
    return ClozeTokenizer(text_encoding.parse(content))


@pytest.mark.parametrize(
    ("word", "words"),
    [("café", 1), ("frío", 1), ("किला", 1), ("größe", 1), ("ça", 1), ("日本語", 3)],
)
def test_words_of_every_script(of_the_world, word, words):
    """An accent or a vowel sign goes on a word and is no punctuation."""
    ids = of_the_world.text.encode([f"x {word}"], max_length=40)[0][1:-1]
    ids = ids[1:]  # of x, a token of its own
    begins = int((~of_the_world.inside[ids]).sum())
    # Bytes of a character that no token holds whole do not tell what they begin.
    assert begins == words or (words > 1 and begins < len(ids))
    written = [i for i in ids if of_the_world.text.decode([i]).strip()]  # no blank
    assert written and not of_the_world.punctuation[written].any()


def test_quotes_of_bytes_are_punctuation(of_the_world):
    ids = of_the_world.text.encode(["ça “"], max_length=40)[0][1:-1]
    last = of_the_world.text.decode(ids[-1:])
    if "“" in last:  # one token
        assert of_the_world.punctuation[ids[-1]]
        assert not of_the_world.inside[ids[-1]]


def test_an_answer_that_cannot_be_written(tokenizer):
    for answer in ("猫", " "):
        with pytest.raises(UserError, match="cannot be written"):
            tokenizer.phrase(answer)


def test_passages_have_no_marks(either):
    rows = either.passages([Passage("1", "a title", "the cats")], max_length=9)
    assert either.decode(rows[0]) == "the cats"
    assert not either.special[rows[0]].any()


def test_questions_made_of_text(tokenizer, tmp_path):
    folder = tmp_path / "passages"
    folder.mkdir()
    texts = [f"{TEXTS[i % 2]} {TEXTS[(i + 1) % 2]}" for i in range(20)]
    records = [Passage(str(i), "", text) for i, text in enumerate(texts)]
    passages.write(folder, records, "toy")
    held_out = passages.read(folder, "toy", "toy")
    known = tokenizer.passages([Passage("k", "", "the red house")], max_length=50)[0]
    made = cloze_questions.from_passages(held_out, tokenizer, known, count=10)
    assert len(made) == 10
    for question in made:
        (answer,) = question.answers
        assert answer in ("red", "house", "red house", "the red", "the red house")
        passage = records[int(question.id.partition("@")[0])]
        filled = question.text.replace("[MASK]", answer)
        assert filled.replace(" ", "") in passage.text.replace(" ", "")
    with pytest.raises(UserError, match="shares a phrase"):
        cloze_questions.from_passages(held_out, tokenizer, known[:0], count=10)
