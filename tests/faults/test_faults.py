"""A campaign in short, and that it can tell what does not hold."""

import json
import pathlib
import random
import shutil

import pytest

from tests.faults import ended, figures, kinds
from tests.faults.__main__ import campaign
from tests.faults.names import KINDS, SYSTEMS
from tests.faults.server import Ended, Watch
from tests.faults.tries import Straight, Try


@pytest.mark.multi
@pytest.mark.slow
def test_nothing_is_lost_in_a_short_campaign(tmp_path):
    """A language model and its datastore; two processes of a language model."""
    short = {"folder": tmp_path / "campaign", "seed": 1, "number": 1}
    alone = tuple(kind for kind in KINDS if kind != "processes")
    done = campaign(systems=("knn_lm",), faults=alone[:2], **short)
    assert len(done) == 2
    done = campaign(systems=("knn_lm",), faults=alone, **short)  # goes on after those
    done += campaign(systems=("lm",), faults=("processes",), **short)
    assert [x["told"] for x in done if x["told"]] == []
    assert [x["kind"] for x in done] == list(KINDS)
    assert len(done[0]["faults"]) == kinds.KILLS


class Pretended:
    """A server whose runs end at once, as told."""

    def __init__(self, work, last: Ended):
        self._work, self._last = work, last

    def start(self, system, workdir, cache, **options):
        del system, cache, options
        workdir.mkdir(parents=True, exist_ok=True)
        self._work(workdir)
        return self

    def poll(self):
        return self._last.status

    def send(self, number):
        del number
        return False

    def wait(self, seconds):
        del seconds
        return self._last


def write_report(loss: float):
    def write(workdir: pathlib.Path) -> None:
        report = {"metrics": {"loss": loss}, "seconds": {"train": random.random()}}
        (workdir / "report.json").write_text(json.dumps(report))

    return write


def attempt(folder: pathlib.Path, loss: float, last: Ended) -> Try:
    whole = folder / "whole"
    shutil.rmtree(folder, ignore_errors=True)
    (whole / "run").mkdir(parents=True)
    (whole / "cache").mkdir()
    write_report(1.0)(whole / "run")
    (whole / "run" / "weights").write_bytes(bytes(range(100)))
    straight = Straight(whole, whole, ended.of(whole / "run"), 0.1, [])
    there = folder / "try"
    there.mkdir()
    server = Pretended(write_report(loss), last)
    return Try(server, "lm", straight, there, random.Random(0), 0, [])  # type: ignore


SAID = "Traceback (most recent call last):\n  File\nValueError: no\n"


@pytest.mark.parametrize(
    "loss, last, told",
    [
        (1.0, Ended(0, "fine"), ""),
        (2.0, Ended(0, "fine"), "silent: other report.json"),
        (1.0, Ended(1, "error: The file is damaged; delete it.\n"), ""),
        (1.0, Ended(1, SAID), "traceback: ValueError: no"),
        (1.0, Ended(None, ""), "hang"),
        (1.0, Ended(-11, ""), "ended by signal 11"),
        (1.0, Ended(1, "error: One.\nerror: Two.\n"), "status 1 with 2 sentences"),
    ],
)
def test_what_does_not_hold_is_told(tmp_path, loss, last, told):
    trial = attempt(tmp_path / "there", loss, last)
    found = kinds.damage(trial)
    assert found.partition(" (")[0] == told
    trial = attempt(tmp_path / "there", loss, Ended(0, ""))
    assert trial.finish() == ("other report.json" if loss != 1 else "")


MORE = {"seconds": 1.0, "processor": 0.5, "faults": ["a", "b"], "commit": "abc"}


@pytest.mark.parametrize(
    "last, told",
    [
        (Ended(1, "error: There is too little memory; free some.\n"), ""),
        (Ended(-6, "F0000 pthread_create() failed\n"), "below"),
        (Ended(-6, SAID), "traceback"),
        (Ended(-9, ""), "lost"),
        (Ended(1, "Segmentation fault"), "lost"),
        (Ended(None, ""), "hang"),
    ],
)
def test_little_memory_ends_in_a_sentence_or_below(tmp_path, last, told, monkeypatch):
    monkeypatch.setattr(Try, "finish", lambda self: "")
    trial = attempt(tmp_path / "there", 1.0, last)
    found = kinds.memory(trial)
    assert figures.outcome(found, trial.did) == (told or "held")


def test_what_a_warning_tells_is_not_silent(tmp_path):
    trial = attempt(tmp_path / "there", 1.0, Ended(0, ""))
    trial.run()
    (trial.workdir / "metrics.jsonl").write_text('{"step": 1}')
    assert trial.compare() == "other metrics.jsonl"
    path = trial.workdir / "metrics.jsonl"
    assert trial.compare(f"warning: {path} is damaged: it has 1 line") == ""
    assert trial.compare(f"warning: {path.parent} is damaged") == "other metrics.jsonl"


def test_seconds_in_which_all_is_stopped_do_not_count(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("tests.faults.server.time.monotonic", lambda: now[0])
    watch = Watch()
    for passed in (0.5, 0.5, 600.0, 0.25):
        now[0] += passed
        found = watch.seconds
    assert found == watch.seconds == 2.25


def test_figures_are_counted_and_written_between_the_marks(tmp_path):
    told = ["", "", "silent: report.json (x)", "hang", "does not go on: traceback: y"]
    tries = [
        {"kind": "kill", "system": system, "number": i, "told": x, **MORE}
        for system in SYSTEMS[:2]
        for i, x in enumerate(told)
    ]
    found = figures.figures(tries, 3)
    assert found["counted"]["kill"]["lm"] == {
        **{"tries": 5, "faults": 10, "held": 2, "silent": 1, "hang": 1, "traceback": 1}
    }
    assert len(found["failed"]) == 6
    page, results = tmp_path / "page.md", tmp_path / "faults.json"
    page.write_text(f"# Page\n{figures.BEGIN}\nformer\n{figures.END}\nafter\n")
    figures.write(found, page, results)
    figures.write(found, page, results)
    text = page.read_text()
    assert text.startswith("# Page\n") and text.endswith("\nafter\n")
    assert "former" not in text and "| 2 | 10 | 20 | 0 | 0 | 2 | 2 | 2 |" in text
    assert json.loads(results.read_text())["seed"] == 3
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no"):
        figures.write(found, page, results)


def test_every_kind_has_its_function():
    assert list(kinds.FAULTS) == list(KINDS)
