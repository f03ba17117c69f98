"""The launcher of REALM: it warms up, learns to fill in, is judged, and goes on."""

import dataclasses

import numpy as np
import pytest

import rlm_jax
from experiments import realm
from rlm_jax.data.collections import CollectionConfig
from rlm_jax.errors import UserError
from rlm_jax.models.encoder import EncoderConfig
from rlm_jax.recipes.readers import realm as recipe
from rlm_jax.recipes.readers.realm import ClozeConfig
from rlm_jax.report import report
from rlm_jax.retrievers.published_index import Retriever
from rlm_jax.train import metrics
from rlm_jax.train.rounds import RefreshConfig
from tests.recipes import shrunken

ENCODER = EncoderConfig(
    num_layers=1, width=16, num_heads=2, feed_forward_width=24, max_length=48,
    dropout=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, cache):
    data = shrunken.write_questions(tmp_path_factory.mktemp("questions"))
    return CollectionConfig(data.passages, data.questions)


def small(corpus, **fields) -> realm.Config:
    """The tiny preset with 4 steps of one-layer encoders, indexed twice."""
    config = realm.tiny()
    config.collection, config.vocab_size = corpus, 200
    config.method.encoder, config.method.k = ENCODER, 3
    config.method.retriever = dataclasses.replace(ENCODER, normalise=True)
    config.sentence_length, config.masks, config.batch_size = 16, 4, 4
    config.text.question_length = config.text.passage_length = 16
    config.train.steps, config.train.log_every, config.train.eval_every = 4, 1, 2
    config.train.checkpoint_every, config.validation_batches = 0, 1
    config.cloze.batch_size, config.cloze.train.steps = 4, 2
    config.refresh = RefreshConfig(keys_every=(2,))
    config.search.k, config.judge.measures = 5, ("recall@1", "recall@5")
    for name, value in fields.items():
        setattr(config, name, value)
    return config


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "realm"
    config = small(corpus)
    return workdir, config, realm.run(config, workdir)


def test_a_run_reports_retriever_and_what_is_filled_in(trained):
    workdir, _, result = trained
    assert result == report.read(workdir / "report.json")
    assert set(result["controls"]) == {"init", "before", "bm25", "shuffled"}
    assert "answer_recall@5" in result["metrics"]
    protocol = result["protocol"]
    (last,) = protocol["filled_in"]["last"]
    for name in ("accuracy", "utility", "nll", "null_nll", "null_weight"):
        assert np.isfinite(last[name])
    assert last["step"] == 4 and last["index_age"] == 2
    np.testing.assert_allclose(
        last["utility"], last["null_nll"] - last["nll"], rtol=1e-4, atol=1e-5
    )
    assert [x["step"] for x in protocol["refreshes"]] == [2]
    assert (workdir / "plots" / "utility.png").stat().st_size > 5000
    assert "utility" in metrics.read(workdir / "joint")[0]
    assert isinstance(rlm_jax.load(workdir), Retriever)


def test_a_finished_run_goes_on(trained):
    workdir, config, result = trained
    again = realm.run(config, workdir)
    assert again is not None and again["metrics"] == result["metrics"]
    other = dataclasses.replace(config, masks=3)
    with pytest.raises(UserError, match="masks is 4 there and 3 here"):
        realm.run(other, workdir)


@pytest.mark.slow
def test_other_choices(corpus, tmp_path):
    """Without a warm start, own titles left out, two towers, whole sequences."""
    config = small(corpus, left_out="title", cloze=ClozeConfig())
    config.method.towers, config.method.marginal = "separate", "sequence"
    config.train.steps = 2
    result = realm.run(config, tmp_path / "run")
    assert result is not None and set(result["controls"]) == {
        "init",
        "bm25",
        "shuffled",
    }
    assert (tmp_path / "run" / "question_encoder").is_dir()


def test_a_dry_run_tells_sizes_and_trains_nothing(corpus, tmp_path, capsys):
    realm.run(small(corpus), tmp_path / "run", dry_run=True)
    shown = capsys.readouterr().err
    assert "32 passages of" in shown and "one step of the whole batch" in shown
    assert "an index of 32 vectors of width 16" in shown
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"left_out": "nothing"}, "give away what is masked"),
        ({"masks": 0}, "masks is 0; choose 1"),
        ({"sentence_length": 40}, "more than the 48 positions"),
        ({"batch_size": 64}, "make no batch of 64"),
        ({"reader_from": "./nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_told_before_training(corpus, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        realm.run(small(corpus, **fields), tmp_path / "run")


@pytest.mark.parametrize("name", realm.PRESETS)
def test_presets_fit_together(name):
    recipe.check(realm.PRESETS[name]())


def test_fewer_passages_than_candidates(corpus, tmp_path):
    config = small(corpus)
    config.method.k = 40
    with pytest.raises(UserError, match="give more passages"):
        realm.run(config, tmp_path / "run")
    config.method.k = 3
    config.method.retriever = dataclasses.replace(ENCODER, projection=8)
    with pytest.raises(UserError, match="has no place in Hugging Face"):
        realm.run(config, tmp_path / "other")
