"""What an encoder reads of questions and passages: titles, blanks, prompts."""

import json

import pytest
import tokenizers as hugging_face

from rlm_jax.data import text_encoding
from rlm_jax.data.passages import Passage
from rlm_jax.retrievers import encoder_towers
from rlm_jax.retrievers.encoder_towers import TextConfig

TEXTS = ["the red fox hunts mice", "a blue whale , query : passage :"]


@pytest.fixture(scope="module")
def pieces():
    return text_encoding.train(TEXTS * 3, vocab_size=120)


@pytest.fixture(scope="module")
def byte_level():
    """As RoBERTa's, for which a blank is a part of the token after it."""
    library = hugging_face.ByteLevelBPETokenizer()
    library.train_from_iterator(
        TEXTS * 9, vocab_size=300, min_frequency=2, show_progress=False,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    )  # fmt: skip
    content = json.loads(library.to_str())
    content["post_processor"] = {
        "type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0],
        "trim_offsets": True, "add_prefix_space": False,
    }  # fmt: skip
    return text_encoding.parse(content)


@pytest.mark.parametrize("title", ["", " ", "\t", "\u3000", " \n "])
def test_a_pair_without_a_title_is_one_segment(pieces, title):
    """Beside one that has a title, in their order."""
    rows = encoder_towers.passage_rows(pieces, TextConfig("pair", passage_length=16))
    given = [Passage("a", title, "the red fox"), Passage("b", "whale", "the red fox")]
    alone, titled = rows(given)
    (wanted,) = pieces.encode(["the red fox"], max_length=16)
    assert alone.tolist() == wanted.tolist()
    assert (
        titled.tolist()
        == pieces.encode(["whale"], ["the red fox"], max_length=16)[0].tolist()
    )
    assert [x.tolist() for x in rows(given[::-1])] == [titled.tolist(), alone.tolist()]


@pytest.mark.parametrize(
    "text",
    [
        " red fox",
        "  red fox",
        "\nred fox",
        "\tred",
        " red fox ",
        "\u3000red",
        "red",
        " ",
    ],
)
@pytest.mark.parametrize("prompt", ["", "query : ", "\n"])
def test_blanks_are_text(byte_level, text, prompt):
    wanted = hugging_face.Tokenizer.from_str(byte_level.content).encode(prompt + text)
    settings = TextConfig("none", question_prompt=prompt, passage_prompt=prompt)
    asked = encoder_towers.question_rows(byte_level, [text], 32, settings)
    read = encoder_towers.passage_rows(byte_level, settings)([Passage("a", "", text)])
    assert asked[0].tolist() == read[0].tolist() == wanted.ids
