"""RETRO's launcher: it retrieves, trains, reports with its controls, and goes on."""

import json
import math
import pathlib
import shutil

import numpy as np
import pytest

from experiments import lm, retro
from rlm_jax import terminal
from rlm_jax.data import overlap, passages
from rlm_jax.errors import UserError
from rlm_jax.recipes import language_model
from rlm_jax.recipes.chunks import retro_data, retro_evaluation
from rlm_jax.report import report
from rlm_jax.retrieval import encode_stream
from rlm_jax.storage import row_shards
from rlm_jax.storage.locks import locked
from rlm_jax.train import checkpoint, dry_run
from tests.recipes import shrunken

M = 8
NOUNS = ("cat", "dog", "house", "river", "stone", "bird", "lamp", "road")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Documents, one a line; the first of test is one of the training documents."""
    folder = tmp_path_factory.mktemp("text") / "corpus"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train", 30), ("valid", 8), ("test", 8)):
        lines = [
            " ".join(f"the {NOUNS[i]} saw it {i} ." for i in rng.integers(8, size=12))
            for _ in range(count)
        ]
        if name == "train":
            copied = lines[3]
        elif name == "test":
            lines[0] = copied
        records = "".join(json.dumps({"text": line}) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(records)
    return f"jsonl:{folder}"


def small(config, text: str):
    config = shrunken.shrink(config, text)
    config.evaluate.window, config.evaluate.stride = 32, 16
    config.method.decoder.num_layers = 2
    if hasattr(config, "database"):
        config.method.chunk_length, config.method.k = M, 2
        config.method.cca_layers = (1,)
        config.method.encoder.width, config.method.encoder.num_heads = 16, 1
        config.database.depth, config.database.search.k = 16, 4
        config.ks = ()
    return config


@pytest.fixture(scope="module")
def plain(text, cache, tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("runs") / "lm"
    lm.run(small(lm.tiny(), text), workdir)
    return workdir


@pytest.fixture(scope="module")
def trained(text, plain, tmp_path_factory) -> pathlib.Path:
    """A workdir in which RETRO was fitted to the plain model, and compared with it."""
    workdir = tmp_path_factory.mktemp("runs") / "retro"
    retro.run(fitted(text, plain), workdir)
    return workdir


def fitted(text: str, plain: pathlib.Path) -> retro.Config:
    config = small(retro.tiny(), text)
    config.method.trained, config.init_from = "retrieval", str(plain)
    config.warm_start, config.method.cca_layers = True, (2,)
    config.method.encoder.width = config.method.encoder.num_heads = 0
    config.baseline, config.ks = str(plain), (1, 2, 4)
    config.optim.weight_decay = 0.1
    return config


def test_the_report_has_controls_baseline_leakage_and_neighbours(trained):
    made = report.read(trained / "report.json")
    assert set(made["controls"]) == {
        *("off", "shuffled", "oracle", "plain"),
        # Real has two.
        *("k=1", "k=1, shuffled", "k=4", "k=4, shuffled"),
    }
    for figures in (made["metrics"], *made["controls"].values()):
        assert all(math.isfinite(x) and x > 0 for x in figures.values())
    protocol = made["protocol"]
    assert protocol["tokens"] == 512
    facts = protocol["database"]
    assert facts["duplicate_documents"] == 1
    assert facts["train"]["chunks"] == facts["chunks"] and facts["train"]["empty"] == 0
    assert facts["train"]["chunks_per_second"] > 0
    curve = protocol["leakage"]
    assert curve["alphas"][-1] == 1 and curve["num_chunks"][-1] == 513 // M + 1
    for name, key in (("RETRO", None), ("RETRO, off", "off"), ("plain LM", "plain")):
        whole = made["controls"][key] if key else made["metrics"]
        assert curve["bits_per_byte"][name][-1] == pytest.approx(whole["bits_per_byte"])
    for name in ("leakage", "training", "controls"):
        assert (trained / f"plots/{name}.png").stat().st_size > 1000


def test_fitting_leaves_the_decoder_as_it_was(trained, plain):
    made = report.read(trained / "report.json")
    assert made["controls"]["off"] == made["controls"]["plain"]
    assert made["metrics"] != made["controls"]["off"]
    before = checkpoint.load_params(plain)
    after = checkpoint.load_params(trained)
    np.testing.assert_array_equal(
        after["decoder"]["vocabulary"]["embedding_0"],
        before["vocabulary"]["embedding_0"],
    )


def test_a_warm_start_is_where_the_training_began(trained, plain):
    before, after = (checkpoint.load_params(x) for x in (plain, trained))
    kernel = before["block_0"]["feed_forward"]["in"]["kernel"]
    moved = after["encoder"]["block_0"]["feed_forward"]["in"]["kernel"] - kernel
    assert 0 < np.abs(moved).max() < 0.2 * np.abs(kernel).max()


def test_neighbours_are_of_other_documents_and_of_none_that_is_copied(trained, text):
    config = small(retro.tiny(), text)
    loaded = language_model.load_text(config.data)
    split = loaded.store.split("train")
    chunks = retro_data.stream(split, M)
    ids = np.memmap(trained / "database/neighbours-train" / row_shards.FILE, "<i4")
    ids = ids.reshape(-1, 2)
    assert len(ids) == len(chunks)
    overlaps = chunks.first_document[ids] <= chunks.last_document[:, None]
    overlaps &= chunks.last_document[ids] >= chunks.first_document[:, None]
    assert not overlaps.any()
    copied = (chunks.first_document <= 3) & (chunks.last_document >= 3)
    assert not np.isin(ids, np.flatnonzero(copied)).any()


@pytest.mark.slow
def test_a_run_goes_on_and_shares_its_database(
    trained, text, plain, tmp_path, monkeypatch
):
    workdir = tmp_path / "retro"
    shutil.copytree(trained, workdir)
    config = fitted(text, plain)
    config.train.steps = 3
    with monkeypatch.context() as patched:  # what is left out was found before
        patched.delattr(overlap, "near_duplicates")
        retro.run(config, workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(x)["step"] for x in lines if '"train"' in x]
    assert steps == [1, 2, 3]

    config = small(retro.tiny(), text)
    config.database.folder = str(workdir / "database")
    made = retro.run(config, tmp_path / "scratch")
    assert isinstance(made, dict)
    assert not (tmp_path / "scratch/database").exists()
    assert made["protocol"]["database"]["train"]["chunks_per_second"] is None

    config.database.more, config.database.overlap = text, 3
    with pytest.raises(UserError, match="holds bounds .* use another folder"):
        retro.run(config, tmp_path / "more")


def test_a_run_waits_for_another_that_fills_its_database(
    text, cache, tmp_path, monkeypatch
):
    class Waits(Exception):
        pass

    def say(line):
        if "waiting for another run" in line:
            raise Waits

    monkeypatch.setattr(terminal, "say", say)
    folder = tmp_path / "database"
    folder.mkdir()
    config = small(retro.tiny(), text)
    config.database.folder = str(folder)
    with locked(folder / ".lock"), pytest.raises(Waits):
        retro.run(config, tmp_path / "retro")
    assert [path.name for path in folder.iterdir()] == [".lock"]


@pytest.mark.slow
def test_another_corpus_joins_and_what_overlaps_does_not(text, cache, tmp_path):
    config = small(retro.tiny(), text)
    config.database.more, config.database.overlap = text, 1
    made = retro.run(config, tmp_path)
    assert isinstance(made, dict)
    facts = made["protocol"]["database"]
    assert facts["chunks"] > facts["train"]["chunks"]
    left_out = facts["overlapping_chunks"] + facts["duplicate_chunks"]
    # All words but those that a chunk's edge made are the evaluated text's too.
    assert 0.98 * facts["chunks"] < left_out < facts["chunks"]
    ids = np.memmap(tmp_path / "database/neighbours-test" / row_shards.FILE, "<i4")
    assert len(np.unique(ids)) <= facts["chunks"] - left_out


def test_a_prompt_is_continued_and_the_report_stays(trained, text, plain, capsys):
    written = (trained / "report.json").read_bytes()
    config = fitted(text, plain)
    config.prompt, config.new_tokens, config.temperature = "the cat saw it", 12, 0.0
    continuation = retro.run(config, trained)
    assert (trained / "report.json").read_bytes() == written
    shown = capsys.readouterr().err
    assert shown.count("neighbours of") == 3  # 26 bytes have three chunks
    assert f"the cat saw it|{continuation}" in shown

    # What is evaluated is no business of a prompt, nor does it change what is stored.
    config.baseline, config.ks, config.retrieve = "", (), False
    retro.run(config, trained)
    assert "neighbours of" not in capsys.readouterr().err
    assert (trained / "report.json").read_bytes() == written
    stored = json.loads((trained / "config.json").read_text())
    assert stored["baseline"] == str(plain) and not stored["prompt"]


@pytest.mark.slow
def test_the_database_is_encoded_by_a_run_of_ones_own(text, cache, tmp_path):
    config = small(retro.tiny(), text)
    workdir = tmp_path / "run"
    tower = shrunken.save_encoder(workdir / "encoder", passages.load(f"corpus:{text}"))
    (workdir / "config.json").write_text('{"system": "dpr"}')
    config.database.encoder = str(workdir)
    retro.run(config, tmp_path / "retro")
    manifest = (tmp_path / "retro/database/database/manifest.json").read_text()
    assert encode_stream.fingerprint(tower.params) in manifest
    (workdir / "question_encoder").mkdir()
    with pytest.raises(UserError, match="has two encoders; name .*run/encoder, which"):
        retro.run(config, tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data.length": 36}, "data.length is 36.*chunks of 8"),
        ({"evaluate.stride": 12}, "evaluate.stride is 12"),
        ({"data.order": "similar"}, "data.order is 'similar'"),
        ({"database.search.k": 1}, "raise database.search.k"),
        ({"ks": (0, 1)}, "ks holds 0; choose 1"),
        ({"ks": (1, 10)}, "ks are .1, 10., and a test chunk keeps 4"),
        ({"database.max_depth": 8}, "raise database.max_depth"),
        ({"new_tokens": 0}, "new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"method.trained": "retrieval"}, "name a trained one with --config.init_from"),
        ({"warm_start": True}, "warm_start copies a trained decoder's layers"),
        ({"init_from": "./nowhere"}, "no language model in ./nowhere"),
        ({"baseline": "nowhere"}, "no run in nowhere"),
        ({"database.encoder": "./nowhere"}, "nowhere"),
        ({"database.folder": "/dev/null/x"}, "/dev/null/x"),
        ({"database.search.index": "tree"}, "database.search.index is 'tree'"),
        ({"database.search.kept": "int4"}, "database.search.kept is 'int4'"),
        ({"database.search.target_recall": 1.5}, "1.5"),
        ({"data.batch_size": 400}, "400"),
        (
            {"method.decoder.positions": "learned", "method.decoder.max_length": 31},
            "data.length is 32",
        ),
        ({"database.duplicates": 1e-9, "database.overlap": 1}, "Every chunk"),
        ({"database.duplicates": 2.0}, "duplicates is 2.0; choose"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_bad_input_is_one_sentence(text, cache, tmp_path, changes, says):
    config = small(retro.tiny(), text)
    shrunken.change(config, changes)
    with pytest.raises(UserError, match=says):
        retro.run(config, tmp_path)
    assert not (tmp_path / "database").exists()  # it was told before the encoding


def test_a_warm_start_that_cannot_be_is_told_before_the_encoding(text, plain, tmp_path):
    config = fitted(text, plain)
    config.method.encoder.width = 16
    with pytest.raises(UserError, match="set encoder.width to 0"):
        retro.run(config, tmp_path)
    assert not (tmp_path / "database").exists()


@pytest.mark.parametrize("field", ["baseline", "init_from"])
def test_a_run_of_retro_is_no_plain_decoder(trained, text, tmp_path, field):
    config = small(retro.tiny(), text)
    setattr(config, field, str(trained))
    with pytest.raises(UserError, match=f"(?i){trained} is .*retro"):
        retro.run(config, tmp_path)


@pytest.mark.slow
def test_the_presets_fit(text, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dry_run, "COMPILED", 0)
    for name, preset in retro.PRESETS.items():
        config = preset()
        config.database.more = ""
        config.data.corpus, config.data.tokenizer = text, "bytes"
        config.data.batch_size, config.data.length = 2, 4 * config.method.chunk_length
        workdir = tmp_path / name
        retro.run(config, workdir, dry_run=True)
        assert not workdir.exists()
    assert capsys.readouterr().err.count("batch neighbours") == len(retro.PRESETS)


def test_the_head_of_a_split_is_in_whole_documents_and_chunks(text, cache):
    config = small(retro.tiny(), text)
    loaded = language_model.load_text(config.data)
    part = retro_evaluation.head(loaded, "test", 513, M)
    assert len(part.split.tokens) == 513
    assert part.split.document_offsets[-1] == 513
    assert len(part.chunks) == 513 // M + 1
