"""report.json: its fields, its atomic writing, and what is refused."""

import json
import os
import subprocess
from typing import Any

import jax
import pytest

from rlm_jax.errors import UserError
from rlm_jax.report import report
from rlm_jax.version import __version__


def tiny(**changes):
    fields: dict[str, Any] = dict(
        system="trime",
        preset="tiny",
        corpus="stdlib",
        metrics={"perplexity": 155.0, "bits_per_byte": 1.3},
        controls={"off": {"perplexity": 224.0}},
        seconds={"train": 12.5},
        protocol={"tokens": 1000, "denominator": "words"},
        commit="0123abc",
    )
    return report.build(**(fields | changes))


def test_round_trip_with_the_documented_fields(tmp_path):
    path = tmp_path / "report.json"
    report.write(path, tiny())
    again = report.read(path)
    assert again == tiny()
    assert set(report.FIELDS) | {"protocol"} == set(again)
    assert again["versions"]["rlm_jax"] == __version__
    assert again["versions"]["jax"] == jax.__version__
    assert again["device"].startswith(f"{jax.device_count()} x ")
    assert again["controls"]["off"]["perplexity"] == 224.0


def test_numbers_of_arrays_become_plain_numbers(tmp_path):
    built = tiny(metrics={"perplexity": jax.numpy.float32(2.5)})
    report.write(tmp_path / "report.json", built)
    assert report.read(tmp_path / "report.json")["metrics"] == {"perplexity": 2.5}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_figures_that_are_not_finite_are_named(value):
    with pytest.raises(UserError, match=r"controls\.off\.perplexity is (nan|inf)"):
        tiny(controls={"off": {"perplexity": value}})


def test_a_failed_write_leaves_the_old_report_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    report.write(path, tiny())

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        report.write(path, tiny(preset="other"))
    assert report.read(path)["preset"] == "tiny"
    assert list(tmp_path.iterdir()) == [path]


def test_unreadable_reports_are_refused(tmp_path):
    path = tmp_path / "report.json"
    with pytest.raises(UserError, match="Cannot read the report"):
        report.read(path)
    path.write_text(json.dumps(tiny())[:-20])
    with pytest.raises(UserError, match="is not JSON"):
        report.read(path)
    path.write_text("[1]")
    with pytest.raises(UserError, match='lacks a proper "system"'):
        report.read(path)
    path.write_text(json.dumps(tiny() | {"seconds": 3}))
    with pytest.raises(UserError, match='lacks a proper "seconds"'):
        report.read(path)


def test_commit_of_a_working_tree(tmp_path):
    assert report.commit_of(tmp_path / "absent") is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("one")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    subprocess.run([*git, "-c", "tag.gpgSign=false", "tag", "v1"], check=True)
    commit = report.commit_of(tmp_path)
    assert commit is not None and len(commit) == 40
    (tmp_path / "file").write_text("two")
    assert report.commit_of(tmp_path) == commit + "-dirty"
