"""Language models with documents: the launchers run, report, go on, and refuse."""

import json
import pathlib
import sys
import types
from typing import Any
from unittest.mock import ANY

import jax
import numpy as np
import pytest

from experiments import in_context, replug, replug_lsr
from experiments import lm as language_model_launcher
from rlm_jax import pretrained
from rlm_jax.data import corpora, tokenizers
from rlm_jax.errors import UserError
from rlm_jax.methods import lm
from rlm_jax.models import decoder as decoders
from rlm_jax.recipes import runs
from rlm_jax.recipes.with_passages import documents
from rlm_jax.report import report
from rlm_jax.train import checkpoint
from tests.recipes import shrunken
from tests.recipes.test_retriever_launchers import ENCODER

CONTROLS = {"off", "shuffled", "oracle", "answer"}


def shrink(config: Any, corpus: str, model: str = "") -> Any:
    config = shrunken.shrink(config, corpus)
    config.evaluate.stride, config.evaluate.max_tokens = 8, 257
    config.model = model
    chosen = config.documents
    chosen.length, chosen.rank_tokens, chosen.reuse, chosen.num = 16, 8, 2, 3
    chosen.query_length = 12
    chosen.overlap = 0  # the toy text says the same three sentences again and again
    config.text.question_length, config.text.passage_length = 12, 16
    config.search.batch_tokens = 64
    if hasattr(config, "ensemble"):
        config.ensemble.tune_tokens, config.ensemble.ks = 129, (1, 2)
        config.ensemble.temperatures = (0.5, 5.0)
    for name in ("retriever", "reranker"):
        if hasattr(config, name):
            trained = getattr(config, name)
            trained.batch_size, trained.vocab_size = 2, 200
            trained.train.steps, trained.train.log_every = 2, 1
            trained.train.checkpoint_every = 0
    if hasattr(config, "reranker"):
        config.reranker.encoder, config.reranker.length = ENCODER, 24
    if hasattr(config, "retriever"):
        config.retriever.method.encoder, config.retriever.method.k = ENCODER, 3
        config.retriever.refresh.keys_every = (1,)
    return config


@pytest.fixture(scope="module")
def trained(corpus, cache, tmp_path_factory) -> pathlib.Path:
    """A workdir in which in-context RALM has trained its language model."""
    workdir = tmp_path_factory.mktemp("runs") / "in_context"
    config = shrink(in_context.tiny(), corpus)
    in_context.run(config, workdir)
    return workdir


def test_in_context_reports_beside_its_controls(trained):
    made = report.read(trained / "report.json")
    assert set(made["controls"]) == CONTROLS | {"first"}
    bits = {name: x["bits_per_byte"] for name, x in made["controls"].items()}
    assert bits["oracle"] <= min(bits["first"], made["metrics"]["bits_per_byte"])
    facts = made["protocol"]
    assert facts["retrievals"] == -(-(257 - 64) // 8)
    assert facts["passes"] < facts["retrievals"] * 3
    assert facts["empty_places"] == 0
    assert (trained / "neighbours.html").stat().st_size > 1000


@pytest.mark.slow
def test_every_way_of_choosing(corpus, trained, tmp_path, monkeypatch):
    # Documents that are their own control: what is left between them is the choice.
    monkeypatch.setattr(documents, "shuffled", lambda found: found)
    for choice in ("first", "reranked", "trained"):
        config = shrink(in_context.tiny(), corpus, str(trained))
        config.choice = choice
        workdir = tmp_path / choice
        made = in_context.run(config, workdir)
        assert made is not None
        names = {"first", "reranked", "trained" if choice == "trained" else "first"}
        assert set(made["controls"]) == CONTROLS | names - {choice}
        assert made["controls"]["shuffled"] == made["metrics"]
    part = json.loads((workdir / "reranker" / runs.PART).read_text())
    assert {"retriever", "seed", "tokenizer", "vocab_size"} <= part.keys()
    config.reranker.vocab_size += 1
    with pytest.raises(UserError, match=r"reranker is .* vocab_size is \d+ there"):
        in_context.run(config, workdir)
    # The same language model, so the same text without documents.
    off = made["controls"]["off"]
    first = report.read(trained / "report.json")["controls"]["off"]
    assert off["bits_per_byte"] == pytest.approx(first["bits_per_byte"], rel=1e-6)


@pytest.mark.slow
def test_replug_tells_every_k(corpus, trained, tmp_path):
    config = shrink(replug.tiny(), corpus, str(trained))
    made = replug.run(config, tmp_path)
    assert made is not None
    assert set(made["controls"]) == CONTROLS | {"k=1", "k=2"}
    assert made["protocol"]["temperatures"]["real"] in (0.5, 5.0)
    one = shrink(in_context.tiny(), corpus, str(trained))
    one.choice = "first"
    alone = in_context.run(one, tmp_path / "one")
    assert alone is not None
    assert made["controls"]["k=1"]["bits_per_byte"] == pytest.approx(
        alone["metrics"]["bits_per_byte"], rel=1e-6
    )


def test_replug_lsr_trains_and_refreshes(corpus, trained, tmp_path):
    config = shrink(replug_lsr.tiny(), corpus, str(trained))
    config.retriever.train.steps = 3
    made = replug_lsr.run(config, tmp_path / "whole")
    assert made is not None
    assert set(made["controls"]) == CONTROLS | {"init", "k=1", "k=2"}
    refreshes = made["protocol"]["refreshes"]
    assert [x["step"] for x in refreshes] == [1, 2]
    assert all(0 <= x["stale_recall"] <= 1 and x["max_age"] == 0 for x in refreshes)
    indexes = tmp_path / "whole/retriever/indexes"
    assert [x.name for x in indexes.iterdir()] == ["step_2"]


@pytest.mark.slow
def test_replug_lsr_beside_a_worker_and_in_parts(corpus, trained, tmp_path):
    config = shrink(replug_lsr.tiny(), corpus, str(trained))
    config.retriever.train.steps = 3
    made = replug_lsr.run(config, tmp_path / "whole")
    assert made is not None
    # A worker whose indexes are waited for changes nothing.
    config.retriever.refresh.policy = "overlapped"
    beside = replug_lsr.run(config, tmp_path / "beside")
    assert beside == made | {"seconds": ANY}
    config.retriever.refresh.policy = "synchronous"
    # Stopped after the first round and started again it goes on from there.
    config.retriever.train.steps = 1
    replug_lsr.run(config, tmp_path / "parts")
    config.retriever.train.steps = 3
    again = replug_lsr.run(config, tmp_path / "parts")
    assert again is not None
    # The index that was there before it went on is held to the new one as well.
    assert [x["step"] for x in again["protocol"]["refreshes"]] == [1, 2]
    # Started once more there is nothing to do, and all is told as before.
    assert replug_lsr.run(config, tmp_path / "parts") == again | {"seconds": ANY}
    config.retriever.method.gamma = 0.5
    with pytest.raises(UserError, match="method.gamma is 0.1 there and 0.5 here"):
        replug_lsr.run(config, tmp_path / "parts")
    config.retriever.method.gamma = 0.1
    assert checkpoint.latest_step(tmp_path / "parts" / "retriever/checkpoints") == 3


@pytest.fixture(scope="module")
def published(corpus, cache, tmp_path_factory) -> pathlib.Path:
    """A decoder in Hugging Face's layout, with a tokenizer."""
    folder = tmp_path_factory.mktemp("hf") / "llama"
    text = corpora.load(corpus)
    tokenizer = tokenizers.build("bpe", text, vocab_size=300)
    config = decoders.modern(
        vocab_size=tokenizer.vocab_size, num_layers=1, width=16, num_heads=2,
        feed_forward_width=24,
    )  # fmt: skip
    params = jax.jit(lm.lm(lm.LMConfig(config)).init)(jax.random.key(0))
    pretrained.save_decoder(folder, config, params)
    content = json.dumps(tokenizer.content)
    (folder / "tokenizer.json").write_text(content)
    return folder


def test_a_published_model(corpus, published, tmp_path):
    config = shrink(in_context.tiny(), corpus, str(published))
    made = in_context.run(config, tmp_path)
    assert made is not None
    assert made["protocol"]["tokenizer"] == "hf"


@pytest.mark.slow
def test_a_published_model_is_trained_further(corpus, published, tmp_path):
    config = shrunken.shrink(language_model_launcher.tiny(), corpus)
    config.init_from = str(published)
    language_model_launcher.run(config, tmp_path / "tuned")
    kept = [p.read_bytes() for p in (tmp_path / "tuned").glob("tokenizer.json")]
    assert len(kept) == 1
    # What comes of it is a given model again, with the tokenizer it began with.
    further = shrink(in_context.tiny(), corpus, str(tmp_path / "tuned"))
    made = in_context.run(further, tmp_path / "b")
    assert made is not None and made["protocol"]["tokenizer"] == "hf"
    config.init_from = "call:json:loads"
    with pytest.raises(UserError, match="no decoder to begin with"):
        language_model_launcher.run(config, tmp_path / "c")


def test_a_black_box(corpus, tmp_path, monkeypatch):
    calls = []

    def log_probs(tokens, lengths, last):
        assert tokens.dtype == lengths.dtype == np.int32
        calls.append(len(tokens))
        return np.full((len(tokens), last), -np.log(256.0), np.float32)

    module = types.ModuleType("somebody")
    module.log_probs = log_probs  # type: ignore
    monkeypatch.setitem(sys.modules, "somebody", module)
    config = shrink(replug.tiny(), corpus, "call:somebody:log_probs")
    made = replug.run(config, tmp_path)
    assert made is not None and calls
    # Uniform over bytes: 8 bits each but the first, whatever it reads.
    for figures in (made["metrics"], *made["controls"].values()):
        assert figures["bits_per_byte"] == pytest.approx(8, rel=0.01)


def test_own_and_overlapping_documents_are_left_out(corpus, trained, tmp_path):
    config = shrink(in_context.tiny(), corpus, str(trained))
    config.documents.overlap = 13
    with pytest.raises(UserError, match="no document is left"):
        in_context.run(config, tmp_path / "a")
    config.documents.overlap = 0
    config.documents.passages = f"corpus:{corpus}#test"
    with pytest.raises(UserError, match="no document is left"):
        in_context.run(config, tmp_path / "b")


def test_a_dry_run_trains_nothing(corpus, cache, tmp_path, capsys):
    config = shrink(in_context.tiny(), corpus)
    assert in_context.run(config, tmp_path / "dry", dry_run=True) is None
    assert not (tmp_path / "dry").exists()
    assert "passes of 64 tokens" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "./nowhere"}, "no language model in ./nowhere"),
        ({"model": "call:nowhere:f"}, "names no function"),
        ({"model": "call:json:__doc__"}, "is no function"),
        ({"choice": "best"}, "choice is 'best'"),
        ({"documents.num": 0}, "documents.num is 0"),
        ({"documents.length": 60}, "does not hold a document"),
        ({"documents.placement": "under"}, "placement is 'under'"),
        ({"documents.passages": "beir:nowhere"}, "nowhere"),
        ({"documents.retriever": "./nowhere"}, "nowhere"),
        ({"evaluate.max_tokens": 80}, "80 tokens are read"),
        ({"documents.query_length": 0}, "query_length is 0"),
        ({"documents.rank_tokens": 0}, "choice 'reranked' goes by"),
    ],
)
def test_bad_input(corpus, trained, tmp_path, changes, named):
    config = shrink(in_context.tiny(), corpus, str(trained))
    for name, value in changes.items():
        *holders, field = name.split(".")
        holder = config
        for part in holders:
            holder = getattr(holder, part)
        setattr(holder, field, value)
    with pytest.raises(UserError, match=named):
        in_context.run(config, tmp_path)


@pytest.mark.parametrize("temperatures", [(), (0.0, 1.0)])
def test_bad_temperatures(corpus, trained, tmp_path, temperatures):
    config = shrink(replug.tiny(), corpus, str(trained))
    config.ensemble.temperatures = temperatures
    with pytest.raises(UserError, match="temperatures"):
        replug.run(config, tmp_path)


def test_rows_past_learned_positions_are_told_before_anything(corpus, cache, tmp_path):
    config = shrink(in_context.tiny(), corpus)
    config.method.decoder.positions, config.method.decoder.max_length = "learned", 70
    config.documents.placement = "prepend"
    with pytest.raises(UserError, match="its document is 80, and learned positions"):
        in_context.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_longer_than_the_models_are_noted(corpus, trained, tmp_path, capsys):
    config = shrink(in_context.tiny(), corpus, str(trained))
    in_context.run(config, tmp_path, dry_run=True)
    assert "that the model's segments of 32 never trained" in capsys.readouterr().err


def test_presets_name_what_exists():
    for launcher in (in_context, replug, replug_lsr):
        for make in launcher.PRESETS.values():
            documents.protocol(make())


@pytest.mark.parametrize("launcher", [in_context, replug, replug_lsr])
def test_the_wikitext_preset_fits_another_corpus(
    launcher, corpus, cache, tmp_path, capsys
):
    config = launcher.wikitext2()
    config.data.corpus, config.documents.passages = corpus, f"corpus:{corpus}"
    config.data.vocab_size, config.data.batch_size = 300, 1
    config.documents.overlap = 0
    if launcher is replug_lsr:
        config.init_from = ""
    launcher.run(config, tmp_path / "dry", dry_run=True)
    assert "passes of" in capsys.readouterr().err and not (tmp_path / "dry").exists()
