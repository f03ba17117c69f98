"""A run keeps its tokenizer; another tokenizer, seed or model there is refused."""

import dataclasses
import json

import pytest

from experiments import dpr, knn_lm, lm
from rlm_jax.data import tokenizers
from rlm_jax.errors import UserError
from rlm_jax.recipes import runs
from tests.recipes import shrunken


@pytest.fixture(scope="module")
def trained(corpus, cache, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "lm"
    lm.run(shrunken.shrink(lm.tiny(), corpus), workdir)
    return workdir


def test_another_seed_is_refused(trained, corpus):
    config = shrunken.shrink(lm.tiny(), corpus)
    config.train.seed = 7
    with pytest.raises(UserError, match="train.seed is 0 there and 7 here"):
        lm.run(config, trained)


def test_a_run_goes_on_with_its_own_tokenizer(corpus, cache, tmp_path, monkeypatch):
    """The cache is lost between two starts, and training makes another vocabulary."""
    config = shrunken.shrink(lm.tiny(), corpus)
    config.data.tokenizer, config.data.vocab_size = "bpe", 262
    config.data.batch_size, config.data.length = 2, 8
    config.evaluate.window, config.evaluate.stride = 8, 4
    monkeypatch.setenv("RLM_CACHE", str(tmp_path / "first"))
    lm.run(config, tmp_path / "run")
    kept = tokenizers.load(tmp_path / "run" / runs.TOKENIZER)
    assert kept.kind == "bpe"
    monkeypatch.setenv("RLM_CACHE", str(tmp_path / "second"))
    monkeypatch.setattr(tokenizers, "_train_bpe", lambda *given: pytest.fail("trained"))
    config.train.steps = 3
    report = lm.run(config, tmp_path / "run")
    assert report is not None
    assert report["protocol"]["vocabulary"] == kept.vocab_size


def test_a_tokenizer_that_is_not_the_runs_is_refused(trained, corpus, tmp_path):
    path = trained / runs.TOKENIZER
    content = path.read_text()
    path.write_text(
        json.dumps({"format": 1, "kind": "word", "content": ["<unk>", "<eos>"]})
    )
    try:
        with pytest.raises(
            UserError, match="belongs to another run: (identity|finger)"
        ):
            lm.run(shrunken.shrink(lm.tiny(), corpus), trained)
    finally:
        path.write_text(content)


def test_another_model_under_the_same_name_is_refused(trained, corpus, tmp_path):
    config = shrunken.shrink(knn_lm.tiny(), corpus)
    config.params_from = str(tmp_path / "model")
    shrunken.copy_of(trained, tmp_path / "model")
    knn_lm.run(config, tmp_path / "run")
    more = shrunken.shrink(lm.tiny(), corpus)
    more.train.steps = 3
    lm.run(more, tmp_path / "model")
    with pytest.raises(UserError, match="identity.model is '.*' there and '.*' here"):
        knn_lm.run(config, tmp_path / "run")


def test_retrievers_say_what_they_read_with():
    """Every trained retriever compares seed and micro-batches, too."""
    fields = {field.name for field in dataclasses.fields(dpr.Config)}
    assert {name.split(".")[0] for name in runs.DRAWS} <= fields
    from rlm_jax.recipes.retrievers import contriever
    from rlm_jax.recipes.retrievers import dpr as recipe

    assert set(runs.DRAWS) <= set(recipe.SAME) & set(contriever.SAME)
