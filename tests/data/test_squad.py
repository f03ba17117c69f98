import json

import pytest

from rlm_jax.data import passages, questions
from rlm_jax.data.passages import Passage
from rlm_jax.data.questions import Question
from rlm_jax.errors import UserError


def article(title, texts):
    asked = {"id": f"{title}-q", "question": "who?", "answers": [{"text": "she"}] * 2}
    impossible = {"id": f"{title}-n", "question": "why?", "answers": []}
    paragraphs = [{"context": text, "qas": []} for text in texts]
    paragraphs[-1]["qas"] = [asked, impossible]
    return {"title": title, "paragraphs": paragraphs}


def write(path, articles):
    path.write_text(json.dumps({"version": "1.1", "data": articles}))


def test_squads_own_json(tmp_path):
    write(tmp_path / "train-v1.json", [article("A_b", ["one", "two"])])
    write(tmp_path / "dev-v1.json", [article("C", ["three"])])
    name, cache = f"squad:{tmp_path}/{{split}}-v1.json", tmp_path / "cache"
    loaded = questions.load(name, "train", cache_dir=cache)
    assert loaded.questions == (
        Question("A_b-q", "who?", ("she",)),
        Question("A_b-n", "why?", ()),
    )
    assert loaded.relevance == {"A_b-q": {"A_b#1": 1}, "A_b-n": {"A_b#1": 1}}
    pool = passages.load(name, cache_dir=cache, progress=False)
    assert list(pool) == [
        Passage("C#0", "C", "three"),
        Passage("A_b#0", "A b", "one"),
        Passage("A_b#1", "A b", "two"),
    ]
    one = f"squad:{tmp_path}/train-v1.json"
    assert len(passages.load(f"{one}+{one}", cache_dir=cache, progress=False)) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not one JSON object"),
        ('{"data": [', "not one JSON object"),
        ("{}", '"data" is not of SQuAD'),
        ('{"data": [{"title": "x"}]}', "article 1 is not"),
        ('{"data": [{"title": 1, "paragraphs": []}]}', "article 1 is not"),
        ('{"data": [{"title": "x", "paragraphs": [{"context": 1}]}]}', "article 1"),
        (
            '{"data": [{"title": "x", "paragraphs": [{"context": "y", "qas": [{}]}]}]}',
            "question of x#0",
        ),
        ('{"data": []}', "no questions"),
    ],
    ids=range(8),
)
def test_bad_input(tmp_path, content, message):
    (tmp_path / "squad.json").write_text(content)
    with pytest.raises(UserError, match=message):
        questions.load(f"squad:{tmp_path}/squad.json", "x", cache_dir=tmp_path / "c")
    with pytest.raises(UserError, match="of any split"):
        passages.load(f"squad:{tmp_path}/{{split}}-x.json", cache_dir=tmp_path / "c")
