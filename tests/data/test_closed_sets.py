"""Closed sets in the layouts that they have."""

import json

import pytest

from rlm_jax.data import closed_sets
from rlm_jax.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for name in ("agn", "sst2", "mr", "subj", "rte", "cb"):
        (tmp_path / name).mkdir()

    def write(name, *lines):
        (tmp_path / name).write_text("\n".join(lines) + "\n")

    write(
        "agn/test.csv", "Class Index,Title,Description", '3,Fears,"a, b"', "4,The,Race"
    )
    write("agn/label_names_kb.txt", "politics, law", "sports", "business", "science")
    write("sst2/dev.tsv", "__label__4\tA lovely film .", "__label__3\tSo .",
          "__label__1\tBad .")  # fmt: skip
    write("sst2/label_names_sentidict.txt", "bad, can't", "good, fine")
    write("mr/test.csv", "label,text", '0,"silly and tedious ."', "1,good")
    write("subj/subj.all.txt", "0 smart and alert . ", "1 a man goes home . ")
    record = {
        "premise": "It rained.",
        "hypothesis": "It was wet.",
        "label": "entailment",
    }
    for name in ("rte/val.jsonl", "cb/dev.jsonl"):
        write(name, json.dumps(record))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "first", "label", "labels"),
    [
        ("agn", "Fears a, b This topic is about [MASK].", "3", ["1", "2", "3", "4"]),
        ("sst2", "A lovely film . It was [MASK].", "positive",
         ["negative", "positive"]),
        ("mr", "silly and tedious . It was [MASK].", "negative",
         ["negative", "positive"]),
        ("subj", "smart and alert . This is a [MASK].", "0", ["0", "1"]),
        ("rte", "It rained. It was wet? The answer is [MASK].", "entailment",
         ["entailment", "not_entailment"]),
        ("cb", "It rained. It was wet? The answer is [MASK].", "entailment",
         ["entailment", "contradiction", "neutral"]),
    ],
)  # fmt: skip
def test_each_layout(folder, name, first, label, labels):
    for path in (folder, folder / name):
        task = closed_sets.load(f"{name}:{path}")
        assert (task.texts[0], task.labels[0]) == (first, label)
        assert list(task.words) == labels and all(task.words.values())
    if name == "sst2":
        assert task.labels == ["positive", "negative"]  # the neutral one is left out
        assert task.words["negative"] == ["bad", "can't"]


def test_a_draw_is_the_same_each_time(folder):
    rows = [f"{i % 2},text {i}" for i in range(30)]
    (folder / "mr/test.csv").write_text("\n".join(["label,text", *rows]))
    first, again = (closed_sets.load(f"mr:{folder}", count=7) for _ in range(2))
    assert first == again and len(set(first.texts)) == 7


def test_bad_input(folder):
    with pytest.raises(UserError, match="no closed set 'imdb:x'"):
        closed_sets.load("imdb:x")
    (folder / "mr/test.csv").write_text("label,words\n1,good\n")
    with pytest.raises(UserError, match="columns label, text"):
        closed_sets.load(f"mr:{folder}")
    (folder / "agn/label_names_kb.txt").write_text("politics\n")
    with pytest.raises(UserError, match="words of 1 labels"):
        closed_sets.load(f"agn:{folder}")
    (folder / "subj/subj.all.txt").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        closed_sets.load(f"subj:{folder}")
    (folder / "rte/val.jsonl").write_text('{"premise": 1}\n')
    with pytest.raises(UserError, match="premise"):
        closed_sets.load(f"rte:{folder}")
    (folder / "sst2/dev.tsv").write_text("__label__3\tso\n")
    with pytest.raises(UserError, match="no text"):
        closed_sets.load(f"sst2:{folder}")
