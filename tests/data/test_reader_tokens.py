import numpy as np
import pytest

from rlm_jax.data import reader_tokens, text_encoding
from rlm_jax.data.passages import Passage
from rlm_jax.errors import UserError
from tests.data import t5_tokenizer

PASSAGE = Passage("1", "The sea", "She runs. The river runs")
QUESTION = "Who runs?"
TEXTS = ["the river runs to the sea", "she runs who"]


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return t5_tokenizer.save(tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="module")
def bert():
    return text_encoding.train(TEXTS, vocab_size=120)


def test_t5_rows_are_those_of_the_whole_text(t5):
    """FiD tokenizes question and passage as one text, and </s> follows."""
    library = t5_tokenizer.build()
    whole = "question: Who runs? title: The sea context: She runs. The river runs"
    expected = library.encode(whole).ids
    (question,) = t5.questions([QUESTION], max_length=50)
    (passage,) = t5.passages([PASSAGE], max_length=50)
    row = t5.row(question, passage, 50)
    assert row.tolist() == expected and row.dtype == np.int32
    for length in range(8, len(expected) + 1):  # cut before </s>
        cut = t5.row(question, passage, length)
        assert cut.tolist() == [*expected[: length - 1], t5.end_id]
    alone = t5.row(question, None, 50)
    assert alone.tolist() == library.encode("question: Who runs?").ids
    assert (t5.layout, t5.start_id, t5.end_id, t5.pad_id) == ("t5", 0, 1, 0)
    assert t5.sentinels == tuple(
        library.token_to_id(f"<extra_id_{i}>") for i in range(4)
    )
    assert t5.sentinels[0] == t5.vocab_size - 1  # they descend


def test_the_first_readers_have_no_end_after_a_passage(t5, tmp_path):
    t5.save(tmp_path)
    legacy = reader_tokens.load(tmp_path, passage_end=False)
    (question,) = legacy.questions([QUESTION], max_length=50)
    (passage,) = legacy.passages([PASSAGE], max_length=50)
    whole = t5.row(question, passage, 50)
    assert legacy.row(question, passage, 50).tolist() == whole[:-1].tolist()
    assert legacy.row(question, passage, 9).tolist() == whole[:9].tolist()
    assert legacy.answers(["sea"], max_length=5)[0][-1] == legacy.end_id
    assert legacy.fingerprint != t5.fingerprint


def test_pairs_are_berts(bert):
    reader = reader_tokens.of(bert)
    (question,) = reader.questions(["who runs"], max_length=20)
    texts = ["who runs", "the sea. she runs"]
    passages = [Passage("1", "the sea", "she runs"), Passage("2", "", texts[1])]
    first, second = reader.passages(passages, max_length=20)
    assert first.tolist() == second.tolist()
    (expected,) = bert.encode(texts[:1], texts[1:], max_length=40)
    assert reader.row(question, first, 40).tolist() == expected.tolist()
    assert reader.row(question, None, 40).tolist() == question.tolist()
    (alone,) = bert.encode(["who runs"], max_length=40)
    assert question.tolist() == alone.tolist()
    cut = reader.row(question, first, len(question) + 2)
    assert cut.tolist() == [*expected[: len(question) + 1], bert.sep_id]
    marks = (bert.cls_id, bert.sep_id, bert.pad_id)
    assert (reader.start_id, reader.end_id, reader.pad_id) == marks
    assert reader.sentinels == ()


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_answers_are_read_back(kind, t5, bert):
    reader = t5 if kind == "t5" else reader_tokens.of(bert)
    (ids,) = reader.answers(["the river sea"], max_length=30)
    assert ids[-1] == reader.end_id and reader.end_id not in ids[:-1]
    after = [reader.start_id, *ids, 7, 8, reader.pad_id, reader.vocab_size + 5]
    assert reader.decode(after) == "the river sea"
    assert reader.decode([reader.end_id]) == "" == reader.decode([])
    (long,) = reader.answers(["x " * 50], max_length=4)
    assert len(long) == 5
    (huge,) = reader.encode([" " * 1000 + "sea " * 10**5], max_length=3)
    assert len(huge) == 3


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_a_workdir_keeps_the_tokenizer(kind, t5, bert, tmp_path):
    reader = t5 if kind == "t5" else reader_tokens.of(bert)
    reader.save(tmp_path)
    again = reader_tokens.load(tmp_path)
    assert again == reader and again.fingerprint == reader.fingerprint
    assert again.layout == ("t5" if kind == "t5" else "pair")


def test_what_was_set_for_other_rows_does_not_matter(bert):
    reader = reader_tokens.of(bert)
    before = reader.encode(["the river runs to the sea"])[0]
    bert.encode(["the river"], max_length=4)  # a setting of the library's object
    assert reader.encode(["the river runs to the sea"])[0].tolist() == before.tolist()


def test_bad_folders(tmp_path, bert):
    bert.save(tmp_path)
    with pytest.raises(UserError, match="no <pad> or no </s>"):
        reader_tokens.load(tmp_path, "t5")
    with pytest.raises(UserError, match=r"no \[CLS\] or <s>"):
        t5_tokenizer.save(tmp_path / "t5")
        reader_tokens.load(tmp_path / "t5", "pair")
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(UserError, match="cannot be read"):
        reader_tokens.load(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"spiece\.model"):
        reader_tokens.load(tmp_path / "none", "t5")
    with pytest.raises(UserError, match="There is no tokenizer"):
        reader_tokens.load(tmp_path / "none")
