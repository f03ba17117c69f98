import json

import numpy as np
import pytest

from rlm_jax.data import passage_tokens, passages, reader_batches
from rlm_jax.data.question_files import Question
from rlm_jax.errors import UserError
from tests.data import t5_tokenizer

T, L = 24, 5
TEXTS = ["she runs", "the river runs", "the sea the river the sea the river she runs"]
QUESTIONS = [
    Question("a", "who runs", ("she", "the river", "a word of many letters")),
    Question("b", "who", ("the sea",)),
    Question("c", "runs", ("a word of many letters",)),
    Question("d", "the sea " * 30, ("sea",)),
    Question("e", "river", ("river", "sea")),
]
IDS = np.array([[2, 0], [1, -1], [0, 1], [-1, 0], [-1, -1]], np.int32)


class Given:
    """A tokenizer, the tokens of three passages, and questions about them."""

    def __init__(self, folder):
        records = [{"title": "sea", "text": text} for text in TEXTS]
        (folder / "p.jsonl").write_text("\n".join(map(json.dumps, records)))
        cache = folder / "cache"
        name = f"jsonl:{folder}/p.jsonl"
        self.pool = passages.load(name, cache_dir=cache, progress=False)
        self.tokenizer = t5_tokenizer.save(folder / "t5")
        self.tokens = passage_tokens.build(
            self.pool, self.tokenizer, max_length=T, cache_dir=cache, progress=False
        )

    def rows(self, questions=QUESTIONS, ids=IDS, length=T, target=L, tokens=None):
        return reader_batches.rows(
            self.tokenizer,
            questions,
            ids,
            self.tokens if tokens is None else tokens,
            passage_length=length,
            target_length=target,
        )

    def expected(self, question, row):
        """A row of a batch, from the texts."""
        library = t5_tokenizer.build()
        text = f"question: {question.text}"
        if row is not None:
            passage = self.pool[row]
            text += f" title: {passage.title} context: {passage.text}"
        ids = library.encode(text, add_special_tokens=False).ids[: T - 1]
        return [*ids, 1]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return Given(tmp_path_factory.mktemp("given"))


def texts(batch, name, place):
    ids, mask = batch[f"{name}_ids"][place], batch[f"{name}_mask"][place]
    return [row[keep > 0].tolist() for row, keep in zip(ids, mask, strict=True)]


def test_rows_hold_a_question_beside_each_passage(given, capsys):
    examples = given.rows()
    told = capsys.readouterr().err
    assert "1 questions have no answer of at most 5 tokens (the first is 'c')" in told
    assert "1 questions fill all 24 tokens" in told
    assert examples.facts == {
        "questions_too_long": 1,
        "answers_too_long": 2,
        "questions_without_short_answer": 1,
    }
    batches = reader_batches.in_order(examples, batch_size=5)
    batch = batches.batch_at(0, 0)
    shapes = {name: (x.shape, x.dtype.name) for name, x in batch.items()}
    assert shapes == {
        "passage_ids": ((5, 2, T), "int32"),
        "passage_mask": ((5, 2, T), "int32"),
        "targets": ((5, L), "int32"),
        "target_mask": ((5, L), "int32"),
        "weight": ((5,), "float32"),
        "question": ((5,), "int32"),
    }
    for place, (question, ids) in enumerate(zip(QUESTIONS, IDS.tolist(), strict=True)):
        rows = [given.expected(question, row) if row >= 0 else [] for row in ids]
        if ids == [-1, -1]:  # nothing was found: the question alone
            rows[0] = given.expected(question, None)
        assert texts(batch, "passage", place) == rows
    assert (batch["passage_ids"][batch["passage_mask"] == 0] == 0).all()
    assert [batch["target_mask"][i].sum() for i in range(5)] == [2, 3, 0, 2, 2]
    assert batch["targets"][1, 2] == given.tokenizer.end_id
    assert given.tokenizer.decode(batch["targets"][1]) == "the sea"


def test_the_last_batch_is_filled_with_weight_0(given):
    batches = reader_batches.in_order(given.rows(), batch_size=3)
    assert (batches.num_segments, batches.num_batches) == (5, 2)
    last = batches.batch_at(7, 1)
    assert last["weight"].tolist() == [1, 1, 0] and last["question"].tolist() == [
        3, 4, -1,
    ]  # fmt: skip
    assert last["target_mask"][2].sum() == 0
    assert last["passage_mask"][2].any()  # no row is masked throughout
    part = batches.batch_at(0, 1, rows=np.array([1]))
    assert part["question"].tolist() == [4]
    again = batches.batch_at(0, 3)
    assert all((again[name] == last[name]).all() for name in last)


def test_closed_book_rows_hold_the_question_alone(given):
    none = passage_tokens.build(passages.none(), given.tokenizer, max_length=T)
    examples = given.rows(ids=np.zeros((5, 0), np.int32), tokens=none)
    batch = reader_batches.in_order(examples, batch_size=5).batch_at(0, 0)
    assert batch["passage_ids"].shape == (5, 1, T)
    for place, question in enumerate(QUESTIONS):
        alone = given.expected(question, None)
        assert texts(batch, "passage", place) == [alone]


def test_training_sees_each_question_once_an_epoch(given):
    examples = given.rows()
    batches = reader_batches.training(examples, batch_size=2)
    assert (batches.num_segments, batches.num_batches) == (4, 2)  # "c" is left out
    epochs = [
        np.concatenate([batches.batch_at(3, 2 * e + i)["question"] for i in range(2)])
        for e in range(30)
    ]
    assert all(sorted(epoch) == [0, 1, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5
    drawn = {
        given.tokenizer.decode(batch["targets"][b])
        for step in range(60)
        for batch in [batches.batch_at(3, step)]
        for b in range(2)
        if batch["question"][b] == 0
    }
    assert drawn == {"she", "the river"}  # and never the answer that is too long
    for step in (0, 5, 17):
        batch, again = (batches.batch_at(1, step) for _ in range(2))
        second = batches.batch_at(1, step, rows=slice(1, 2))
        for name, values in batch.items():
            assert (values == again[name]).all()
            assert (values[1:] == second[name]).all()
    other = [batches.batch_at(2, step)["question"].tolist() for step in range(8)]
    assert other != [
        batches.batch_at(1, step)["question"].tolist() for step in range(8)
    ]


def test_questions_without_answers_can_be_answered_not_learnt(given):
    unknown = [Question("x", "who runs")]
    examples = given.rows(unknown, IDS[:1])
    batch = reader_batches.in_order(examples, batch_size=1).batch_at(0, 0)
    assert batch["weight"].tolist() == [1] and not batch["target_mask"].any()
    with pytest.raises(UserError, match="question 'x' has no answer"):
        reader_batches.training(examples, batch_size=1)


def test_bad_input(given):
    with pytest.raises(UserError, match="target_length = 2 tokens, such as"):
        given.rows([Question("x", "who", ("many letters",))], IDS[:1], target=2)
    with pytest.raises(UserError, match="leave no room"):
        given.rows(length=7)
    with pytest.raises(UserError, match="leave no room"):
        given.rows(target=1)
    with pytest.raises(UserError, match="5 questions and passages of shape"):
        given.rows(ids=IDS[:2])
    with pytest.raises(UserError, match="beyond the 3 of the collection"):
        given.rows(ids=IDS + 1)
    with pytest.raises(UserError, match="4 questions to learn from"):
        reader_batches.training(given.rows(), batch_size=5)
    with pytest.raises(UserError, match="4 questions to learn from"):
        reader_batches.training(given.rows(), batch_size=0)
    with pytest.raises(UserError, match="0 questions make no batch"):
        reader_batches.in_order(given.rows([], IDS[:0]), batch_size=2)
