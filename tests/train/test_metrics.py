"""Figures: weighting, the file across resumes, TensorBoard, the table."""

import json
import math
import resource

import jax.numpy as jnp
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.train import metrics, progress


def test_sums_add_up_and_divide_once():
    first = metrics.to_host({"loss": (jnp.float32(6), jnp.float32(2))})
    second = {"loss": (2.0, 2.0), "own": (1.0, 4.0), "empty": (0.0, 0.0)}
    total = metrics.add(metrics.add({}, first), second)
    assert metrics.means(total) == {"loss": 2.0, "own": 0.25}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_first_metric_that_is_not_finite_is_named(bad):
    metrics.check_finite({"loss": (1.0, 1.0)}, 3)
    with pytest.raises(UserError, match="'retrieval' is .* at step 3; lower"):
        metrics.check_finite({"loss": (1.0, 1.0), "retrieval": (bad, 1.0)}, 3)


def test_resuming_drops_later_lines_and_torn_ones(tmp_path):
    writer = metrics.Writer(tmp_path, start=0)
    for step in (5, 10, 15):
        writer.write(step, {"loss": float(step)}, split="train")
    writer.write(10, {"perplexity": math.inf}, split="validation")
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "spl')
    writer = metrics.Writer(tmp_path, start=10)
    writer.write(12, {"loss": 1.0}, split="train")
    writer.close()
    rows = [
        json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    assert [row["step"] for row in rows] == [5, 10, 10, 12]
    assert rows == metrics.read(tmp_path)
    assert rows[2] == {"step": 10, "split": "validation", "perplexity": None}


@pytest.mark.parametrize("kept", ["all", "fewer", "other", "none"])
def test_a_log_that_is_not_what_it_was_is_told(tmp_path, kept, capsys):
    """Lines that a damaged file had lost were missing without a word."""
    path = tmp_path / "metrics.jsonl"
    writer = metrics.Writer(tmp_path, start=0)
    for step in (5, 10):
        writer.write(step, {"loss": float(step)}, split="train")
    written = writer.written
    writer.write(15, {"loss": 15.0}, split="train")
    writer.close()
    lines = path.read_text().splitlines(keepends=True)
    if kept == "none":
        path.unlink()
    else:
        changed = lines[1].replace("10.0", "10.5")
        path.write_text(
            "".join(lines[: 1 if kept == "fewer" else 3]).replace(
                lines[1], changed if kept == "other" else lines[1]
            )
        )
    writer = metrics.Writer(tmp_path, start=10, written=written)
    writer.write(15, {"loss": 15.0}, split="train")
    writer.close()
    told = capsys.readouterr().err
    assert ("metrics.jsonl is damaged" in told) == (kept != "all")
    assert told.count("\n") == (kept != "all")
    assert metrics.read(tmp_path)[-1]["step"] == 15
    assert (
        writer.written["lines"] == {"all": 3, "other": 3, "fewer": 2, "none": 1}[kept]
    )


@pytest.mark.parametrize(
    "line",
    [
        *("null", "[1]", '{"split": "train"}', '{"step": true, "split": "train"}'),
        *('{"step": "5", "split": "train"}', '{"step": 5, "split": 1}', '{"step": 5'),
        '{"step": 5, "split": "train", "loss": "low"}',
        '{"step": 5, "split": "train", "loss": [1.0]}',
    ],
)
def test_a_line_of_other_types_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 5, "split": "train", "loss": 1.0, "gain": null}\n'
    path.write_text(f"{good}{line}\n{good}")
    for read in (metrics.read, lambda folder: metrics.Writer(folder, start=9)):
        with pytest.raises(UserError, match=r"Line 2 of .*metrics.jsonl .*remove that"):
            read(tmp_path)


def test_no_file_no_lines(tmp_path):
    assert metrics.read(tmp_path) == []


def test_tensorboard_gets_the_same(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = metrics.Writer(tmp_path, start=0, tensorboard=True)
    writer.write(5, {"loss": 2.0}, split="train")
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_a_full_disk_ends_tensorboard_in_a_sentence(tmp_path):
    """Its thread died, and the run waited for ever for room in a queue."""
    pytest.importorskip("tensorboardX")
    writer = metrics.Writer(tmp_path, start=0, tensorboard=True)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        with pytest.raises(UserError, match="cannot be written .*; make room"):
            for step in range(100):
                writer.write(step, {"a" * 100: 1.0}, split="train")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    writer.close()


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        metrics.Writer(tmp_path / "file", start=0)


def test_parameter_table():
    params = {"a": {"kernel": np.zeros((1000, 20), np.float32)}, "b": np.zeros(3)}
    rows = progress.parameter_table(params).splitlines()
    assert rows[1].split() == ["a/kernel", "(1000,", "20)", "float32", "20,000"]
    assert rows[-1].split()[0] == "total" and rows[-1].split()[-1] == "20,003"
    assert len({len(row) for row in rows}) == 1


def test_rate_leaves_out_what_is_skipped(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    rate = progress.Rate()
    rate.add(60)
    now[0] = 10.0
    rate.skip(4.0)
    assert rate.read() == 10
    now[0] = 12.0
    rate.add(4)
    assert rate.read() == 2
