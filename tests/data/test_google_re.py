import json

import pytest

from rlm_jax.data import google_re, passages, questions
from rlm_jax.data.question_files import SPLITS, split_of
from rlm_jax.errors import UserError


def fact(relation, subject, object_, *sentences):
    return {
        "relation": relation, "sub_label": subject, "obj_label": object_,
        "masked_sentences": list(sentences),
    }  # fmt: skip


FACTS = [
    fact("place_of_birth", "Ada", "London", "Ada .", "Born in [MASK], not [MASK] ."),
    fact("place_of_birth", "Ada", "Rome", "Ada was from [MASK] ."),
    fact("date_of_birth", "Ada", "1815", "Ada was from Rome ."),
    fact("place_of_death", "Bob", "Oslo", "Bob died in [MASK] ."),
    *(fact("place_of_death", f"S{i}", "Bonn", f"S{i} , [MASK] .") for i in range(40)),
    {"masked_sentences": ["x [MASK]"], "obj_label": "y", "sub_label": "Squad"},
]


def test_facts_become_questions_about_their_sentences(tmp_path):
    folder = tmp_path / "lama"
    folder.mkdir()
    lines = "\n".join(map(json.dumps, FACTS))
    (folder / "google_re.jsonl").write_text(lines)
    (folder / "trex.jsonl").write_text("not read")
    name, cache = f"google_re:{folder}", tmp_path / "cache"
    pool = passages.load(name, cache_dir=cache, progress=False)
    assert [(p.title, p.text) for p in pool][:3] == [
        ("Ada", "Ada . Born in London, not London ."),
        ("Ada", "Ada was from Rome ."),
        ("Bob", "Bob died in Oslo ."),
    ]
    asked = {x: questions.load(name, x, cache_dir=cache) for x in SPLITS}
    assert sum(map(len, asked.values())) == 3 + 40
    of_ada = asked[split_of("Ada")]
    by_text = {q.text: q for q in of_ada.questions}
    born = by_text["Ada was born in [MASK] ."]
    assert born.answers == ("London", "Rome")
    assert of_ada.relevance[born.id].keys() == {pool[0].id, pool[1].id}
    assert by_text["Ada (born [MASK])."].answers == ("1815",)
    for split in asked.values():
        rows = questions.resolve(split, pool).positives
        assert all(map(len, rows))
    order = [q.text for q in asked["train"].questions]
    assert order != sorted(order)


def test_bad_input(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps(FACTS[-1]))
    with pytest.raises(UserError, match="no facts of Google-RE"):
        list(google_re.passages(tmp_path / "x.jsonl")[1])
    with pytest.raises(UserError, match="no files of Google-RE"):
        google_re.passages(tmp_path)
    with pytest.raises(UserError, match="no split 'dev' of Google-RE"):
        google_re.questions(tmp_path, "dev")
