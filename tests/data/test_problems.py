"""What readers and retrievers learn from together."""

import json

import numpy as np
import pytest

from rlm_jax.data import passages as passages_lib
from rlm_jax.data import problems, question_answering, reader_tokens, text_encoding
from rlm_jax.data.problems import Lengths
from rlm_jax.data.question_answering import AnsweringConfig
from rlm_jax.errors import UserError

LENGTHS = Lengths(40, 16)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """12 passages of three titles, and a question about each."""
    folder = tmp_path_factory.mktemp("problems")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLM_CACHE", str(folder / "cache"))
        texts = [
            f"the river number {i} runs from the hill to the sea in summer or winter"
            for i in range(12)
        ]
        lines = [
            json.dumps({"id": f"p{i}", "title": f"title {i % 3}", "text": text})
            for i, text in enumerate(texts)
        ]
        (folder / "passages.jsonl").write_text("\n".join(lines))
        for split in ("train", "validation"):
            asked = [
                {
                    "id": f"q{i}",
                    "question": f"where does river {i} [MASK] ?",
                    "answers": ["the sea", "the hill"],
                    "passage_id": f"p{i}",
                }
                for i in range(12)
            ]
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, asked)))
        passages = passages_lib.load(f"jsonl:{folder}/passages.jsonl")
        data = AnsweringConfig(
            f"jsonl:{folder}/passages.jsonl", f"jsonl:{folder}/{{split}}.jsonl"
        )
        made = text_encoding.train([*texts, "title 0 1 2"], vocab_size=200)
        splits = [question_answering.load(data, x) for x in ("train", "validation")]
        yield passages, splits, reader_tokens.of(made)


def by_place(collection, numbers):
    """The passage of question i is i."""
    return [np.array([number], np.int32) for number in numbers]


def test_questions(corpus):
    passages, (training, validation), tokenizer = corpus
    source = problems.of_questions(
        training, validation, tokenizer, LENGTHS,
        batch_size=5, num_judged=3, evidence=by_place,
    )  # fmt: skip
    assert source.num_batches == 2 and source.most_own == 1
    assert len(source.judged.texts) == 3
    drawn = source.at(0, 1)
    part = source.at(0, 1, np.array([3, 0]))
    assert part.texts == [drawn.texts[3], drawn.texts[0]]
    for text, own, target in zip(drawn.texts, drawn.own, drawn.targets, strict=True):
        assert "[MASK]" not in text and f"river {own[0]} " in text
        assert tokenizer.decode(target) in ("the sea", "the hill")
    batch = drawn.batch(
        tokenizer, source.tokens, np.array([[1, -1]] * 5, np.int32), LENGTHS
    )
    assert batch["passage_ids"].shape == (5, 2, 40)
    assert batch["passage_mask"].any(-1).tolist() == [[True, False]] * 5
    alone = source.closed_book().batch_at(0, 1, rows=np.array([3, 0]))
    assert alone["passage_ids"].shape == (2, 1, 40)
    assert tokenizer.decode(alone["targets"][0]) == tokenizer.decode(drawn.targets[3])
    free = problems.of_questions(
        training, validation, tokenizer, LENGTHS,
        batch_size=5, num_judged=0, evidence=None,
    )  # fmt: skip
    assert free.most_own == 0 and free.at(0, 1).texts == drawn.texts
    with pytest.raises(UserError, match="none can be left out"):
        problems.of_questions(
            training, validation, tokenizer, LENGTHS, batch_size=5, num_judged=1,
            evidence=lambda collection, numbers: [np.zeros(0, int)] * len(numbers),
        )  # fmt: skip


def texts(corpus, kind, left_out: problems.LeftOut = "own", **options):
    passages, _, tokenizer = corpus
    options = {"batch_size": 4, "num_judged": 3, "text_length": 24, **options}
    return problems.of_texts(
        kind, passages, tokenizer, LENGTHS, left_out=left_out, **options
    )


@pytest.mark.parametrize("kind", ["spans", "prefix"])
def test_texts(corpus, kind):
    """Those that are judged are not learnt from; every epoch hides something else."""
    source = texts(corpus, kind)
    held_out = {int(own[0]) for own in source.judged.own}
    assert len(held_out) == 3 and source.num_batches == 2
    first, again, later = source.at(0, 0), source.at(0, 0), source.at(0, 2)
    assert first.texts == again.texts
    seen = {int(own[0]) for step in (0, 1) for own in source.at(0, step).own}
    assert len(seen) == 8 and not seen & held_out
    tokenizer = source.tokenizer
    for prefix, target in zip(first.prefixes, first.targets, strict=True):
        assert prefix[0] == tokenizer.start_id and prefix[-1] == tokenizer.end_id
        assert target[-1] == tokenizer.end_id and len(target) <= LENGTHS.target
    if kind == "spans":
        by_row = {int(o[0]): t for o, t in zip(first.own, first.texts, strict=True)}
        common = [
            (by_row[int(o[0])], t)
            for o, t in zip(later.own, later.texts, strict=True)
            if int(o[0]) in by_row
        ]
        assert not common or any(a != b for a, b in common)


def test_what_may_not_be_read(corpus):
    source = texts(corpus, "prefix", "title")
    assert source.most_own == 4
    for own in source.at(0, 0).own:
        assert len({int(row) % 3 for row in own}) == 1 and len(own) == 4
    with pytest.raises(UserError, match="give away what is hidden"):
        texts(corpus, "spans", "nothing")
    with pytest.raises(UserError, match="make no batch of 40"):
        texts(corpus, "spans", batch_size=40)
