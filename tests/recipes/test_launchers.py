"""Every launcher through its own `execute`: it trains, reports, and goes on."""

import json
import math
import shutil

import pytest

import rlm_jax
from experiments import compare, continuous_cache, demo, knn_lm, lm, trime
from rlm_jax.errors import UserError
from rlm_jax.recipes import base_lm, language_model, memory_generation, runs
from rlm_jax.report import report
from rlm_jax.train import checkpoint, dry_run
from tests.recipes import shrunken

CONTROLS = {
    "lm": set(),
    "lm_long": set(),
    "cache": {"off", "shuffled", "foreign"},
    "knn_lm": {"off", "shuffled", "foreign"},
    "trime": {"off", "shuffled", "foreign"},
}
SYSTEM = {"lm_long": "lm", "cache": "continuous_cache"}
AS_ANOTHER = [(lm, "wikitext103"), (knn_lm, "wikitext103"), (knn_lm, "smollm2")]
PRESETS = [
    pytest.param(
        launcher,
        name,
        id=f"{launcher.__name__.split('.')[-1]}-{name}",
        marks=[pytest.mark.slow] * ((launcher, name) in AS_ANOTHER),
    )
    for launcher in (lm, continuous_cache, knn_lm, trime)
    for name in launcher.PRESETS
]


@pytest.mark.parametrize("system", CONTROLS)
def test_a_run_reports_finite_figures_and_its_controls(demonstration, system):
    made = report.read(demonstration / system / "report.json")
    assert made["system"] == SYSTEM.get(system, system)
    assert set(made["controls"]) == CONTROLS[system]
    for figures in (made["metrics"], *made["controls"].values()):
        assert set(figures) == {"perplexity", "word_perplexity", "bits_per_byte"}
        assert all(math.isfinite(x) and x > 0 for x in figures.values())
    assert made["protocol"]["tokens"] == 512
    # The cache and kNN-LM take the plain model's decoder.
    trained = 0 if system in ("cache", "knn_lm") else 2
    assert checkpoint.latest_step(demonstration / system / "checkpoints") == trained


@pytest.mark.parametrize("system", ["cache", "trime"])
def test_a_memory_of_repeated_sentences_helps(demonstration, system):
    made = report.read(demonstration / system / "report.json")
    for control in CONTROLS[system]:
        figures = made["controls"][control]
        assert made["metrics"]["perplexity"] < figures["perplexity"]


def test_all_runs_start_from_one_warm_up(demonstration):
    assert checkpoint.latest_step(demonstration / "warmup" / "checkpoints") == 1
    for system in ("lm", "lm_long", "trime"):
        lines = (demonstration / system / "metrics.jsonl").read_text().splitlines()
        assert {json.loads(line)["step"] for line in lines} == {2}
    assert not (demonstration / "knn_lm" / "metrics.jsonl").exists()


def test_equal_context_and_equal_budgets(demonstration, corpus):
    """A plain model sees as many tokens as TRIME's memory, and so does the cache."""
    of = {n: report.read(demonstration / n / "report.json")["protocol"]
          for n in CONTROLS}  # fmt: skip
    seen = of["trime"]["memory_size"] + shrunken.shrink(trime.tiny(), "").memory.segment
    assert of["lm_long"]["window"] == seen
    context = of["lm_long"]["window"] - of["lm_long"]["stride"]
    assert context == of["cache"]["memory_size"]
    assert of["cache"]["memory_size"] == of["trime"]["memory_size"]
    config = demo.tiny()
    its = {n: made for n, (_, made) in demo.systems(config, demonstration).items()}
    trained = {
        n: config.warmup_steps * config.data.batch_size * config.data.length
        + (x.train.steps - config.warmup_steps) * x.data.batch_size * x.data.length
        for n, x in its.items()
    }
    assert trained["lm_long"] == pytest.approx(trained["trime"], rel=2e-3)
    assert trained["lm"] == trained["trime"]


def test_a_cache_can_continue_texts(demonstration):
    memory = memory_generation.load(demonstration / "cache")
    told = report.read(demonstration / "cache" / "report.json")["protocol"]
    assert memory.cache == told["weight"] and memory.store is None
    assert memory.past == (128, 32, told["memory_temperature"])


def test_the_demonstration_leaves_its_table_and_plots(demonstration):
    summary = json.loads((demonstration / "summary.json").read_text())
    assert list(summary) == list(CONTROLS)
    for name in ("plots/training.png", "plots/controls.png", "trime/neighbours.html"):
        assert (demonstration / name).stat().st_size > 1000


def test_what_is_finished_is_not_done_again(demonstration, corpus, tmp_path):
    workdir = shrunken.copy_of(demonstration, tmp_path / "demo")
    for system in CONTROLS:
        shutil.rmtree(workdir / system / "checkpoints", ignore_errors=True)
    config = shrunken.shrink(demo.tiny(), corpus)
    reports = demo.run(config, workdir)
    assert reports == json.loads((demonstration / "summary.json").read_text())
    assert not (workdir / "lm" / "checkpoints").exists()


@pytest.mark.slow
def test_external_memory_after_a_warm_up_in_one_workdir(corpus, cache, tmp_path):
    config = shrunken.shrink(trime.wikitext2_external(), corpus)
    config.memory.knn_temperatures, config.memory.knn_weights = (1.0,), (0.1, 0.2)
    made = trime.run(config, tmp_path)
    assert made is not None
    assert set(made["controls"]) >= CONTROLS["trime"]
    assert made["protocol"]["interpolation"]["weight"] in (0.1, 0.2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert sorted({json.loads(line)["step"] for line in lines}) == [1, 2]


def test_a_run_and_its_decoder_are_opened_as_a_language_model(demonstration):
    for name in ("lm", "lm/decoder"):
        assert isinstance(rlm_jax.load(demonstration / name), base_lm.BaseLM)


@pytest.fixture(scope="module")
def many_words(tmp_path_factory) -> str:
    """A text whose vocabulary the presets' adaptive softmaxes can divide."""
    folder = tmp_path_factory.mktemp("text") / "words"
    folder.mkdir()
    words = " ".join(f"w{i}" for i in range(61_000))
    for name in ("train", "valid"):  # both hold a batch of each preset
        (folder / f"{name}.txt").write_text(f"{words}\n{words}\n")
    (folder / "test.txt").write_text(words[:9000])
    return f"text:{folder}"


@pytest.mark.parametrize(("launcher", "name"), PRESETS)
def test_a_dry_run_builds_and_leaves_nothing(
    launcher, name, many_words, gguf_file, cache, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(dry_run, "COMPILED", 0)
    config = launcher.PRESETS[name]()
    if getattr(config, "params_from", ""):
        config.params_from = str(gguf_file)
    config.data.corpus = many_words
    config.data.tokenizer = config.data.tokenizer.replace("bpe", "bytes")
    decoder = getattr(config, "decoder", None) or config.method.decoder
    decoder.num_layers = 2  # all are alike, and each is traced
    launcher.run(config, tmp_path / "run", dry_run=True)
    shown = capsys.readouterr().err
    assert "total" in shown and "batch tokens" in shown and "epochs" in shown
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tells_the_memory_of_a_step(corpus, cache, tmp_path, capsys):
    config = shrunken.shrink(lm.tiny(), corpus)
    lm.run(config, tmp_path, dry_run=True)
    assert "MiB beside the state" in capsys.readouterr().err


def test_a_report_counts_only_for_its_own_configuration(demonstration, corpus):
    run = runs.Run("lm", "tiny", demonstration / "lm", False)
    theirs = json.loads((demonstration / "lm" / "config.json").read_text())
    config = shrunken.shrink(lm.tiny(), corpus)
    config.optim.decay_steps = theirs["optim"]["decay_steps"]
    config.continue_from = theirs["continue_from"]
    assert runs.finished(run, config, theirs["fingerprint"]) is not None
    assert runs.finished(run, config, "another text") is None
    config.train.steps = 3
    assert runs.finished(run, config, theirs["fingerprint"]) is None


def test_several_runs_in_one_table(demonstration, tmp_path, capsys):
    runs = [f"plain={demonstration / 'lm'}", str(demonstration / "trime")]
    compare.main([*runs, "--markdown", f"--plot={tmp_path / 'controls.png'}"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| plain") and lines[3].startswith("| trime")
    assert (tmp_path / "controls.png").stat().st_size > 1000


def test_a_workdir_older_than_a_field_goes_on(demonstration, corpus, tmp_path):
    workdir = shrunken.copy_of(demonstration, tmp_path / "demo")
    path = workdir / "lm" / "config.json"
    stored = json.loads(path.read_text())
    del stored["method"]["decoder"]["num_kv_heads"]
    shrunken.rewrite(path, stored)
    config = shrunken.shrink(demo.tiny(), corpus)
    its = demo.systems(config, workdir)["lm"][1]
    there = runs.Run("lm", "tiny", workdir / "lm", False)
    runs.claim(there, its, stored["fingerprint"], same=("method",))
    its.method.decoder.num_kv_heads = 1
    with pytest.raises(UserError, match="num_kv_heads is 0 there and 1 here"):
        runs.claim(there, its, stored["fingerprint"], same=("method",))


@pytest.mark.slow
def test_the_warm_up_has_an_order_of_its_own(corpus, cache, tmp_path, monkeypatch):
    orders, batches = [], language_model.batches

    def noted(config, split):
        orders.append(config.order)
        return batches(config, split)

    monkeypatch.setattr(language_model, "batches", noted)
    config = shrunken.shrink(trime.tiny(), corpus)
    assert (config.warmup_order, config.data.order) == ("shuffled", "consecutive")
    trime.run(config, tmp_path)
    # Of each training: its own batches, then those of validation.
    assert orders == ["shuffled", "shuffled", "consecutive", "consecutive"]


def test_a_run_that_names_itself_is_its_own_model(corpus, cache, tmp_path):
    """With a checkpoint of no steps, as a run leaves that took another's model."""
    config = shrunken.shrink(lm.tiny(), corpus)
    config.train.steps = 0
    lm.run(config, tmp_path / "run")
    path = tmp_path / "run" / runs.CONFIG
    stored = json.loads(path.read_text())
    shrunken.rewrite(path, stored | {"params_from": str(tmp_path / "run")})
    loaded = base_lm.load(str(tmp_path / "run"), language_model.DataConfig())
    assert loaded.decoding is not None
