"""What may not be given to a text: its own documents, and what shares words with it."""

import json
import types

import numpy as np
import pytest

from rlm_jax.data import passages as passages_lib
from rlm_jax.evaluate import in_context
from rlm_jax.recipes import language_model
from rlm_jax.recipes.with_passages import contamination, documents

TEXTS = {
    "Half @-@ Life": "the man went to the house and the dog ran after him",
    "River": "a boat goes down with two old oars and one lamp in it",
    "!!!": "nothing else",
}


@pytest.fixture
def corpus(cache, tmp_path) -> str:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("train", "valid", "test"):
        lines = [json.dumps({"title": k, "text": v}) for k, v in TEXTS.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return f"jsonl:{folder}"


@pytest.fixture
def passages(tmp_path) -> passages_lib.Passages:
    records = [
        {"title": "Half-Life", "text": "nothing of the kind"},
        {"title": "Stream", "text": "it goes down with two old oars, they say"},
        {"title": "Cloud", "text": "white and far away"},
        {"title": "river", "text": "banks and bridges"},
        {"title": "!!!", "text": "marks alone"},
    ]
    path = tmp_path / "passages.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in records))
    return passages_lib.load(f"jsonl:{path}")


def configured(corpus: str, **changes) -> documents.Experiment:
    config = documents.Experiment()
    config.data.corpus, config.data.tokenizer = corpus, "bytes"
    for name, value in changes.items():
        setattr(config.documents, name, value)
    return config


@pytest.mark.parametrize(
    ("own_titles", "overlap", "out", "counts"),
    [
        (False, 6, [1, 1, 0, 1, 1], (3, 1)),
        (False, 0, [1, 0, 0, 1, 1], (3, 0)),
        (True, 6, [0, 1, 0, 0, 0], (0, 1)),
        (True, 8, [0, 0, 0, 0, 0], (0, 0)),
    ],
)
def test_titles_and_words_in_a_row(corpus, passages, own_titles, overlap, out, counts):
    config = configured(corpus, own_titles=own_titles, overlap=overlap)
    text = language_model.load_text(config.data)
    found = contamination.excluded(config, passages, text, "test")
    assert found.out.tolist() == [bool(x) for x in out]
    assert (found.own_titles, found.overlapping) == counts


@pytest.mark.parametrize("overlap", [0, 5])
def test_a_place_has_its_own_document_by_title_and_by_words(corpus, passages, overlap):
    text = language_model.load_text(configured(corpus).data)
    own = contamination.OwnDocuments(passages, text, "train", overlap)
    second = int(text.store.split("train").document_offsets[1])
    # A window in the first document, one in the second, one that reaches over both.
    first = np.array([4, second + 4, second - 2])
    at = in_context.Strides(first, first + 4, first, first, first)
    windows = ["the man went to the house", "down with two old oars and one", "him a"]
    ids = np.tile(np.arange(5), (3, 1))
    wanted = np.array([[1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 1, 0]], bool)
    wanted[1, 1] = overlap > 0  # whose words those are
    np.testing.assert_array_equal(own.among(at, windows, ids), wanted)


def test_documents_of_one_name_are_not_told_apart_by_it(passages):
    split = types.SimpleNamespace(
        document_offsets=np.array([0, 9, 18]), document_names=["River", "River"]
    )
    text = types.SimpleNamespace(store=types.SimpleNamespace(split=lambda _: split))
    own = contamination.OwnDocuments(passages, text, "train", 0)  # type: ignore
    at = in_context.Strides(*(np.array([x]) for x in (2, 6, 2, 2, 2)))
    assert not own.among(at, [""], np.arange(4)[None]).any()
