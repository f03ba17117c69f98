"""RPT's launcher: it scores, trains, reports with its controls, and goes on."""

import dataclasses
import json
import math
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import lm, rpt
from rlm_jax.errors import UserError
from rlm_jax.methods import rpt as methods_rpt
from rlm_jax.recipes import base_lm, language_model
from rlm_jax.recipes.chunks import rpt_config, rpt_targets
from rlm_jax.report import report
from rlm_jax.retrievers import chunk_targets
from rlm_jax.storage import row_shards
from rlm_jax.train import checkpoint, dry_run
from tests.recipes import shrunken

M, WINDOW, LENGTH = 8, 16, 48
ROOT = pathlib.Path(__file__).resolve().parents[2]
NOUNS = ("cat", "dog", "house", "river", "stone", "bird", "lamp", "road")


def write_documents(folder: pathlib.Path) -> str:
    """Documents, one a line; the last of each split is short."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train", 12), ("valid", 3), ("test", 3)):
        lines = [
            " ".join(f"the {NOUNS[i]} saw it {i} ." for i in rng.integers(8, size=9))
            for _ in range(count)
        ]
        texts = [*lines, "so short"]
        records = "".join(json.dumps({"text": x}) + "\n" for x in texts)
        (folder / f"{name}.jsonl").write_text(records)
    return f"jsonl:{folder}"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_documents(tmp_path_factory.mktemp("text") / "corpus")


def small(config, text: str):
    config = shrunken.shrink(config, text)
    decoder = config.method.decoder
    config.evaluate.window = config.evaluate.stride = WINDOW
    decoder.num_layers = 2
    if not hasattr(config, "targets"):
        return config
    config.data.length, config.data.batch_size = LENGTH, 4
    decoder.attention_window = WINDOW
    config.documents.shortest, config.documents.longest = 40, 100
    config.evaluate.max_tokens, config.evaluate.batch_size = 0, 2
    config.method.chunk_length, config.method.k = M, 2
    config.method.reader_heads = config.method.reader_head_width = 0
    config.targets.num, config.targets.shard_size = 3, 16
    config.targets.batch_size = 16
    return config


@pytest.fixture(scope="module")
def plain(text, cache, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "lm"
    lm.run(small(lm.tiny(), text), workdir)
    return workdir


def taught(text: str, plain: pathlib.Path) -> rpt.Config:
    config = small(rpt.tiny(), text)
    config.targets.kind, config.targets.reference = "semantic", str(plain)
    config.init_from = config.baseline = str(plain)
    config.warm_start = True
    return config


@pytest.fixture(scope="module")
def trained(text, plain, tmp_path_factory) -> pathlib.Path:
    """A workdir in which RPT was trained around the plain model, its reference too."""
    workdir = tmp_path_factory.mktemp("runs") / "rpt"
    rpt.run(taught(text, plain), workdir)
    return workdir


def test_the_report_has_controls_baseline_positions_and_the_retriever(trained):
    made = report.read(trained / "report.json")
    assert set(made["controls"]) == {"off", "shuffled", "bm25", "oracle", "plain"}
    for figures in (made["metrics"], *made["controls"].values()):
        assert all(math.isfinite(x) and x > 0 for x in figures.values())
    assert len({x["perplexity"] for x in made["controls"].values()}) > 3
    protocol = made["protocol"]
    assert protocol["documents"] == 3 and protocol["tokens"] == 3 * 99
    assert protocol["chunks_in_reach"] == LENGTH // M
    assert list(protocol["by_position"]["real"]) == ["0", "16", "32", "64"]
    first = [x["0"] for name, x in protocol["by_position"].items() if name != "plain"]
    np.testing.assert_allclose(first, first[0], rtol=1e-5)  # nothing to retrieve
    for kind in ("semantic", "lexical"):
        rankings = protocol["retriever"][kind]
        assert set(rankings) == {"retriever", "bm25", "shuffled"}
        for figures in rankings.values():
            assert 0 <= figures["ndcg"] <= 1 and figures["chunks"] > 0
    assert protocol["tables"]["train"]["scored"] > 0
    for name in ("positions", "window", "training", "controls"):
        assert (trained / f"plots/{name}.png").stat().st_size > 1000


def test_targets_are_what_the_reference_says(trained, text, plain):
    """Of every candidate of some chunks, asked for one by one."""
    config = taught(text, plain)
    reference = base_lm.load(str(plain), config.data)
    loaded = language_model.in_tokens_of(reference.tokenizer, config.data)
    given = rpt_targets.documents(config, loaded, "train")
    records = row_shards.open(
        trained / "targets/train", chunk_targets.FORM, chunk_targets.dtype(3)
    )

    def log_p(*chunks):
        row = np.concatenate(chunks).astype(np.int32)[None]
        length = np.array([row.shape[1]], np.int32)
        return reference.log_probs(row, length, M).sum()

    seen = 0
    for chunk in np.flatnonzero((records["candidates"] > 0).any(1))[::9]:
        document, i = given.of_chunk(int(chunk))
        tokens = given.tokens(document)

        def two(j, tokens=tokens):
            return tokens[j * M : (j + 2) * M]

        first, stop = rpt_targets.span(config, "train")(i)
        record = records[chunk]
        for back, value in zip(record["candidates"], record["semantic"], strict=True):
            if not back:
                assert np.isnan(value)
                continue
            j = i - back
            assert first <= j < stop <= i - 2
            wanted = log_p(two(j), two(i)) - log_p(two(i))
            np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-3)
            seen += 1
    assert seen > 5


@pytest.mark.slow
def test_a_run_goes_on_with_its_table(trained, text, plain, tmp_path, monkeypatch):
    workdir = tmp_path / "rpt"
    shutil.copytree(trained, workdir)
    config = taught(text, plain)
    config.train.steps = 3
    before = (workdir / "targets/train/rows").read_bytes()
    with monkeypatch.context() as patched:
        patched.delattr(chunk_targets, "score")
        rpt.run(config, workdir)
    assert (workdir / "targets/train/rows").read_bytes() == before
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(x)["step"] for x in lines if '"train"' in x]
    assert steps == [1, 2, 3]


def test_a_warm_start_begins_with_the_decoder(trained, plain):
    before, after = (checkpoint.load_params(x) for x in (plain, trained))
    kernel = before["block_1"]["attention"]["out"]["kernel"]
    moved = after["cross_block_1"]["attention"]["out"]["kernel"] - kernel
    assert 0 < np.abs(moved).max() < 0.3 * np.abs(kernel).max()


def test_a_long_text_is_continued(trained, text, plain, tmp_path, capsys):
    written = (trained / "report.json").read_bytes()
    config = taught(text, plain)
    path = tmp_path / "prompt.txt"
    path.write_text(" ".join(f"the {noun} saw it 7 ." for noun in NOUNS))
    config.prompt_file, config.new_tokens, config.temperature = str(path), 20, 0.0
    continuation = rpt.run(config, trained)
    assert (trained / "report.json").read_bytes() == written
    shown = capsys.readouterr().err
    assert f"saw it 7 .|{continuation}" in shown and "neighbours of" in shown

    config.prompt_file, config.prompt = "", "the cat"
    rpt.run(config, trained)
    assert "fewer than a window of 16" in capsys.readouterr().err


@pytest.mark.slow
def test_given_neighbours_are_retro(text, cache, tmp_path):
    config = small(rpt.tiny(), text)
    config.method.neighbours = "given"
    made = rpt.run(config, tmp_path / "given")
    assert isinstance(made, dict)
    assert set(made["controls"]) == {"off", "shuffled"}
    assert set(made["protocol"]["retriever"]["lexical"]) == {"bm25", "shuffled"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"documents.shortest": 0}, "tokens, fewer than a window of 16.*shortest"),
        ({"documents.shortest": 10_000}, "No document has 10000 tokens"),
        ({"documents.shortest": -1}, "choose 0 or more"),
        ({"data.length": 40}, "data.length is 40.*windows of 16"),
        ({"data.length": 16}, "data.length is 16"),
        ({"data.order": "similar"}, "data.order is 'similar'"),
        ({"data.batch_size": 400}, "fewer than a batch of 400"),
        ({"evaluate.stride": 8}, "evaluate.stride is 8"),
        ({"targets.num": 1}, "targets.num is 1.*reads 2"),
        ({"targets.every": 0}, "targets.every is 0"),
        ({"targets.kind": "semantic"}, "name one with --config.targets.reference"),
        ({"targets.kind": "other"}, "targets.kind is 'other'"),
        ({"targets.reference": "./nowhere"}, "no language model in ./nowhere"),
        ({"method.chunk_length": 5}, "chunks of 5"),
        ({"method.cca_every": 0}, "cca_every is 0"),
        ({"method.sampling.steps": 0}, "sampling.steps is 0"),
        ({"method.auxiliary.margin_steps": 0}, "margin_steps is 0"),
        ({"method.retrieval_window": "none"}, "method.retrieval_window is 'none'"),
        ({"warm_start": True}, "warm_start copies"),
        ({"init_from": "./nowhere"}, "no language model in ./nowhere"),
        ({"baseline": "./nowhere"}, "no language model in ./nowhere"),
        ({"new_tokens": 0}, "new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"prompt_file": "nowhere"}, "prompt_file nowhere cannot be read"),
        ({"prompt_file": "x", "prompt": "y"}, "give one of the two"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_bad_input_is_one_sentence(text, cache, tmp_path, changes, says):
    config = small(rpt.tiny(), text)
    shrunken.change(config, changes)
    with pytest.raises(UserError, match=says):
        rpt.run(config, tmp_path / "run")
    assert not (tmp_path / "run/targets").exists()  # told before the scoring


def test_a_table_of_another_text_or_reference_is_refused(
    trained, text, plain, tmp_path, cache
):
    config = taught(text, plain)
    config.targets.folder = str(trained / "targets")
    config.targets.reference, config.targets.kind = "", "lexical"
    with pytest.raises(UserError, match="holds reference = .* use another folder"):
        rpt.run(config, tmp_path / "reference")
    other = write_documents(tmp_path / "other")
    path = tmp_path / "other/train.jsonl"
    path.write_text(path.read_text().replace("cat", "cow"))
    config = taught(other, plain)
    config.targets.folder = str(trained / "targets")
    with pytest.raises(UserError, match="holds text = .* use another folder"):
        rpt.run(config, tmp_path / "text")
    with pytest.raises(UserError, match="belongs to another run"):
        config = taught(text, plain)
        config.targets.kind = "lexical"
        rpt.run(config, trained)


def test_a_run_of_rpt_is_no_plain_decoder(trained, text, tmp_path):
    config = small(rpt.tiny(), text)
    config.init_from = str(trained)
    with pytest.raises(UserError, match=f"{trained} is one of RPT"):
        rpt.run(config, tmp_path)


@pytest.mark.slow
def test_the_presets_fit(text, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dry_run, "COMPILED", 0)
    for name, preset in rpt.PRESETS.items():
        config = preset()
        config.data.corpus, config.data.tokenizer = text, "bytes"
        config.data.batch_size, config.documents.shortest = 1, 40
        decoder = config.method.decoder
        decoder.attention_window, config.method.chunk_length = 16, 8
        config.evaluate.window = config.evaluate.stride = 16
        config.targets.kind, config.data.length = "lexical", 64
        rpt.run(config, tmp_path / name, dry_run=True)
        assert not (tmp_path / name).exists()
    assert capsys.readouterr().err.count("batch candidates") == len(rpt.PRESETS)


def test_the_presets_sizes_go_together():
    for preset in rpt.PRESETS.values():
        config = preset()
        config.targets.reference = "a reference"
        decoder = dataclasses.replace(config.method.decoder, vocab_size=9)
        rpt_config.check(config)
        methods_rpt.model_sizes(dataclasses.replace(config.method, decoder=decoder))


RUN = """
import sys
from experiments import rpt
from tests.recipes.test_rpt_launcher import taught
config = taught(sys.argv[2], sys.argv[3])
config.train.steps, config.train.checkpoint_every = 12, 3
config.targets.shard_size = 4
rpt.run(config, sys.argv[1])
"""


def start(workdir: pathlib.Path, text: str, plain: pathlib.Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(workdir), text, str(plain)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "NPROC": "16"},
        stderr=subprocess.DEVNULL,
    )


def ended(workdir: pathlib.Path) -> list:
    """The tables' bytes, the figures, and the parameters."""
    made = json.loads((workdir / "report.json").read_text())
    names = ("train", "validation", "test")
    rows = [(workdir / f"targets/{name}/rows").read_bytes() for name in names]
    params = checkpoint.load_params(workdir)
    flat = sorted((str(k), x.tobytes()) for k, x in _leaves(params))
    return [*rows, made["metrics"], made["controls"], flat]


def _leaves(tree, path=()):
    if isinstance(tree, dict):
        for name, part in tree.items():
            yield from _leaves(part, (*path, name))
    else:
        yield path, np.asarray(tree)


@pytest.mark.multi
@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bits(text, plain, tmp_path):
    """In scoring and in training, at random moments; every start gets a bit further."""
    began = time.monotonic()
    assert start(tmp_path / "straight", text, plain).wait(timeout=600) == 0
    seconds = time.monotonic() - began
    folder, kills, rng = tmp_path / "killed", 0, random.Random(0)
    stages = set()
    for marker in ("targets", "targets/train", "targets/test", "checkpoints", None):
        run = start(folder, text, plain)
        while marker and run.poll() is None:
            found = folder / marker
            partial = found.with_name(found.name + ".partial")
            if found.exists() or (partial / "manifest.json").exists():
                break
            time.sleep(0.005)
        if marker != "targets":  # killed at once, while the first ones are scored
            time.sleep(rng.uniform(0, 0.1 * seconds if marker else seconds))
        kills += run.poll() is None
        stages.add(tuple(sorted(x.name for x in folder.glob("targets/*"))))
        run.kill()
        run.wait()
    assert kills >= 3 and len(stages) >= 2
    assert start(folder, text, plain).wait(timeout=600) == 0
    assert ended(folder) == ended(tmp_path / "straight")
