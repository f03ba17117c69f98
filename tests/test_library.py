"""The programs of docs/library.md, by the package alone; what `rlm_jax.load` opens."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import rlm_jax
from rlm_jax.errors import UserError
from rlm_jax.recipes.base_lm import BaseLM
from rlm_jax.retrievers.encoder_towers import Tower
from rlm_jax.retrievers.published_index import Retriever
from tests.recipes import shrunken
from tests.test_docs import code_blocks

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "library.md"
SMALLER = {
    "steps=200": "steps=2",
    "num_layers=2, width=128": "num_layers=1, width=32, num_heads=2",
    "vocab_size=1024": 'tokenizer="bytes"',
    "tokens=1024": "tokens=257",
    "max_tokens=2048": "max_tokens=257",
}


# They train three systems; that runs can be opened is tried with each system's own.
with_programs = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A folder in which the four programs have run, in one process."""
    folder = tmp_path_factory.mktemp("library")
    shrunken.write_corpus(folder / "texts")
    passages = [
        {"id": str(i), "title": "", "text": f"{text} {word}"}
        for i, (text, word) in enumerate(
            (text, word) for text in shrunken.SENTENCES for word in ("one", "two")
        )
    ]
    lines = "".join(json.dumps(passage) + "\n" for passage in passages)
    (folder / "passages.jsonl").write_text(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLM_CACHE", str(folder / "cache"))
        from rlm_jax.data import passages as passages_lib

        named = passages_lib.load(f"jsonl:{folder / 'passages.jsonl'}")
        shrunken.save_encoder(folder / "encoder", named)
    programs = code_blocks(PAGE.read_text(encoding="utf-8"), "python")
    assert len(programs) == 4
    text = "\n".join([*programs, "import sys; assert 'experiments' not in sys.modules"])
    for large, small in SMALLER.items():
        assert large in text
        text = text.replace(large, small)
    (folder / "program.py").write_text(text)
    environment = {"PYTHONPATH": str(ROOT), "RLM_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-P", "program.py"],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "output").write_text(done.stdout)
    return folder


@with_programs
def test_the_programs_print_figures(folder):
    lines = (folder / "output").read_text().splitlines()
    perplexity, knn, *found, replug = lines
    for line, name in ((perplexity, "lm"), (knn, "knn_lm")):
        report = json.loads((folder / f"runs/{name}/report.json").read_text())
        assert float(line.split()[0]) == report["metrics"]["perplexity"]
    assert len(found) == 2 and all(re.match(r"-?\d+\.\d+ \w", x) for x in found)
    real, off = map(float, replug.split())
    assert real != off and 0 < real < 20


def test_the_programs_use_public_names_alone():
    text = "\n".join(code_blocks(PAGE.read_text(encoding="utf-8"), "python"))
    assert not re.search(r"experiments|flags|\b_[a-z]|\._", text)


@pytest.fixture
def here(folder, monkeypatch) -> pathlib.Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RLM_CACHE", str(folder / "cache"))
    return folder


@with_programs
def test_load_opens_each_as_what_it_is(here):
    model, published = rlm_jax.load("runs/lm"), rlm_jax.load("runs/lm/decoder")
    assert isinstance(model, BaseLM) and isinstance(published, BaseLM)
    assert isinstance(rlm_jax.load("encoder"), Tower)
    retriever = rlm_jax.load("runs/encoded")
    assert isinstance(retriever, Retriever) and len(retriever.passages) == 6
    with pytest.raises(UserError, match="nothing to load in texts"):
        rlm_jax.load("texts")


@with_programs
def test_an_encoder_gives_a_vector_a_text(here):
    encoder = rlm_jax.load("encoder")
    assert isinstance(encoder, Tower)
    vectors = encoder.encode(["the cat sat", "a dog ran to the house", "the cat sat"])
    assert vectors.shape[0] == 3 and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[0], vectors[2], rtol=1e-6)


@with_programs
def test_a_model_needs_no_training_text(here, tmp_path, monkeypatch):
    """The folder of texts is renamed: the run and its decoder are what they were."""
    rows = np.arange(12, dtype=np.int32).reshape(2, 6)
    lengths = np.full(2, 6, np.int32)
    monkeypatch.setenv("RLM_CACHE", str(tmp_path / "empty"))
    (here / "texts").rename(here / "gone")
    try:
        model, published = rlm_jax.load("runs/lm"), rlm_jax.load("runs/lm/decoder")
    finally:
        (here / "gone").rename(here / "texts")
    assert isinstance(model, BaseLM) and isinstance(published, BaseLM)
    np.testing.assert_allclose(
        model.log_probs(rows, lengths, 3),
        published.log_probs(rows, lengths, 3),
        rtol=1e-6,
        atol=1e-6,
    )
    text = "the cat sat on the mat .\n a dog, größer"
    tokens = model.tokenizer.encode(text)
    np.testing.assert_array_equal(tokens, published.tokenizer.encode(text))
    assert published.tokenizer.decode(tokens) == model.tokenizer.decode(tokens)


@with_programs
def test_a_run_inherits_text_and_tokens(here):
    theirs, ours = (
        json.loads((here / f"runs/{name}/config.json").read_text())
        for name in ("lm", "knn_lm")
    )
    for field in ("corpus", "tokenizer", "vocab_size"):
        assert ours["data"][field] == theirs["data"][field]
    assert ours["fingerprint"] == theirs["fingerprint"]
    assert ours["identity"]["tokenizer"] == theirs["identity"]["tokenizer"]
