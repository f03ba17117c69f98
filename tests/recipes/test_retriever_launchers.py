"""The launchers of retrievers: they train, report, can be asked, and go on."""

import dataclasses
import io
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

from experiments import bm25, contriever, dpr, encode, search
from rlm_jax.data import text_encoding
from rlm_jax.data.collections import CollectionConfig
from rlm_jax.errors import UserError
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.recipes import runs
from rlm_jax.report import report
from rlm_jax.retrievers import encoder_towers, published_index
from rlm_jax.storage import run_files
from rlm_jax.train import checkpoint
from tests.recipes import shrunken

ENCODER = EncoderConfig(
    num_layers=1, width=16, num_heads=2, feed_forward_width=24, max_length=32,
    normalise=True, dropout=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def collection(tmp_path_factory, cache) -> str:
    """40 passages in BEIR's layout, a question about each, in two splits."""
    return shrunken.write_collection(tmp_path_factory.mktemp("beir") / "toy")


def shrink(config, collection: str):
    config.collection = CollectionConfig(collection)
    if hasattr(config, "train"):
        config.train.steps, config.train.log_every = 2, 1
        config.train.eval_every, config.train.checkpoint_every = 0, 0
        config.batch_size = 4
        config.method.encoder = dataclasses.replace(ENCODER)
        config.text.question_length, config.text.passage_length = 12, 16
        config.search.batch_tokens, config.search.k = 64, 10
    return config


def small_dpr(collection, **pairs):
    config = shrink(dpr.tiny(), collection)
    config.pairs = dpr.PairsConfig(collection, collection, mined=3, **pairs)
    config.vocab_size = 200
    return config


@pytest.fixture(scope="module")
def trained(collection, tmp_path_factory) -> pathlib.Path:
    """A workdir in which `experiments.dpr` has run two rounds."""
    workdir = tmp_path_factory.mktemp("runs") / "dpr"
    dpr.run(small_dpr(collection, rounds=2), workdir)
    return workdir


def test_bm25_finds_the_words(collection, tmp_path):
    config = shrink(bm25.tiny(), collection)
    config.judge.per_question = True
    made = bm25.run(config, tmp_path)
    assert made is not None
    assert made["metrics"]["ndcg@10"] > 0.9
    assert made["controls"]["shuffled"]["ndcg@10"] < 0.5
    run = run_files.read(tmp_path / "runs" / "real.trec.gz")
    assert len(run) == 20 and max(run["q1"], key=lambda p: run["q1"][p]) == "p1"
    lines = (tmp_path / "per_question.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first["id"] == "q1" and first["real"]["recall@1"] == 1.0


def test_dpr_reports_with_its_controls(trained):
    made = report.read(trained / "report.json")
    assert set(made["controls"]) == {"init", "bm25", "shuffled"}
    for figures in (made["metrics"], *made["controls"].values()):
        assert "ndcg@10" in figures
        assert all(0 <= x <= 1 for x in figures.values())
    for name in ("round_1", "round_2"):
        assert checkpoint.latest_step(trained / name / "checkpoints") == 2
    for name in ("plots/training.png", "plots/controls.png"):
        assert (trained / name).stat().st_size > 1000


def test_the_second_round_mines_with_the_model_of_the_first(trained):
    manifests = [
        json.loads((trained / f"round_{i}/negatives/manifest.json").read_text())
        for i in (1, 2)
    ]
    assert [m["identity"]["model"] == "bm25" for m in manifests] == [True, False]
    assert all(m["shape"] == [20, 3] for m in manifests)


def test_the_encoder_as_it_starts_can_mine(collection, tmp_path):
    config = small_dpr(collection, miner="model")
    config.pairs.miner = "grep"  # type: ignore
    with pytest.raises(UserError, match="pairs.miner is 'grep'"):
        dpr.run(config, tmp_path / "a")
    config.pairs.miner = "model"
    dpr.run(config, tmp_path / "b")
    manifest = tmp_path / "b/round_1/negatives/manifest.json"
    assert json.loads(manifest.read_text())["identity"]["model"] != "bm25"


def test_a_finished_run_is_judged_again_without_training(trained, collection, capsys):
    before = json.loads((trained / "report.json").read_text())
    config = small_dpr(collection, rounds=2)
    made = dpr.run(config, trained)
    assert made is not None and made["metrics"] == before["metrics"]
    shown = capsys.readouterr().err
    assert "resuming after 2 of 2 steps" in shown and "1/2" not in shown


@pytest.mark.slow
def test_in_batch_negatives_alone_and_two_towers(collection, tmp_path):
    config = small_dpr(collection, rounds=0)
    config.method.towers = "separate"
    made = dpr.run(config, tmp_path)
    assert made is not None
    assert not (tmp_path / "round_0" / "negatives").exists()
    towers = [
        encoder_towers.load(tmp_path / name) for name in ("encoder", "question_encoder")
    ]
    assert np.abs(towers[0].params["tokens"] - towers[1].params["tokens"]).max() > 0


@pytest.mark.slow  # test_identity.py has a language model's
@pytest.mark.parametrize("system", [dpr, contriever])
def test_a_run_goes_on_with_its_own_tokenizer(
    system, collection, corpus, tmp_path, monkeypatch
):
    """The cache is lost between two starts; a vocabulary is not trained again."""
    config = small_dpr(collection, rounds=0)
    if system is contriever:
        config = shrink(contriever.tiny(), collection)
        config.crops.corpus, config.crops.vocab_size = corpus, 200
        config.crops.window, config.method.queue_size = 20, 8
    monkeypatch.setenv("RLM_CACHE", str(tmp_path / "first"))
    system.run(config, tmp_path / "run")
    kept = (tmp_path / "run" / runs.TOKENIZER).read_bytes()
    monkeypatch.setenv("RLM_CACHE", str(tmp_path / "second"))
    monkeypatch.setattr(text_encoding, "train", lambda *_, **__: pytest.fail("trained"))
    config.train.steps = 3
    assert system.run(config, tmp_path / "run") is not None
    assert (tmp_path / "run" / runs.TOKENIZER).read_bytes() == kept


@pytest.mark.parametrize(
    "negatives", ["queue", pytest.param("batch", marks=pytest.mark.slow)]
)
def test_contriever_trains_on_crops(negatives, collection, corpus, cache, tmp_path):
    config = shrink(contriever.tiny(), collection)
    config.crops.corpus, config.crops.vocab_size = corpus, 200
    config.crops.window, config.negatives = 20, negatives
    config.method.queue_size = 8
    made = contriever.run(config, tmp_path)
    assert made is not None
    assert set(made["controls"]) == {"init", "bm25", "shuffled"}
    assert checkpoint.latest_step(tmp_path / "checkpoints") == 2


@pytest.mark.slow
def test_contriever_starts_from_an_encoder(trained, collection, corpus, tmp_path):
    config = shrink(contriever.tiny(), collection)
    config.crops.corpus, config.crops.window = corpus, 20
    config.method.queue_size = 8
    config.init_from = str(trained / "encoder")
    with pytest.raises(UserError, match="reads with another tokenizer"):
        contriever.run(config, tmp_path)
    config.crops.tokenizer = f"hf:{trained}/encoder/tokenizer.json"
    assert contriever.run(config, tmp_path / "b")


def test_an_encoder_of_a_run_encodes_and_answers(
    trained, collection, tmp_path, monkeypatch, capsys
):
    config = encode.tiny()
    config.encoder = str(trained / "encoder")
    config.collection.passages = collection
    config.text.question_length, config.text.passage_length = 12, 16
    config.search.batch_tokens = 64
    made = encode.run(config, tmp_path)
    identity = json.loads((tmp_path / "config.json").read_text())["identity"]
    reads = encoder_towers.load(config.encoder).tokenizer
    assert identity["question_tokenizer"] == reads.fingerprint
    assert made is not None and made["metrics"]["passages"] == 40
    assert 0 <= made["metrics"]["padding"] < 1
    answers = []
    for workdir in (tmp_path, trained):
        monkeypatch.setattr(sys, "stdin", io.StringIO("which cat sees ?\n\nnever\n"))
        search.run(search.Config(k=3), workdir)
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]  # one encoder, one collection
    config.collection.split, config.search.k = "test", 10
    judged = encode.run(config, tmp_path)
    theirs = report.read(trained / "report.json")
    assert judged is not None and judged["metrics"] == theirs["metrics"]
    assert answers[0].count("·") == 3 and "never" not in answers[0]


def test_bm25_is_asked_in_the_same_way(collection, tmp_path, monkeypatch, capsys):
    bm25.run(shrink(bm25.tiny(), collection), tmp_path)
    capsys.readouterr()
    asked = io.StringIO("which lamp holds ?\nxyzzy\n")
    monkeypatch.setattr(sys, "stdin", asked)
    search.run(search.Config(k=2), tmp_path)
    shown = capsys.readouterr().out
    assert "The lamp holds the" in shown and "nothing was found" in shown


def test_what_is_wrong_is_said(trained, collection, corpus, tmp_path):
    with pytest.raises(UserError, match="Name its folder with --config.encoder"):
        encode.run(encode.tiny(), tmp_path)
    config = encode.tiny()
    config.encoder = str(tmp_path / "nothing")
    with pytest.raises(UserError, match="There is no model at"):
        encode.run(config, tmp_path)
    with pytest.raises(UserError, match="There is nothing to search"):
        search.run(search.Config(), tmp_path)
    with pytest.raises(UserError, match="k is 0; choose 1 or more"):
        search.run(search.Config(k=0), tmp_path)
    config = small_dpr(collection)
    config.text.titles = "loud"  # type: ignore
    with pytest.raises(UserError, match="titles is 'loud'"):
        dpr.run(config, tmp_path / "dpr")
    config = shrink(contriever.tiny(), collection)
    config.negatives = "none"  # type: ignore
    config.crops.corpus, config.crops.vocab_size = corpus, 200
    with pytest.raises(UserError, match="negatives is 'none'"):
        contriever.run(config, tmp_path / "c")
    other = small_dpr(collection, rounds=2)
    other.batch_size = 5
    with pytest.raises(UserError, match="batch_size is 4 there and 5 here"):
        dpr.run(other, trained)


@pytest.mark.parametrize("launcher", [dpr, contriever], ids=["dpr", "contriever"])
def test_a_dry_run_leaves_nothing(
    launcher, collection, corpus, cache, tmp_path, capsys
):
    config = small_dpr(collection) if launcher is dpr else None
    if config is None:
        config = shrink(contriever.tiny(), collection)
        config.crops.corpus, config.crops.vocab_size = corpus, 200
        config.crops.window, config.method.queue_size = 20, 8
    launcher.run(config, tmp_path / "run", dry_run=True)
    shown = capsys.readouterr().err
    assert "40 passages" in shown and "questions" in shown and "total" in shown
    assert not (tmp_path / "run").exists()


def test_a_workdir_belongs_to_its_text(trained, collection, tmp_path):
    """The same names, another collection behind them."""
    stored = json.loads((trained / "config.json").read_text())
    assert stored["fingerprint"] and stored["text"]["titles"] == "join"
    folder = tmp_path / "toy"
    shutil.copytree(collection.partition(":")[2], folder)
    config = small_dpr(f"beir:{folder}", rounds=0)
    dpr.run(config, tmp_path / "run")
    with (folder / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "new", "title": "", "text": "more"}) + "\n")
    with pytest.raises(UserError, match="belongs to another run"):
        dpr.run(config, tmp_path / "run")


@pytest.mark.slow
def test_more_training_is_judged_and_asked_anew(collection, tmp_path):
    config = small_dpr(collection, rounds=0)
    dpr.run(config, tmp_path)
    config.train.steps = 3
    assert dpr.run(config, tmp_path) is not None
    assert len(list((tmp_path / "vectors").glob("real-*"))) == 2
    record = json.loads((tmp_path / published_index.FILE).read_text())
    assert (tmp_path / record["vectors"]).is_dir()
    assert published_index.open_run(tmp_path)[1](["which cat sees ?"], 2).ids.shape == (
        1,
        2,
    )


def test_another_encoder_cannot_ask(trained, collection, tmp_path):
    workdir = tmp_path / "dpr"
    shutil.copytree(trained, workdir)
    config = small_dpr(collection, rounds=0)
    dpr.run(config, tmp_path / "other")
    shutil.rmtree(workdir / "encoder")
    shutil.copytree(tmp_path / "other" / "encoder", workdir / "encoder")
    with pytest.raises(UserError, match="is not the one that"):
        published_index.open_run(workdir)


def test_texts_are_cut_to_the_encoders_positions(trained, collection, tmp_path):
    config = encode.tiny()
    config.encoder = str(trained / "encoder")  # 32 positions; the preset has 256 tokens
    config.collection.passages = collection
    assert encode.run(config, tmp_path)


def test_an_encoder_that_cannot_be_saved_is_not_trained(collection, tmp_path):
    config = small_dpr(collection)
    config.method.encoder.projection = 4
    with pytest.raises(UserError, match="projection=0"):
        dpr.run(config, tmp_path)
    assert not (tmp_path / "round_1").exists()


def test_measures_beyond_the_depth_are_left_out(collection, tmp_path):
    config = shrink(bm25.tiny(), collection)
    config.k = 5
    made = bm25.run(config, tmp_path)
    assert made is not None
    assert set(made["metrics"]) == {"recall@1", "recall@5"}


def test_questions_that_nobody_judged_are_refused(collection, tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question": "why ?"}) + "\n")
    config = shrink(bm25.tiny(), collection)
    config.collection.questions = f"jsonl:{path}"
    with pytest.raises(UserError, match="neither passages that answer them nor"):
        bm25.run(config, tmp_path / "run")
