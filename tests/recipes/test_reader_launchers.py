"""The launchers of readers: they train, distil, report, can be asked, and go on."""

import io
import json
import shutil
import sys

import jax
import numpy as np
import pytest

import rlm_jax
from experiments import ask, fid
from rlm_jax.data import passages as passages_lib
from rlm_jax.data.question_answering import AnsweringConfig
from rlm_jax.errors import UserError
from rlm_jax.evaluate import answers, exact_match
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.readers import answering, reader
from rlm_jax.report import report
from rlm_jax.retrieval import encode_stream
from rlm_jax.retrievers import encoder_towers
from rlm_jax.retrievers.reading import ReadingConfig
from rlm_jax.train import checkpoint
from tests.recipes import shrunken

ENCODER = EncoderConfig(
    num_layers=1, width=16, num_heads=2, feed_forward_width=24, max_length=24,
    dropout=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, cache) -> AnsweringConfig:
    """32 passages that say where something is, and a question about each."""
    return shrunken.write_questions(tmp_path_factory.mktemp("questions"))


def small(corpus: AnsweringConfig, **fields) -> fid.Config:
    """The tiny preset with 2 steps of a one-layer reader of two passages."""
    config = fid.tiny()
    config.data, config.reading = corpus, ReadingConfig(num=2)
    config.vocab_size = 200
    config.method.k = 2
    config.method.encoder_decoder.encoder = ENCODER
    config.passage_length, config.target_length, config.batch_size = 24, 8, 4
    config.distil.method.encoder = EncoderConfig(**{**vars(ENCODER), "normalise": True})
    config.distil.batch_size, config.distil.vocab_size = 4, 200
    for part in (config, config.distil):
        part.train.steps, part.train.log_every, part.train.eval_every = 2, 1, 2
        part.train.checkpoint_every, part.validation_batches = 0, 1
    config.answers.batch_size, config.answers.numbers = 4, (1,)
    config.text.question_length = config.text.passage_length = 16
    for name, value in fields.items():
        setattr(config, name, value)
    return config


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A workdir in which readers, a twin and a distilled retriever were trained."""
    workdir = tmp_path_factory.mktemp("runs") / "fid"
    config = small(corpus)
    config.distil.rounds = 1
    return workdir, fid.run(config, workdir)


def test_a_run_reports_every_control(trained, corpus):
    workdir, result = trained
    assert result == report.read(workdir / "report.json")
    names = {"shuffled", "oracle", "bm25", "closed_book", "round_0"}
    assert set(result["controls"]) == names
    for figures in (result["metrics"], *result["controls"].values()):
        assert 0 <= figures["exact_match"] <= figures["f1"] <= 1
    protocol = result["protocol"]
    assert protocol["num_questions"] == 8
    assert set(protocol["by_number_of_passages"]) == {"1"}
    (taught,) = protocol["distillation"]
    assert {"rank_correlation", "answer_recall@1"} <= set(taught["after"])
    sources = protocol["reads"]
    assert sources["real"] != sources["bm25"] == sources["round_0"]
    said = [json.loads(x) for x in (workdir / "answers.jsonl").read_text().splitlines()]
    assert len(said) == 8 and names | {"real", "question"} <= set(said[0])
    assert (workdir / "plots" / "controls.png").exists()


def test_answers_can_be_asked_for(trained, monkeypatch, capsys, tmp_path):
    workdir, _ = trained
    config = ask.plain()
    config.question, config.json = "where is cat number 3 ?", True
    ask.run(config, workdir)
    (line,) = capsys.readouterr().out.splitlines()
    told = json.loads(line)
    assert told["question"] == config.question and len(told["passages"]) == 2
    shares = [passage["looked_at"] for passage in told["passages"]]
    assert sum(shares) == pytest.approx(1, abs=0.01)
    config = ask.plain()
    config.retriever, config.plot = "bm25", str(tmp_path / "fusion.png")
    monkeypatch.setattr(sys, "stdin", io.StringIO("where is cat number 3 ?\n\n"))
    ask.run(config, workdir)
    shown = capsys.readouterr()
    assert "cat number 3" in shown.out and "of what the answer was made" in shown.out
    assert "was not trained on the passages of bm25" in shown.err
    assert (tmp_path / "fusion.png").stat().st_size > 1000


def test_a_finished_run_goes_on_and_a_folder_is_a_reader(trained, corpus):
    """Nothing is trained or scored again, and the folder holds what was trained."""
    workdir, result = trained
    config = small(corpus)
    config.distil.rounds = 1
    again = fid.run(config, workdir)
    assert again is not None
    assert again["metrics"] == result["metrics"]
    assert again["controls"] == result["controls"]
    kept = reader.load(workdir)
    last = checkpoint.load_params(workdir / "reader_1")
    assert encode_stream.fingerprint(kept.params) == encode_stream.fingerprint(last)
    opened = rlm_jax.load(workdir)
    assert isinstance(opened, reader.ReaderModel)
    jax.tree.map(np.testing.assert_array_equal, opened.params, kept.params)
    assert kept.config.copy and kept.config.encoder_decoder.num_decoder_layers == 1


def test_a_reader_that_counted_no_matches_still_reads(trained, tmp_path):
    kept = reader.load(trained[0])
    assert kept.params["matches"].any()
    older = {name: x for name, x in kept.params.items() if name != "matches"}
    read = {"retriever": "bm25", "num": 2, "source": "x"}
    reader.save(tmp_path, kept._replace(params=older), read)
    again = reader.load(tmp_path)
    assert again.given == encode_stream.fingerprint(older)
    assert set(again.params) == set(kept.params) and not again.params["matches"].any()


def test_a_distilled_retriever_keeps_its_vocabulary(trained, corpus, tmp_path):
    """Its own tokenizer was taken, whatever the configuration said."""
    there = tmp_path / "run"
    shutil.copytree(trained[0], there)
    config = small(corpus)
    config.distil.rounds, config.distil.vocab_size = 1, 150
    with pytest.raises(UserError, match="vocab_size is 200 there and 150 here"):
        fid.run(config, there)


def test_a_reader_goes_on_from_another_runs(trained, corpus):
    """With its parameters, and as many passages and vectors as this run says."""
    workdir, _ = trained
    config = small(corpus)
    config.method.k, config.method.vectors = 1, 3
    pool = passages_lib.load(corpus.passages)
    given = reader.start(
        config.method, str(workdir), pool, vocab_size=0, seed=0, workdir=workdir
    )
    assert (given.config.k, given.config.vectors) == (1, 3) and given.config.copy
    kept = reader.load(workdir)
    jax.tree.map(np.testing.assert_array_equal, given.params, kept.params)


@pytest.mark.parametrize("name", ["cross_attention_every", "decoder_kv_heads"])
def test_a_given_t5_keeps_its_attention(corpus, golden_folder, tmp_path, name):
    config = small(corpus)
    setattr(config.method.t5, name, 2)
    with pytest.raises(UserError, match=f"{name}=., not 2"):
        reader.start(
            config.method, str(golden_folder / "hf" / "t5_v1_0"),
            passages_lib.load(corpus.passages), vocab_size=0, seed=0, workdir=tmp_path,
        )  # fmt: skip


def test_patterns_are_matched(corpus):
    """The rules of a run whose answers are regular expressions."""
    config = small(corpus).answers
    assert answering.rules(config)["matches"] is None
    config.patterns = True
    rules = answering.rules(config)
    assert rules["matches"] is exact_match.pattern_match
    assert rules["holds"] is answers.matches_pattern


@pytest.mark.parametrize(
    "folder", ["t5_v1_0", pytest.param("bert", marks=pytest.mark.slow)]
)
def test_a_reader_starts_from_what_is_given(corpus, tmp_path, golden_folder, folder):
    """A T5, or an encoder under a new decoder; its arrays are the run's first."""
    model = tmp_path / "model"
    model.mkdir()
    for path in (golden_folder / "hf" / folder).iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    pool = passages_lib.load(corpus.passages)
    tokenizer = encoder_towers.train_tokenizer(pool, 100)
    tokenizer.save(model)
    config = small(corpus, closed_book=False, init_from=str(model))
    config.method.copy = folder == "bert"
    config.train.steps = 0
    fid.run(config, tmp_path / "run")
    kept = reader.load(tmp_path / "run")
    given = reader.start(
        config.method, str(model), pool, vocab_size=0, seed=0, workdir=tmp_path
    )
    jax.tree.map(np.testing.assert_array_equal, kept.params, given.params)
    assert kept.config.architecture == {"bert": "encoder_decoder"}.get(folder, "t5")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"passage_length": 64}, "the encoder has 24 positions"),
        ({"target_length": 1}, "leave no room"),
        ({"init_from": "./nowhere"}, "nothing at ./nowhere, which init_from"),
        ({"reading": ReadingConfig("nowhere")}, "There is no retriever 'nowhere'"),
    ],
)
def test_bad_input_is_told_before_training(corpus, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        fid.run(small(corpus, **fields), tmp_path / "run")


def test_one_passage_has_no_order_to_distil(corpus, tmp_path):
    config = small(corpus, reading=ReadingConfig(num=1))
    config.distil.rounds = 1
    with pytest.raises(UserError, match="no order to learn from"):
        fid.run(config, tmp_path / "run")


def test_there_is_no_reader_in_another_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no reader to ask"):
        ask.run(ask.plain(), tmp_path)
