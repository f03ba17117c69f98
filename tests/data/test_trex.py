import json

import pytest

from rlm_jax.data import passages, questions
from rlm_jax.data.question_files import SPLITS, split_of
from rlm_jax.data.questions import Question
from rlm_jax.errors import UserError

TEMPLATES = [
    {"relation": "P19", "template": "[X] was born in [Y] ."},
    {"relation": "P20", "template": "[X] died in [Y] ."},
]


def fact(relation, subject, object_, sentence, **more):
    return {
        "predicate_id": relation,
        "sub_label": subject,
        "obj_label": object_,
        "masked_sentence": sentence,
        "obj_surface": object_,
        **more,
    }


FACTS = [
    fact("P19", "Ada", "London", "Ada of [MASK], [MASK].", sub_uri="Q1"),
    fact("P19", "Ada", "England", "Ada of [MASK].", sub_uri="Q1", obj_surface="London"),
    fact("P19", "Ada", "London", "Ada, a Londoner.", sub_uri="Q1"),  # nothing masked
    fact("P20", "Ada", "Paris", "Ada of [MASK].", sub_uri="Q1", obj_surface="London"),
    fact("P99", "Bob", "Rome", "Bob in [MASK]."),
    *(fact("P19", f"S{i}", f"O{i}", f"S{i} in [MASK].") for i in range(60)),
]
FOREIGN = {"masked_sentences": ["x [MASK]"], "obj_label": "y", "sub_label": "z"}


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")


@pytest.fixture
def lama(tmp_path):
    write(tmp_path / "lama/facts.jsonl", FACTS)
    write(tmp_path / "lama/a_squad.jsonl", [FOREIGN])
    bare = {"predicate_id": "P19", "sub_label": "Eve", "obj_label": "Rome"}
    write(tmp_path / "lama/bare.jsonl", [bare, bare])
    (tmp_path / "lama/empty.jsonl").touch()
    write(tmp_path / "lama/relations.jsonl", TEMPLATES)
    return tmp_path / "lama"


def load(path, tmp_path, split):
    return questions.load(f"trex:{path}", split, cache_dir=tmp_path / "cache")


def pool_of(path, tmp_path):
    name, cache = f"trex:{path}", tmp_path / "cache"
    return passages.load(name, cache_dir=cache, progress=False)


def test_facts_become_questions_about_their_sentences(lama, tmp_path, capsys):
    pool = pool_of(lama, tmp_path)
    texts = [passage.text for passage in pool]
    assert texts[:3] == ["Ada of London, London.", "Ada of London.", "Bob in Rome."]
    assert len(texts) == len(set(texts)) == 63
    told = capsys.readouterr().err
    assert "2 facts of bare.jsonl" in told and "1 facts of facts.jsonl" in told
    splits = {name: load(lama, tmp_path, name) for name in SPLITS}
    assert "1 facts of relations without a template" in capsys.readouterr().err
    asked = [q for split in splits.values() for q in split.questions]
    assert len(asked) == 62 and len({q.id for q in asked}) == 62
    by_id = {q.id: q for q in asked}
    assert by_id["P19-Q1"] == Question(
        "P19-Q1", "Ada was born in [MASK] .", ("London", "England")
    )
    assert by_id["P20-Q1"].text == "Ada died in [MASK] ."
    for split in splits.values():
        pairs = questions.resolve(split, pool)
        for question, rows in zip(split.questions, pairs.positives, strict=True):
            found = [pool[int(row)].text for row in rows]
            if question.id == "P19-Q1":
                assert found == texts[:2]
            elif question.id == "P20-Q1":
                assert found == texts[1:2]
            else:
                (text,) = found
                assert question.answers[0] in text
    assert load(lama, tmp_path, "train") == splits["train"]
    order = [q.text.split()[0] for q in splits["train"].questions]
    numbers = [int(subject[1:]) for subject in order if subject.startswith("S")]
    assert len(numbers) > 30
    assert numbers != sorted(numbers)  # the first questions are a sample of all
    with pytest.raises(UserError, match="no split 'dev' of T-REx"):
        load(lama, tmp_path, "dev")


def test_splits_differ_by_subject(lama, tmp_path):
    subjects = [
        {q.text.split(" ")[0] for q in load(lama, tmp_path, split).questions}
        for split in SPLITS
    ]
    assert all(subjects)
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == 61
    shares = [split_of(f"subject {i}") for i in range(2000)]
    assert shares.count("train") == pytest.approx(1600, abs=60)
    assert shares.count("test") == pytest.approx(200, abs=40)


def test_subjects_of_one_label_are_one_question(tmp_path):
    write(tmp_path / "relations.jsonl", TEMPLATES)
    records = [
        fact("P19", "Ada", "London", "Ada in [MASK].", sub_uri="Q1"),
        fact("P19", "Ada", "Rome", "Ada near [MASK].", sub_uri="Q2"),
        fact("P19", "Lady Ada", "Oslo", "Lady Ada in [MASK].", sub_uri="Q1"),
    ]
    write(tmp_path / "t/x.jsonl", records)
    (asked,) = load(tmp_path / "t/x.jsonl", tmp_path, split_of("Ada")).questions
    assert asked.answers == ("London", "Rome", "Oslo")


def test_lamas_own_layout(tmp_path):
    evidences = [
        {"masked_sentence": "Ada of [MASK].", "obj_surface": "London"},
        {"masked_sentence": "Ada of [MASK].", "obj_surface": "London"},
        {"masked_sentence": "[MASK] has Ada.", "obj_surface": "London"},
        {"masked_sentence": None, "obj_surface": "London"},
    ]
    record = {k: FACTS[0][k] for k in ("predicate_id", "sub_label", "obj_label")}
    write(tmp_path / "TREx/P19.jsonl", [{**record, "evidences": evidences}])
    write(tmp_path / "relations.jsonl", TEMPLATES)
    for path in (tmp_path, tmp_path / "TREx", tmp_path / "TREx/P19.jsonl"):
        pool = pool_of(path, tmp_path)
        assert [p.text for p in pool] == ["Ada of London.", "London has Ada."]
        asked = load(path, tmp_path, split_of("Ada"))
        assert len(asked.relevance[asked.questions[0].id]) == 2


@pytest.mark.parametrize(
    ("name", "records", "message"),
    [
        ("facts.jsonl", [FOREIGN], "no facts of T-REx"),
        ("facts.jsonl", ["text"], "Line 1 of .*facts.jsonl is not a JSON object"),
        ("facts.txt", FACTS, "holds no .jsonl"),
        ("relations.jsonl", [{"relation": "P19", "template": "[X] ."}], "Line 1 of"),
        ("relations.jsonl", [], "no relations.jsonl|is empty"),
    ],
    ids=["foreign", "corrupt", "no-files", "template", "no-templates"],
)
def test_bad_input(tmp_path, name, records, message):
    write(tmp_path / "l" / name, records)
    if name == "relations.jsonl":
        write(tmp_path / "l/facts.jsonl", FACTS)
    elif name.endswith(".jsonl"):
        write(tmp_path / "l/relations.jsonl", TEMPLATES)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "l", tmp_path, "train")
    with pytest.raises(UserError, match="no file or folder"):
        load(tmp_path / "absent", tmp_path, "train")
    (tmp_path / "m").mkdir()
    write(tmp_path / "m/n/facts.jsonl", FACTS)
    with pytest.raises(UserError, match=r"no relations\.jsonl in"):
        load(tmp_path / "m/n", tmp_path, "train")
