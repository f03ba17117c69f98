"""What a user can get wrong ends in one line, and what was whole stays whole."""

import fcntl
import functools
import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types
from typing import Any

import pytest

from experiments import continuous_cache, demo, knn_lm, lm, options, trime
from rlm_jax.data import corpora, passages, questions
from rlm_jax.errors import UserError
from rlm_jax.recipes import language_model
from rlm_jax.train import beside
from tests.recipes import shrunken

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def copy(demonstration, tmp_path) -> pathlib.Path:
    return shrunken.copy_of(demonstration, tmp_path / "demo")


def run_again(workdir: pathlib.Path, corpus: str, system: str, steps: int = 2):
    """One run of a demonstration, past the report that would end it."""
    config = shrunken.shrink(demo.tiny(), corpus)
    run, its = demo.systems(config, workdir)[system]
    its.train.steps = steps
    return run(its, workdir / system)


@pytest.mark.parametrize("flag", ["--preset=nope", "--preset=", "--preset"])
def test_an_unknown_preset_is_told_the_known_ones(flag):
    with pytest.raises(UserError, match="Unknown preset.*tiny, wikitext2"):
        options.preset([flag], lm.PRESETS)


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--config.train.stepz=3", "no config.train.stepz; .* steps, log_every"),
        ("--config.trian.steps=3", "no config.trian.steps; .*train"),
        ("--config.train=3", "is a group; set one of steps"),
        ("--config.train.steps.more=3", "config.train.steps has no fields"),
    ],
)
def test_an_unknown_field_is_told_the_known_ones(flag, says):
    with pytest.raises(UserError, match=says):
        options.check_fields([flag], lm.tiny())


def test_known_fields_pass():
    given = ["--config.train.steps=3", "--noconfig.train.tensorboard", "--workdir=x"]
    options.check_fields(given, lm.tiny())


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "no such|not exist|There is no|missing"),
        ("empty", "empty|no text"),
        ("binary", "UTF-8"),
    ],
)
def test_a_corpus_that_is_no_text(kind, says, cache, tmp_path):
    path = tmp_path / "text.txt"
    if kind != "missing":
        path.write_bytes(b"" if kind == "empty" else bytes(range(256)) * 40)
    config = shrunken.shrink(lm.tiny(), f"text:{path}")
    with pytest.raises(UserError, match=f"(?i){says}") as error:
        lm.run(config, tmp_path / "run")
    assert str(path) in str(error.value)


def split_texts(folder: pathlib.Path, **texts: str) -> str:
    folder.mkdir()
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return f"text:{folder}"


SOME = "the cat sat on the mat .\n" * 40


@pytest.mark.parametrize("launcher", [lm, trime])
@pytest.mark.parametrize(
    ("short", "given", "message"),
    [
        ("train", "a b\n", "train: The split has 5 tokens, too few for one batch"),
        ("valid", "a b\n", "validation: The split has 5 tokens, too few for one"),
        ("valid", "\n \n", "valid.txt has no text in it"),
        ("test", "\u2028\n", "test.txt has no text in it"),
        ("train", "\n", "train.txt has no text in it"),
    ],
)
def test_a_split_that_is_too_short_is_told_before_the_first_step(
    launcher, short, given, message, cache, tmp_path, monkeypatch
):
    monkeypatch.setattr(language_model.fit, "train", None)
    texts = {"train": SOME, "valid": SOME, "test": SOME, short: given}
    config = shrunken.shrink(launcher.tiny(), split_texts(tmp_path / "text", **texts))
    for dry_run in (True, False):
        with pytest.raises(UserError, match=message):
            launcher.run(config, tmp_path / "run", dry_run=dry_run)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("launcher", [trime, continuous_cache, knn_lm])
def test_a_split_to_tune_on_that_has_no_words(
    launcher, demonstration, tmp_path, monkeypatch
):
    """Where nothing is trained, validation is needed all the same."""
    monkeypatch.setattr(language_model.fit, "train", None)
    monkeypatch.setattr(language_model.perplexity, "score_stream", None)
    for name, text in (("train", SOME), ("valid", " \n"), ("test", SOME)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text}))
    config = shrunken.shrink(launcher.tiny(), f"jsonl:{tmp_path}")
    taken = "continue_from" if launcher is trime else "params_from"
    setattr(config, taken, str(demonstration / "lm"))
    for dry_run in (True, False):
        with pytest.raises(UserError, match="The validation split of .* 0 words"):
            launcher.run(config, tmp_path / "run", dry_run=dry_run)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("value", "grid", "told"),
    [
        (1.0, (1.0, 2.0, 3.0), True),
        (3.0, (1.0, 2.0, 3.0), True),
        (2.0, (1.0, 2.0, 3.0), False),
        (1.0, (1.0,), False),
        (16, (64, 16), True),
        (0.3, (0.5, 0.3, 0.1), False),
    ],
)
def test_a_value_at_the_end_of_its_grid_is_told(value, grid, told, capsys):
    language_model.note_grid_end("tune.weights", value, grid)
    assert ("tune.weights is" in capsys.readouterr().err) == told


@pytest.mark.parametrize(("size", "held"), [(0, 0), (5, 5), (9, 7)])
def test_a_memory_holds_no_more_than_there_is(capsys, size, held):
    scored: Any = types.SimpleNamespace(stream=types.SimpleNamespace(targets=[0] * 7))
    assert language_model.memory_size("memory.size", size, scored) == held
    told = "memory.size=9 is beyond the 7 tokens" in capsys.readouterr().err
    assert told == (size > held)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"train": SOME, "valid": SOME, "test": "\n \n\n"}, "test"),
        ({"train": SOME, "valid": SOME}, "no split 'test'"),
        ({"train": SOME, "test": SOME}, "no split 'validation'"),
    ],
)
@pytest.mark.parametrize("starts", ["", "init_from"])
def test_a_split_that_cannot_be_scored_is_told_first(
    demonstration, tmp_path, texts, message, starts
):
    """Before any step, in a dry run too; nothing is left."""
    config = shrunken.shrink(lm.tiny(), split_texts(tmp_path / "text", **texts))
    if starts:
        setattr(config, starts, str(demonstration / "lm"))
    for dry_run in (True, False):
        with pytest.raises(UserError, match=message):
            lm.run(config, tmp_path / "run", dry_run=dry_run)
        assert not (tmp_path / "run").exists()


def test_the_workdir_of_another_configuration(copy, corpus):
    config = shrunken.shrink(lm.tiny(), corpus)
    config.data.length = 16
    with pytest.raises(UserError, match="data.length is 32 there and 16 here"):
        lm.run(config, copy / "lm")
    with pytest.raises(UserError, match="system is 'trime' there and 'lm' here"):
        lm.run(config, copy / "trime")


def test_a_workdir_in_use(corpus, cache, tmp_path):
    """One launcher at a time; where nothing was done nothing stays."""

    def launch_in(workdir):
        command = [sys.executable, "-m", "experiments.lm", f"--workdir={workdir}"]
        command += [f"--config.data.corpus={corpus}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    used = tmp_path / "used"
    used.mkdir()
    with open(used / ".lock", "w") as another:
        fcntl.flock(another, fcntl.LOCK_EX)
        done = launch_in(used)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"Another process is at work in the workdir {used}; wait" in done.stderr
    # What is refused after the workdir was claimed may be mended in the same workdir.
    done = launch_in(tmp_path / "refused")
    assert done.returncode == 1 and "too few for one batch" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["used"]


@pytest.mark.parametrize(
    ("launcher", "field"),
    [
        *[("encode", "encoder"), ("dpr", "init_from"), ("contriever", "init_from")],
        *[("fid", "init_from"), ("fid", "reading.retriever")],
        *[("atlas", "init_from"), ("atlas", "retriever_from"), ("realm", "init_from")],
        *[("realm", "reader_from"), ("npm", "init_from"), ("replug_lsr", "init_from")],
        *[("replug", "model"), ("lm", "init_from"), ("knn_lm", "params_from")],
        ("in_context", "documents.retriever"),
    ],
)
def test_what_is_not_there_is_told_before_anything_is_read(
    launcher, field, monkeypatch, tmp_path
):
    for module in (corpora, passages, questions):
        monkeypatch.setattr(module, "load", None)
    of_launcher = importlib.import_module(f"experiments.{launcher}")
    config = next(iter(of_launcher.PRESETS.values()))()
    *groups, name = field.split(".")
    setattr(functools.reduce(getattr, groups, config), name, "/nowhere/x")
    with pytest.raises(UserError, match="/nowhere/x"):
        of_launcher.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_to_continue_that_is_not_there(corpus, cache, tmp_path):
    config = shrunken.shrink(lm.tiny(), corpus)
    config.continue_from = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no run in .*nowhere"):
        lm.run(config, tmp_path / "run")


def test_a_run_to_continue_that_is_too_long(demonstration, corpus, cache, tmp_path):
    config = shrunken.shrink(lm.tiny(), corpus)
    config.continue_from, config.train.steps = str(demonstration / "lm"), 1
    with pytest.raises(UserError, match="has 2 steps, beyond the 1 asked for"):
        lm.run(config, tmp_path / "run")


def test_a_truncated_checkpoint(copy, corpus):
    files = [x for x in (copy / "lm/checkpoints/2").rglob("*") if x.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    with pytest.raises(UserError, match="checkpoints/2 is damaged"):
        run_again(copy, corpus, "lm", steps=3)
    assert (copy / "lm/checkpoints/1").is_dir()


def test_a_datastore_with_a_flipped_byte(copy, corpus):
    path = copy / "knn_lm/datastore/00000.keys"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="00000.keys"):
        run_again(copy, corpus, "knn_lm")


def test_the_datastore_of_another_model(copy, corpus):
    shutil.rmtree(copy / "lm/checkpoints")
    shutil.copytree(copy / "trime/checkpoints", copy / "lm/checkpoints")
    with pytest.raises(UserError, match="datastore.*model"):
        run_again(copy, corpus, "knn_lm")


def test_there_is_no_decoder(corpus, cache, tmp_path):
    config = shrunken.shrink(knn_lm.tiny(), corpus)
    config.params_from = str(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no language model in .*nowhere"):
        knn_lm.run(config, tmp_path / "run")


def test_groups_that_micro_batches_would_cut(corpus, cache, tmp_path):
    config = shrunken.shrink(trime.tiny(), corpus)
    config.data.segments_per_group, config.train.accumulate = 4, 2
    with pytest.raises(UserError, match="cuts groups of 4 apart"):
        trime.run(config, tmp_path / "run")


def test_a_loss_that_leaves_the_numbers(corpus, cache, tmp_path):
    config = shrunken.shrink(lm.tiny(), corpus)
    config.train.steps, config.optim.warmup_steps = 4, 0
    config.optim.learning_rate = 1e38
    with pytest.raises(UserError, match="metric '.*' is .* at step"):
        lm.run(config, tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB; only root can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: pathlib.Path, *, leave: int) -> pathlib.Path:
    path = folder / "filler"
    path.write_bytes(bytes(max(shutil.disk_usage(folder).free - leave, 0)))
    return path


def test_a_disk_that_is_full_for_a_checkpoint(small_disk, corpus, cache):
    filler = fill(small_disk, leave=2**15)
    with pytest.raises(UserError, match="(?i)checkpoint.*room"):
        lm.run(shrunken.shrink(lm.tiny(), corpus), small_disk / "run")
    filler.unlink()
    assert lm.run(shrunken.shrink(lm.tiny(), corpus), small_disk / "run") is not None


def test_a_disk_that_is_full_for_a_datastore(small_disk, copy, corpus):
    workdir = small_disk / "knn_lm"
    shutil.copytree(copy / "lm/checkpoints", workdir / "checkpoints")
    for step in (workdir / "checkpoints").iterdir():
        beside.forget(step)  # the files of the run that it comes from
    filler = fill(small_disk, leave=2**15)
    config = shrunken.shrink(knn_lm.tiny(), corpus)
    with pytest.raises(UserError, match="(?i)full|room"):
        knn_lm.run(config, workdir)
    filler.unlink()
    assert knn_lm.run(config, workdir) is not None


def test_a_disk_that_is_full_for_the_cache(small_disk, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("RLM_CACHE", str(small_disk / "cache"))
    fill(small_disk, leave=2**13)
    with pytest.raises(UserError, match="disk is full.*RLM_CACHE"):
        config = shrunken.shrink(lm.tiny(), corpus)
        lm.run(config, tmp_path / "run")


def call(*arguments: object, environment=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.lm",
            *map(str, arguments),
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | (environment or {}),
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config.train.steps=abc"],
        pytest.param(["--config.method.decoder.width=1.5"], marks=pytest.mark.slow),
        pytest.param(["--config.method.decoder.cutoffs=a"], marks=pytest.mark.slow),
        pytest.param(["--config.train.tensorboard=maybe"], marks=pytest.mark.slow),
        pytest.param(["--config.train.stepz=3"], marks=pytest.mark.slow),
        pytest.param(["--preset", "nope"], marks=pytest.mark.slow),
        pytest.param(["--preset"], marks=pytest.mark.slow),
        pytest.param(["--workdir="], marks=pytest.mark.slow),
        pytest.param(["--unknown"], marks=pytest.mark.slow),
        pytest.param(["argument"], marks=pytest.mark.slow),
        ["--config.data.corpus=text:/nowhere/at/all"],
    ],
    ids=" ".join,
)
def test_a_terminal_sees_one_line(arguments, tmp_path):
    done = call(f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not done.stdout


@pytest.mark.slow
def test_help_tells_presets_and_fields():
    done = call("--help")
    assert done.returncode == 0 and not done.stderr
    assert "wikitext103" in done.stdout and "--config.train.steps=500" in done.stdout
