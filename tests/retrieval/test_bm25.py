import dataclasses
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.retrieval import bm25
from rlm_jax.retrieval.bm25 import BM25Config
from rlm_jax.retrievers import lexical

PLAIN = BM25Config(stemmer="none", stop_words="none")
TEXTS = ["the cat sat", "a dog sat down", "cats and dogs", "", "the cat sat"]


@pytest.fixture
def index():
    return bm25.build(TEXTS, PLAIN, source="five texts")


def released_settings(arrays):
    """Of each array of scores its name, method, k1 and b."""
    options = json.loads(str(arrays["meta"]))["options"]
    for name in (n.removeprefix("scores_") for n in arrays if n.startswith("scores_")):
        k1, b = arrays["k1_b_defaults"].tolist()
        if name in options:
            told = re.fullmatch(r"k1=([\d.]+), b=([\d.]+)", options[name])
            assert told
            k1, b = map(float, told.groups())
        method = name.partition("_")[0].replace("plus", "+")
        yield f"scores_{name}", method, k1, b


@pytest.mark.parametrize("method", ["lucene", "robertson", "atire", "bm25+", "bm25l"])
def test_golden(golden, method):
    arrays = golden("bm25")
    settings = [s for s in released_settings(arrays) if s[1] == method]
    assert settings
    for array, _, k1, b in settings:
        assert_scores(arrays, arrays[array], method, k1, b)


def assert_scores(arrays, expected, method, k1, b):
    texts, queries = arrays["documents"].tolist(), arrays["queries"].tolist()
    config = dataclasses.replace(PLAIN, k1=k1, b=b, method=method)
    found = bm25.build(texts, config).search(queries, len(texts))
    for row in range(len(queries)):
        ids = found.ids[row][found.ids[row] >= 0]
        np.testing.assert_allclose(
            found.scores[row, : len(ids)], expected[row, ids], rtol=1e-5
        )
        assert (np.diff(found.scores[row, : len(ids)]) <= 0).all()
        # Texts that share no term with the query all have the score of an empty one.
        absent = np.setdiff1d(np.arange(len(texts)), ids)
        assert len(np.unique(expected[row, absent].round(5))) <= 1
    assert (found.ids >= 0).sum() > len(queries)


def test_is_the_equation(index):
    k1, b = PLAIN.k1, PLAIN.b
    average = np.mean([len(text.split()) for text in TEXTS])

    def score(query, text):
        words, total = text.split(), 0.0
        for term in query.split():
            df = sum(term in other.split() for other in TEXTS)
            tf = words.count(term)
            idf = math.log(1 + (len(TEXTS) - df + 0.5) / (df + 0.5))
            total += idf * tf / (tf + k1 * (1 - b + b * len(words) / average))
        return total

    query = "the dog sat sat"
    found = index.search([query], 5)
    expected = np.array([score(query, text) for text in TEXTS])
    assert found.ids[0].tolist() == [1, 0, 4, -1, -1]  # equal scores in row order
    np.testing.assert_allclose(found.scores[0, :3], expected[[1, 0, 4]], rtol=1e-6)
    assert (found.scores[0, 3:] == -np.inf).all()
    assert found.ids.dtype == np.int32 and found.scores.dtype == np.float32


@pytest.mark.parametrize("method", ["lucene", "bm25+", "bm25l"])
def test_queries_without_known_terms_find_nothing(method):
    index = bm25.build(TEXTS, dataclasses.replace(PLAIN, method=method))
    found = index.search(["", "!?", "unheard of"], 2)
    assert (found.ids == -1).all() and (found.scores == -np.inf).all()
    assert index.search(["dogs"], 5).ids[0].tolist() == [2, -1, -1, -1, -1]


def test_ties_are_cut_by_row():
    index = bm25.build(["same words"] * 50 + ["other"], PLAIN)
    for k in (1, 7, 49):
        assert index.search(["words"], k).ids[0].tolist() == list(range(k))


@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({}, ["don't", "cat", "run", "zürich", "x1"]),
        ({"stemmer": "none"}, "don t cat s running zürich x1".split()),
        (
            {"stemmer": "none", "stop_words": "none"},
            "i don t the cat s running in zürich x1".split(),
        ),
    ],
    ids=["default", "unstemmed", "plain"],
)
def test_terms(changes, terms):
    text = "Don't the CAT's, running in Zürich: x1!"
    if changes.get("stop_words") == "none":
        text = "I " + text
    config = dataclasses.replace(BM25Config(), **changes)
    assert bm25.analyser(config)(text) == terms


def test_program_text_is_found_by_the_words_in_its_names():
    texts = ["def _open_code(x)", "class FileHandle: x", "def opened(code_x)"]
    whole, parts = (
        bm25.build(texts, config).search(["code file open"], 3).ids[0].tolist()
        for config in (BM25Config(), bm25.program_text())
    )
    assert whole == [2, -1, -1] and parts == [1, 0, 2]


def test_names_are_told_where_they_have_parts(index, tmp_path):
    """What was stored before there was a choice is what is stored today."""
    older = {"k1": 0.9, "b": 0.4, "method": "lucene", "stemmer": "none"}
    older["stop_words"] = "none"
    assert bm25.fields(PLAIN) == older
    bm25.save(index, tmp_path / "whole")
    stored = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    assert stored["config"] == older
    assert bm25.load(tmp_path / "whole", config=PLAIN).config == PLAIN
    parts = dataclasses.replace(PLAIN, names="parts")
    bm25.save(bm25.build(TEXTS, parts), tmp_path / "parts")
    assert bm25.load(tmp_path / "parts", config=parts).config == parts
    for folder, wanted in (("whole", parts), ("parts", PLAIN)):
        with pytest.raises(UserError, match="names"):
            bm25.load(tmp_path / folder, config=wanted)
    assert lexical.fingerprint("x", bm25.fields(parts)) != lexical.fingerprint(
        "x", older
    )


def test_saves_and_loads(index, tmp_path):
    path = tmp_path / "index"
    bm25.save(index, path)
    loaded = bm25.load(path, config=PLAIN, source="five texts")
    assert isinstance(loaded.library.scores["data"], np.memmap)
    assert (loaded.num_entries, loaded.dim) == (index.num_entries, index.dim) == (5, 9)
    for found, expected in zip(
        loaded.search(["the cat", "dogs"], 4),
        index.search(["the cat", "dogs"], 4),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)
    assert [p.name for p in tmp_path.iterdir()] == ["index"]
    with pytest.raises(UserError, match="something at"):
        bm25.save(index, path)
    with pytest.raises(UserError, match="source = 'five texts'"):
        bm25.load(path, source="others")
    with pytest.raises(UserError, match="k1 = 0.9 where 2"):
        bm25.load(path, config=dataclasses.replace(PLAIN, k1=2.0))


@pytest.mark.parametrize("damage", ["altered", "added", "removed", "manifest"])
def test_damage_is_found(index, tmp_path, damage):
    path = tmp_path / "index"
    bm25.save(index, path)
    scores = path / "data.csc.index.npy"
    if damage == "altered":
        scores.write_bytes(scores.read_bytes()[:-1] + b"x")
    elif damage == "added":
        (path / "more.json").write_text("{}")
    elif damage == "removed":
        scores.unlink()
    else:
        (path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="delete it"):
        bm25.load(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("method", "tf", "method is 'tf'; choose one of lucene, "),
        ("stemmer", "x", "stemmer is 'x'; choose"),
        ("names", "x", "names is 'x'; choose one of whole, parts"),
        ("b", 2, "b is 2"),
        ("k1", math.nan, "k1 is nan"),
    ],
)
def test_a_configuration_that_does_not_fit(field, value, message):
    with pytest.raises(UserError, match=message):
        bm25.build(["x"], dataclasses.replace(BM25Config(), **{field: value}))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: i.search(["x"], 0), "k of at least 1"),
        (lambda i: i.search("a text", 1), "list of strings"),
        (lambda i: i.search(np.zeros((1, 8), np.float32), 1), "list of strings"),
        (lambda i: bm25.build([], PLAIN), "no passages"),
        (lambda i: bm25.build(["", "!"], PLAIN), "has a term"),
        (lambda i: bm25.load("nowhere"), "no index at nowhere"),
    ],
    ids=range(6),
)
def test_bad_input(index, call, message):
    with pytest.raises(UserError, match=message):
        call(index)


def test_missing_stemmer_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "Stemmer", None)
    with pytest.raises(UserError, match="PyStemmer"):
        bm25.build(["x"], BM25Config())


def test_import_does_not_start_the_backend():
    # jax.distributed joins processes only before the backend is there.
    code = (
        "from rlm_jax.retrieval import bm25\nfrom jax._src import xla_bridge\n"
        "raise SystemExit(bool(xla_bridge._backends))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
