"""What may not be given to a text: its own documents, and what shares words with it."""

import json

import numpy as np
import pytest

from rlm_jax.data import corpora, token_store, tokenizers
from rlm_jax.data import passages as passages_lib
from rlm_jax.data.token_store import TokenSplit
from rlm_jax.errors import UserError
from rlm_jax.retrieval import chunk_database
from rlm_jax.retrievers import contamination

TEXTS = {
    "Half @-@ Life": "the man went to the house and the dog ran after him",
    "River": "a boat goes down with two old oars and one lamp in it",
    "!!!": "nothing else",
}


@pytest.fixture
def corpus(monkeypatch, tmp_path) -> str:
    monkeypatch.setenv("RLM_CACHE", str(tmp_path / "cache"))
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


def tokens(corpus: str, split: str) -> TokenSplit:
    loaded = corpora.load(corpus)
    tokenizer = tokenizers.build("bytes", loaded, vocab_size=0)
    return token_store.build(loaded, tokenizer).split(split)


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
    excluded = contamination.excluded_passages(
        passages,
        corpus,
        "test",
        tokens(corpus, "test").document_names,
        num_words=overlap,
        own_titles=own_titles,
    )
    assert excluded.out.tolist() == [bool(x) for x in out]
    assert (excluded.own_titles, excluded.overlapping) == counts


def test_no_passage_is_left(corpus, tmp_path):
    path = tmp_path / "titles.jsonl"
    path.write_text(json.dumps({"title": "River", "text": "white"}) + "\n")
    passages = passages_lib.load(f"jsonl:{path}")
    names = tokens(corpus, "test").document_names
    with pytest.raises(UserError, match="Of 1 passages no document is left for"):
        contamination.excluded_passages(
            passages, corpus, "test", names, num_words=0, own_titles=False
        )


@pytest.mark.parametrize("overlap", [0, 5])
def test_a_place_has_its_own_document_by_title_and_by_words(corpus, passages, overlap):
    split = tokens(corpus, "train")
    own = contamination.OwnDocuments(passages, split, overlap)
    second = int(split.document_offsets[1])
    # A window in the first document, one in the second, one that reaches over both.
    first = np.array([4, second + 4, second - 2])
    places = first, first + 3
    windows = ["the man went to the house", "down with two old oars and one", "him a"]
    ids = np.tile(np.arange(5), (3, 1))
    wanted = np.array([[1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 1, 0]], bool)
    wanted[1, 1] = overlap > 0  # whose words those are
    np.testing.assert_array_equal(own.among(places, windows, ids), wanted)


def test_documents_of_one_name_are_not_told_apart_by_it(passages):
    offsets, names = np.array([0, 9, 18]), ("River", "River")
    split = TokenSplit(np.zeros(18, np.int32), offsets, 18, 18, names)
    own = contamination.OwnDocuments(passages, split, 0)
    places = np.array([2]), np.array([5])
    assert not own.among(places, [""], np.arange(4)[None]).any()


WORDS = "a b c d e f g h i j k l m n o p q r s t u v w x y z".split()


@pytest.mark.parametrize(
    ("duplicates", "num_words", "out"),
    [
        (0.8, 0, [1, 1, 1, 0, 0, 0, 0, 0, 0]),
        (0.0, 4, [1, 1, 1, 0, 0, 0, 0, 1, 1]),
        (0.8, 4, [1, 1, 1, 0, 0, 0, 0, 1, 1]),
        (0.0, 0, [0] * 9),
    ],
)
def test_chunks_of_duplicates_and_with_words_in_a_row(
    monkeypatch, tmp_path, duplicates, num_words, out
):
    """Three documents of 18 words, in chunks of 6 that show the next 6 as well."""
    monkeypatch.setenv("RLM_CACHE", str(tmp_path))
    copied, other = list(range(18)), [25 - i for i in range(18)]
    shares = [20, 2, 21, 3, 22, 4, 23, 5, 24, 6, 25, 7, 0, 25, 9, 10, 11, 12]
    database = chunk_database.chunk_stream(
        np.array(copied + other + shares, np.int32), np.array([0, 18, 36, 54]), 6
    )
    evaluated = chunk_database.chunk_stream(
        np.array(copied, np.int32), np.array([0, 18]), 6
    )

    def decode(ids: np.ndarray) -> str:
        return " ".join(WORDS[i] for i in ids)

    for _ in range(2):  # found, then read from the cache
        mask, counts = contamination.excluded_chunks(
            database,
            [evaluated],
            decode,
            ["tokens"],
            duplicates=duplicates,
            num_words=num_words,
        )
        assert mask.tolist() == [bool(x) for x in out]
    assert counts == {
        "duplicate_documents": int(duplicates > 0),
        "duplicate_chunks": 3 * (duplicates > 0),
        "overlapping_chunks": sum(out) - 3 * (duplicates > 0),
    }
    with pytest.raises(UserError, match="Every chunk of the database"):
        contamination.excluded_chunks(
            evaluated, [evaluated], decode, ["t"], duplicates=0.8, num_words=0
        )
