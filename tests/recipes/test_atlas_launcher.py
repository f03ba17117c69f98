"""The launcher of Atlas: reader and retriever learn, report, can be asked, go on."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import rlm_jax
from experiments import ask, atlas, reader_signals
from rlm_jax.errors import UserError
from rlm_jax.methods import atlas as method
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.readers.reader import ReaderModel
from rlm_jax.recipes import base_lm
from rlm_jax.recipes.readers import atlas_config
from rlm_jax.recipes.stale_training import warn_of_collapse
from rlm_jax.report import report
from rlm_jax.retrievers import encoder_towers, trained_towers
from rlm_jax.retrievers.published_index import Retriever
from rlm_jax.train import checkpoint, metrics
from rlm_jax.train.rounds import RefreshConfig
from tests.recipes import shrunken

ENCODER = EncoderConfig(
    num_layers=1, width=16, num_heads=2, feed_forward_width=24, max_length=24,
    dropout=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, cache):
    return shrunken.write_questions(tmp_path_factory.mktemp("questions"))


def small(corpus, **fields) -> atlas.Config:
    """The tiny preset with 4 steps of one-layer encoders, indexed twice."""
    config = atlas.tiny()
    config.data, config.vocab_size = corpus, 200
    config.method.reader.k, config.batch_size = 2, 4
    config.method.reader.encoder_decoder.encoder = ENCODER
    config.method.encoder = dataclasses.replace(ENCODER, normalise=True)
    config.passage_length, config.target_length = 24, 8
    config.text.question_length = config.text.passage_length = 16
    config.train.steps, config.train.log_every, config.train.eval_every = 4, 1, 2
    config.train.checkpoint_every, config.validation_batches = 0, 1
    config.refresh = RefreshConfig(keys_every=(2,))
    config.answers.batch_size, config.answers.numbers = 4, (1,)
    for name, value in fields.items():
        setattr(config, name, value)
    return config


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A workdir in which Atlas and its twin were trained."""
    workdir = tmp_path_factory.mktemp("runs") / "atlas"
    config = small(corpus, candidates=3, left_out="own")
    return workdir, config, atlas.run(config, workdir)


def test_a_run_reports_every_control(trained):
    workdir, _, result = trained
    assert result == report.read(workdir / "report.json")
    controls = {"init", "bm25", "shuffled", "oracle", "closed_book"}
    assert set(result["controls"]) == controls
    for figures in (result["metrics"], *result["controls"].values()):
        assert 0 <= figures["exact_match"] <= figures["f1"] <= 1
    protocol = result["protocol"]
    (refreshed,) = protocol["refreshes"]
    assert refreshed["step"] == 2 and 0 <= refreshed["stale_recall"] <= 1
    assert protocol["own_evidence"] == "left_out"
    assert set(protocol["spread"]) == {"real", "init"}
    recalls = protocol["answer_recall_of_all"]
    assert set(recalls) == {"real", "init", "bm25"}
    wanted = [result["metrics"][f"answer_recall@{k}"] for k in (1, 2)]
    assert list(recalls["real"].values()) == pytest.approx(wanted)
    assert protocol["spread"]["real"]["distinct_passages"] >= 2


def test_training_is_judged_in_the_index_that_serves(trained):
    """At steps 2 and 4, both by an index two steps old."""
    workdir, _, _ = trained
    records = metrics.read(workdir / "joint")
    told = [record for record in records if record["split"] == "validation"]
    assert [(x["step"], x["index_age"]) for x in told] == [(2, 2), (4, 2)]
    names = {"answer_recall", "distinct_passages", "commonest_share", "exact", "loss"}
    assert all(0 <= x["index_recall"] <= 1 for x in told)
    assert all(names <= set(record) for record in told)


def test_own_passages_are_dropped_and_others_take_their_places():
    found = np.array([[3, 1, 2, 0], [4, 5, -1, -1]], np.int32)
    own = [np.array([3, 2]), np.array([4])]
    kept = trained_towers.without_own(found, own, 2)
    assert kept.tolist() == [[1, 0], [5, -1]]
    with pytest.raises(UserError, match="5 passages, and 3 are to be read beside 4"):
        trained_towers.depth(3, 4, range(5))  # type: ignore[arg-type]


def test_answers_can_be_asked_for_and_a_folder_is_a_reader(trained, capsys):
    workdir, _, _ = trained
    config = ask.plain()
    config.question, config.json = "where is cat number 3 ?", True
    ask.run(config, workdir)
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert len(told["passages"]) == 2 and "was not trained on" not in shown.err
    opened = rlm_jax.load(workdir)
    assert isinstance(opened, ReaderModel)
    last = checkpoint.load_params(workdir / "joint")
    jax.tree.map(np.testing.assert_array_equal, opened.params, last["reader"])
    found = rlm_jax.load(workdir / "retriever")
    assert isinstance(found, Retriever)
    assert len(found.search(["where is cat number 3 ?"], 3).ids[0]) == 3


def test_signals_stand_side_by_side(trained, tmp_path, monkeypatch):
    """Alone and removed are what pdist and loop say, by definition."""
    workdir, _, _ = trained
    text = lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    told = lambda tokens, lengths, last: -np.ones((len(tokens), last), np.float32)
    model = SimpleNamespace(log_probs=told, tokenizer=SimpleNamespace(encode=text))
    monkeypatch.setattr(base_lm, "load", lambda name, data: model)
    config = reader_signals.plain()
    config.reader, config.language_model = str(workdir), "any"
    config.questions, config.batch_size = 5, 2
    result = reader_signals.run(config, tmp_path / "signals")
    assert result is not None
    table = result["protocol"]["signals"]
    names = {"pdist", "emdr2", "loop", "adist", "fid_attention", "retriever"}
    assert set(table) == names | {"replug_lsr", "true change"}
    assert table["pdist"]["added"] == table["loop"]["removed"] == 1
    assert table["true change"]["average"] == table["true change"]["best"] == 1
    assert table["replug_lsr"]["average"] == 0  # all alike
    assert result["protocol"]["own_evidence"] == "left_out"
    every = json.loads((tmp_path / "signals" / "signals.json").read_text())
    assert np.shape(every["average"]) == (5, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reader": ""}, "Whose signals"),
        ({"reader": "./nowhere"}, "nowhere"),
        ({"num": 9}, "2\\^9 subsets"),
        ({"prompt": "{passage}"}, "lacks"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_signals_of_nothing(trained, tmp_path, fields, message):
    config = reader_signals.plain()
    config.reader = str(trained[0])
    for name, value in fields.items():
        setattr(config, name, value)
    with pytest.raises(UserError, match=message):
        reader_signals.run(config, tmp_path / "signals")


def test_a_finished_run_goes_on(trained):
    """Nothing is trained again, and another configuration is refused."""
    workdir, config, result = trained
    again = atlas.run(config, workdir)
    assert again is not None and again["metrics"] == result["metrics"]
    other = dataclasses.replace(config, candidates=2)
    with pytest.raises(UserError, match="candidates is 3 there and 2 here"):
        atlas.run(other, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["spans", "prefix"])
def test_texts_alone_are_learnt_from(corpus, tmp_path, task):
    config = small(corpus, task=task, left_out="title", closed_book=False)
    config.also_reads, config.train.steps = (), 2
    config.train.log_every = 2
    result = atlas.run(config, tmp_path / "run")
    assert result is not None and result["protocol"]["task"] == task
    (told,) = (x for x in metrics.read(tmp_path / "run" / "joint") if "exact" in x)
    assert np.isfinite(told["loss"]) and "answer_recall" not in told


@pytest.mark.slow
def test_query_side_training_leaves_passages_alone(corpus, tmp_path):
    config = small(corpus, closed_book=False, also_reads=())
    config.method.towers, config.method.trained = "separate", "query"
    config.method.loss = "emdr2"
    config.retriever_optim.weight_decay = 0.1
    atlas.run(config, tmp_path / "run")
    before, after = (
        {
            side: encoder_towers.load(tmp_path / "run" / name / side).params
            for side in ("encoder", "question_encoder")
            if (tmp_path / "run" / name / side).exists()
        }
        for name in ("init", "retriever")
    )
    same = jax.tree.map(
        lambda a, b: bool((a == b).all()), before["encoder"], after["encoder"]
    )
    assert all(jax.tree.leaves(same))
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), before["encoder"], after["question_encoder"]
    )
    assert any(jax.tree.leaves(moved))


@pytest.mark.slow
def test_a_worker_beside_the_training(corpus, tmp_path):
    """Another process encodes; the index of step 2 serves from step 3 on."""
    refresh = RefreshConfig("overlapped", (2,), lag=1)
    config = small(corpus, refresh=refresh, closed_book=False, also_reads=())
    result = atlas.run(config, tmp_path / "run")
    assert result is not None
    (refreshed,) = result["protocol"]["refreshes"]
    assert refreshed["step"] == 3


def test_a_collapse_is_told(capsys):
    ids = np.stack([np.full(16, 7), 20 + np.arange(16)], axis=1).astype(np.int32)
    warn_of_collapse(ids, 100, 5)
    assert "100% of the questions find the same" in capsys.readouterr().err
    warn_of_collapse(np.arange(32, dtype=np.int32).reshape(16, 2), 100, 5)
    warn_of_collapse(ids, 3, 5)  # nearly all that there are
    warn_of_collapse(ids[:15], 100, 5)
    assert capsys.readouterr().err == ""


@pytest.mark.slow  # as in test_realm_launcher.py
def test_a_dry_run_tells_sizes_and_trains_nothing(corpus, tmp_path, capsys):
    atlas.run(small(corpus), tmp_path / "run", dry_run=True)
    shown = capsys.readouterr().err
    assert (
        "an index of 32 vectors of width 16" in shown
        and "one step of the whole batch" in shown
    )
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"candidates": 1}, "choose at least so many"),
        ({"candidates": 64}, "give more passages"),
        ({"left_out": "title"}, "not all of a title"),
        ({"task": "spans"}, "would give away what is hidden"),
        ({"refresh": RefreshConfig(keys_every=())}, "keys_every"),
        ({"refresh": RefreshConfig("external", (0,))}, "never looks for an index"),
        ({"passage_length": 64}, "the encoder has 24 positions"),
        ({"retriever_from": "./nowhere"}, "nowhere"),
        ({"batch_size": 64}, "choose another batch size"),
    ],
)
def test_bad_input_is_told_before_training(corpus, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        atlas.run(small(corpus, **fields), tmp_path / "run")
    assert not (tmp_path / "run" / "joint" / "checkpoints").exists()


def test_one_passage_has_no_order_to_learn(corpus, tmp_path):
    config = small(corpus)
    config.method.reader.k = 1
    with pytest.raises(UserError, match="no order to learn from"):
        atlas.run(config, tmp_path / "run")


@pytest.mark.parametrize("name", atlas.PRESETS)
def test_presets_fit_together(name):
    config = atlas.PRESETS[name]()
    atlas_config.check(config)
    method.check(config.method)


def test_an_index_of_another_encoder(trained, tmp_path):
    """Put beside a retriever that did not make it, or into a run in training."""
    workdir, config, _ = trained
    there = tmp_path / "run"
    shutil.copytree(workdir, there)
    other = workdir / "init" / "encoder" / "model.safetensors"
    shutil.copy(other, there / "retriever" / "encoder" / "model.safetensors")
    with pytest.raises(UserError, match="is not the one that .* was made with"):
        rlm_jax.load(there / "retriever")
    (path,) = (there / "joint" / "indexes").glob("step_*/manifest.json")
    path.write_text(path.read_text().replace('"tokenizer": "', '"tokenizer": "x'))
    train = dataclasses.replace(config.train, steps=6)
    with pytest.raises(UserError, match="step_2"):
        atlas.run(dataclasses.replace(config, train=train), there)


def test_a_passage_store_that_changed(trained, tmp_path):
    workdir, config, _ = trained
    there = tmp_path / "run"
    there.mkdir()
    stored = json.loads((workdir / "config.json").read_text())
    stored["fingerprint"] = "another"
    shrunken.rewrite(there / "config.json", stored)
    with pytest.raises(UserError, match="fingerprint is 'another' there"):
        atlas.run(config, there)


def test_another_vocabulary_of_the_retriever(trained, tmp_path):
    """Two letters with each other's ids: as many words, and the same shapes."""
    workdir, config, _ = trained
    there = tmp_path / "run"
    (there / "joint").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "joint/tokenizer.json"):
        shutil.copy(workdir / name, there / name)
    path = there / "joint" / "tokenizer.json"
    content = json.loads(path.read_text())
    words = content["model"]["vocab"]
    one, other = [word for word in words if word.isalpha()][:2]
    words[one], words[other] = words[other], words[one]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="identity.retriever_tokenizer is '.*' there"):
        atlas.run(config, there)


def test_another_encoder_in_the_same_workdir(trained, corpus, tmp_path):
    workdir, config, _ = trained
    other = dataclasses.replace(config, retriever_from=str(workdir / "retriever"))
    with pytest.raises(UserError, match="belongs to another run"):
        atlas.run(other, workdir)
