import gzip
import json

import numpy as np
import pytest

from rlm_jax.data import docstrings, passages, questions, sources
from rlm_jax.data.passages import Passage
from rlm_jax.data.questions import Question
from rlm_jax.errors import UserError

DPR = [
    {
        "question": "who?",
        "answers": ["she"],
        "positive_ctxs": [{"title": "T", "text": "she did", "passage_id": "7"}],
        "hard_negative_ctxs": [
            {"title": "", "text": "he did", "psg_id": 8},
            {"title": "T", "text": "other text, same id", "passage_id": "7"},
        ],
    },
    {"question": "why?", "answers": [], "positive_ctxs": [], "hard_negative_ctxs": []},
    {
        "question": "whom?",
        "answers": ["[her]", "{"],
        "positive_ctxs": [{"title": "", "text": "he did", "psg_id": 8}],
    },
]


def write(path, content):
    data = content if isinstance(content, bytes) else content.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def load(name, tmp_path, split="train"):
    return questions.load(name, split, cache_dir=tmp_path / "cache")


def collection(tmp_path, ids):
    lines = [json.dumps({"id": id_, "text": f"text of {id_}"}) for id_ in ids]
    write(tmp_path / "passages.jsonl", "\n".join(lines))
    name = f"jsonl:{tmp_path}/passages.jsonl"
    return passages.load(name, cache_dir=tmp_path / "cache", progress=False)


@pytest.fixture
def beir(tmp_path):
    lines = [json.dumps({"_id": f"q{i}", "text": f"question {i}"}) for i in range(4)]
    write(tmp_path / "b" / "queries.jsonl.gz", "\n".join(lines))
    header = "query-id\tcorpus-id\tscore\n"
    write(
        tmp_path / "b/qrels/test.tsv",
        header + "q3\ta\t1\nq1\tb\t1\nq1\tc\t2\nq1\td\t0\n",
    )
    write(tmp_path / "b/qrels/dev.tsv.gz", header + "q0\ta\t1\n")
    return f"beir:{tmp_path}/b"


def test_beir(tmp_path, beir):
    loaded = load(beir, tmp_path, "test")
    assert loaded.questions == (
        Question("q1", "question 1"),
        Question("q3", "question 3"),
    )
    assert loaded.relevance == {"q1": {"b": 1, "c": 2, "d": 0}, "q3": {"a": 1}}
    assert len(loaded) == 2 and len(loaded.passages) == 0
    validation = load(beir, tmp_path, "validation")
    assert validation.relevance == {"q0": {"a": 1}}
    assert validation.fingerprint != loaded.fingerprint
    pairs = questions.resolve(loaded, collection(tmp_path, "dcb"))
    assert [rows.tolist() for rows in pairs.positives] == [[1, 2], []]
    assert [rows.tolist() for rows in pairs.negatives] == [[0], []]
    assert pairs.num_missing == 1 and pairs.positives[0].dtype == np.int32
    with pytest.raises(UserError, match="None of the questions"):
        questions.resolve(loaded, collection(tmp_path, "xyz"))
    with pytest.raises(UserError, match="no split 'train' .* dev, test"):
        load(beir, tmp_path, "train")


def test_beir_judgements_need_their_questions(tmp_path, beir):
    write(tmp_path / "b/qrels/train.tsv", "query-id\tcorpus-id\tscore\nq9\ta\t1\n")
    with pytest.raises(UserError, match="'q9'"):
        load(beir, tmp_path)
    write(tmp_path / "b/qrels/train.tsv", "query-id\tcorpus-id\tscore\nq1\ta\n")
    with pytest.raises(UserError, match=r"Line 2 of .*train\.tsv"):
        load(beir, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q1\ta\n", r"Line 1 of .*is not a question's id"),  # no header either
        ("q1\ta\tone\n", r"Line 1 of .*a whole grade"),
        ("query-id\tcorpus-id\n", r"Line 1 of .*a whole grade"),
        ("q1\ta\t1\nquery-id\tcorpus-id\tscore\n", "Line 2 of"),
        ("q1\ta\t1.5\n", "Line 1 of .*a whole grade"),
        (f"q1\ta\t{10**20}\n", "Line 1 of"),
        ("q1\ta\t10001\n", "Line 1 of .*is not a grade from -10,000 to 10,000"),
        ("q1\ta\t1\nq1\tb\t1\nq1\ta\t0\n",
         "Line 3 of .* judges the passage 'a' for the question 'q1' with the grade 0, "
         "and an earlier line with 1"),
    ],
)  # fmt: skip
def test_judgements_that_are_damaged(tmp_path, beir, content, message):
    write(tmp_path / "b/qrels/train.tsv", content)
    with pytest.raises(UserError, match=message) as error:
        load(beir, tmp_path)
    assert "train.tsv" in str(error.value)


def test_judgements_of_many_forms(tmp_path, beir):
    """With a header or without; the same judgement twice counts once."""
    for header in ("", "query-id\tcorpus-id\tscore\n", "QID\tdocid\tLabel\n"):
        write(tmp_path / "b/qrels/train.tsv", f"{header}q1\ta\t-1\nq1\tb\t3\nq1\tb\t3")
        assert load(beir, tmp_path).relevance == {"q1": {"a": -1, "b": 3}}


@pytest.mark.parametrize("indent", [None, 4])
@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_dpr_training_file(tmp_path, monkeypatch, indent, chunk):
    monkeypatch.setattr("rlm_jax.data.files._CHUNK", chunk)
    write(tmp_path / "nq.json.gz", json.dumps(DPR, indent=indent))
    loaded = load(f"dpr:{tmp_path}/nq.json.gz", tmp_path)
    assert [q.text for q in loaded.questions] == ["who?", "why?", "whom?"]
    assert loaded.questions[2].answers == ("[her]", "{")
    carried = list(loaded.passages)
    assert carried[:2] == [Passage("7", "T", "she did"), Passage("8", "", "he did")]
    assert len(carried) == 3 and carried[2].id.startswith("text-")
    assert loaded.relevance == {
        "1": {"7": 1, "8": 0, carried[2].id: 0},
        "3": {"8": 1},
    }
    pairs = questions.resolve(loaded)
    assert [rows.tolist() for rows in pairs.positives] == [[0], [], [1]]
    assert [rows.tolist() for rows in pairs.negatives] == [[1, 2], [], []]


def test_a_collection_comes_before_what_is_carried(tmp_path):
    write(tmp_path / "nq.json", json.dumps(DPR))
    loaded = load(f"dpr:{tmp_path}/nq.json", tmp_path)
    pairs = questions.resolve(loaded, collection(tmp_path, ["1", "7"]))
    assert [rows.tolist() for rows in pairs.positives] == [[1], [], [3]]
    assert [rows.tolist() for rows in pairs.negatives] == [[3, 4], [], []]
    assert pairs.pool[1].text == "text of 7" and pairs.pool[3].text == "he did"
    assert len(pairs.pool) == 5 and pairs.pool[-1] == pairs.pool[4]
    assert [p.id for p in pairs.pool[:3]] == ["1", "7", "7"]


def test_dpr_question_file(tmp_path):
    content = 'who?\t[\'she\', "it\'s"]\nwhat "x"?\t"[""a ""]"\n'
    for file in ("nq-test.csv", "nq-test.tsv.gz"):
        write(tmp_path / file, content)
        loaded = load(f"dpr:{tmp_path}/{file}", tmp_path)
        assert loaded.questions == (
            Question("1", "who?", ("she", "it's")),
            Question("2", 'what "x"?', ("a ",)),
        )
        assert loaded.relevance == {}


@pytest.mark.parametrize(
    ("record", "question", "relevance", "texts"),
    [
        (
            {"id": "x", "question": "q", "answers": ["a"], "passage_id": "p"},
            Question("x", "q", ("a",)),
            {"x": {"p": 1}},
            [],
        ),
        (
            {"query": "q", "answer": "a", "positive_ids": [3, "p"]},
            Question("1", "q", ("a",)),
            {"1": {"3": 1, "p": 1}},
            [],
        ),
        (
            {"text": "q", "golden_answers": ["a", "b"]},
            Question("1", "q", ("a", "b")),
            {},
            [],
        ),
        ({"_id": 5, "question": "q", "sentence": "s"}, Question("5", "q"), None, ["s"]),
        (
            {"question": "q", "positive": [{"text": "s", "title": "t"}, "u", "u"]},
            Question("1", "q"),
            None,
            ["s", "u"],
        ),
    ],
    ids=["ids", "numbers", "answers", "sentence", "several"],
)
def test_jsonl(tmp_path, record, question, relevance, texts):
    write(tmp_path / "q-train.jsonl", json.dumps(record) + "\n")
    loaded = load(f"jsonl:{tmp_path}/q-{{split}}.jsonl", tmp_path)
    assert loaded.questions == (question,)
    assert [p.text for p in loaded.passages] == texts
    if relevance is None:
        relevance = {question.id: {p.id: 1 for p in loaded.passages}}
    assert loaded.relevance == relevance


def test_stdlib_questions_are_answered_by_stdlib_passages(tmp_path, monkeypatch):
    found = [
        docstrings.Documented(f"m{i}.f", f"m{i}", f"what is {i}", f"def f(): {i}")
        for i in range(200)
    ]
    monkeypatch.setattr(docstrings, "extract", lambda: iter(found))
    monkeypatch.setattr(docstrings, "fingerprint", lambda: "these")
    pool = passages.load("stdlib", cache_dir=tmp_path / "cache", progress=False)
    splits = [load("stdlib", tmp_path, s) for s in ("train", "validation", "test")]
    assert sum(map(len, splits)) == len(pool) == 200 and all(map(len, splits))
    for split in splits:
        pairs = questions.resolve(split, pool)
        for question, (row,) in zip(split.questions, pairs.positives, strict=True):
            assert question.text == f"what is {pool[int(row)].title[1:]}"
    with pytest.raises(UserError, match="no split 'dev' of stdlib"):
        load("stdlib", tmp_path, "dev")


def test_stdlib_names_are_the_answers(tmp_path, monkeypatch):
    found = [
        docstrings.Documented("m.C.f#2", "m", "what is it", "def f(): 0"),
        docstrings.Documented("m.g", "m", "what is that", "def g(): 0"),
    ]
    monkeypatch.setattr(docstrings, "extract", lambda: iter(found))
    monkeypatch.setattr(docstrings, "fingerprint", lambda: "these")
    split = sources.stdlib_split("m")
    plain, named = (load(name, tmp_path, split) for name in ("stdlib", "stdlib_names"))
    assert [q.answers for q in named.questions] == [("f",), ("g",)]
    assert [q._replace(answers=()) for q in named.questions] == list(plain.questions)
    assert named.relevance == plain.relevance
    assert named.fingerprint != plain.fingerprint


FID = [
    {
        "id": "0",
        "question": "who?",
        "answers": ["she"],
        "target": "her",
        "ctxs": [
            {"id": "9", "title": "T", "text": "she did", "score": "2.5"},
            {"id": "4", "title": "", "text": "he did", "score": 7},
            {"id": "9", "title": "T", "text": "she did", "score": 1},
        ],
    },
    {"question": "why?", "target": "so", "ctxs": [{"title": "T", "text": "she did"}]},
    {"question": "when?", "answers": []},
]


@pytest.mark.parametrize("form", ["array", "lines"])
def test_fid_files_give_passages_in_their_order(tmp_path, form):
    lines = "\n".join(map(json.dumps, FID))
    write(tmp_path / "nq.json", json.dumps(FID) if form == "array" else lines)
    loaded = load(f"fid:{tmp_path}/nq.json", tmp_path)
    assert [q.answers for q in loaded.questions] == [("she",), ("so",), ()]
    assert [q.id for q in loaded.questions] == ["0", "2", "3"]
    assert loaded.relevance == {}  # nobody has judged them
    (other,) = loaded.given["2"]
    assert loaded.given == {"0": {"9": 2.5, "4": 7.0}, "2": {other: 1.0}}
    assert list(loaded.given["0"]) == ["9", "4"]
    assert [p.id for p in loaded.passages] == ["9", "4", other]
    assert loaded.passages[2].text == "she did" and other.startswith("text-")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"ctxs": []}]', 'Record 1 .*string "question"'),
        ('{"question": "q", "ctxs": {"a": 1}}', '"ctxs" is no list'),
        ('{"question": "q", "ctxs": [{"title": "t"}]}', "passage has no text"),
        ('{"question": "q", "ctxs": [{"text": "t", "score": "x"}]}', "score 'x'"),
        ('{"question": "q", "ctxs": [{"text": "t", "score": NaN}]}', "score nan"),
        ("{", "Line 1 .*JSON object"),
        ("[3]", "Element 1"),
    ],
    ids=range(7),
)
def test_bad_fid_files(tmp_path, content, message):
    write(tmp_path / "nq.json", content)
    with pytest.raises(UserError, match=message):
        load(f"fid:{tmp_path}/nq.json", tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("q.jsonl", '{"answer": "x"}', 'Line 1 .*string "question"'),
        ("q.jsonl", '{"question": " "}', "Line 1"),
        ("q.jsonl", '{"question": "q", "answers": [1]}', "answer is not a string"),
        ("q.jsonl", '{"question": "q", "passage": {}}', "passage has no text"),
        ("q.jsonl", '{"question": "q", "passage_id": [{}]}', "passage's id"),
        ("q.jsonl", '{"id": 1, "text": "q"}\n{"id": "1", "text": "q"}', "id '1' .*two"),
        ("q.jsonl", "\n", "no questions"),
        ("q.jsonl", b'{"question": "\xff"}', "UTF-8"),
        ("q.csv", "who?\t__import__('os')\n", "Line 1 .*list of answers"),
        ("q.csv", "who?\n", "Line 1"),
        ("q.json", '{"question": "q"}', "Element 2"),
        ("q.json", '[{"question": "q"}', "Element 2"),
        ("q.json", '[{"question": "q"}, 3]', "Element 2"),
        ("q.json", '[{"answers": []}]', "Element 1 .*question"),
        ("q.json", "[]", "no questions"),
    ],
    ids=range(15),
)
def test_bad_input(tmp_path, file, content, message):
    write(tmp_path / file, content)
    kind = "jsonl" if file.endswith("jsonl") else "dpr"
    with pytest.raises(UserError, match=message):
        load(f"{kind}:{tmp_path}/{file}", tmp_path)
    with pytest.raises(UserError, match="no questions 'text:x'"):
        load("text:x", tmp_path)


@pytest.mark.parametrize("file", ["questions.jsonl", "passages/text", "manifest.json"])
def test_damage_is_found(tmp_path, file):
    write(tmp_path / "nq.json", json.dumps(DPR))
    load(f"dpr:{tmp_path}/nq.json", tmp_path)
    (path,) = (tmp_path / "cache" / "questions").glob(f"*/{file}")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="delete the folder"):
        load(f"dpr:{tmp_path}/nq.json", tmp_path)


def test_only_questions_with_a_passage_teach(tmp_path):
    write(tmp_path / "train.json", json.dumps(DPR))
    loaded = load(f"dpr:{tmp_path}/train.json", tmp_path)
    asked = questions.answerable(loaded)
    assert asked.texts == ["who?", "whom?"] and asked.num_left_out == 1
    assert asked.answers == [("she",), ("[her]", "{")]
    pairs = asked.pairs
    texts = [[pairs.pool[i].text for i in rows] for rows in pairs.positives]
    assert texts == [["she did"], ["he did"]]
    assert [len(rows) for rows in pairs.negatives] == [2, 0]
    assert asked.fingerprint == f"{loaded.fingerprint[:16]}-own"
    pool = collection(tmp_path, ["7", "8"])
    with_pool = questions.answerable(loaded, pool)
    assert with_pool.fingerprint == (
        f"{loaded.fingerprint[:16]}-{pool.fingerprint[:16]}"
    )
    texts = [
        [with_pool.pairs.pool[i].text for i in r] for r in with_pool.pairs.positives
    ]
    assert texts == [["text of 7"], ["text of 8"]]
