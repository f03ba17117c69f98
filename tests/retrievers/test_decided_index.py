"""Indexes that the run itself chooses: by a bound, or as another process makes them."""

import json
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from experiments import watch
from rlm_jax.errors import UserError
from rlm_jax.retrievers import background, encode_snapshot, watch_snapshots
from rlm_jax.train import checkpoint, metrics
from tests.retrievers import stale_run
from tests.retrievers.test_stale_index import shared, start  # noqa: F401


def decided(folder):
    records = json.loads((folder / "decisions.json").read_text())["decisions"]
    return {x["step"]: x["keys_step"] for x in records}, records


@pytest.mark.slow
def test_an_index_is_made_once_it_is_too_old(shared):  # noqa: F811
    folder = shared / "bounded"
    stale_run.run(folder, stale_run.CONFIGS["bounded"], shared)
    keys, records = decided(folder)
    assert list(keys) == [0, 3, 6, 9]
    for record in records[1:]:
        fresh = record["keys_step"] == record["step"]
        assert fresh == (record["recall"] < stale_run.BOUND)
    assert len(set(keys.values())) in (2, 3)  # some were made, and some were not
    generations = json.loads((folder / "generations.json").read_text())
    assert list(generations) == [f"step_{x}" for x in sorted(set(keys.values()))]
    identity = json.loads((folder / "rounds/10/manifest.json").read_text())["identity"]
    assert identity["keys_step"] == keys[9]


def test_a_bound_asks_for_questions(shared, tmp_path, monkeypatch):  # noqa: F811
    task = stale_run.stale_training.Task
    without = lambda questions, batch, k, **_: task(questions, batch, k)
    monkeypatch.setattr(stale_run.stale_training, "Task", without)
    with pytest.raises(UserError, match="held-out questions"):
        stale_run.run(tmp_path / "run", stale_run.CONFIGS["bounded"], shared)


@pytest.fixture
def at_once(monkeypatch):
    """Another process that is done as soon as a snapshot is there."""

    def begin(self, partial):
        self._partial = partial
        encode_snapshot.run(partial)

    monkeypatch.setattr(background.Elsewhere, "start", begin)


def test_what_another_process_publishes_is_taken_up(shared, at_once):  # noqa: F811
    """At the next step of the schedule, with current queries."""
    folder = shared / "external"
    stale_run.run(folder, stale_run.CONFIGS["external"], shared)
    keys, _ = decided(folder)
    assert keys == {0: 0, 2: 0, 4: 2, 6: 4, 8: 6, 10: 8}
    assert [x.name for x in (folder / "indexes").glob("step_*")] == ["step_8"]
    refreshes = json.loads((folder / "refreshes.json").read_text())["refreshes"]
    assert [(x["step"], x["mean_age"]) for x in refreshes] == [
        *((4, 1.5), (6, 2.5), (8, 2.5), (10, 2.5)),
    ]


@pytest.mark.multi
@pytest.mark.slow
def test_whatever_was_taken_up_is_taken_up_again(shared, tmp_path):  # noqa: F811
    """The trainer is killed; its decisions alone make another run the same."""
    folder, over = shared / "watched", threading.Event()
    watching = threading.Thread(
        target=watch_snapshots.watch,
        args=(shared,),
        kwargs={"seconds": 0.05, "ended": over.is_set},
    )
    watching.start()
    try:
        trainer = start(folder, "external", 0.3)
        while not any(row["step"] >= 7 for row in metrics.read(folder / "run")):
            assert trainer.poll() is None
            time.sleep(0.01)
        trainer.kill()
        trainer.communicate(timeout=60)
        config = stale_run.CONFIGS["external"]
        stale_run.run(folder / "run", config, shared)
        keys, _ = decided(folder / "run")
        assert max(keys.values()) >= 2
        again = shared / "watched_again"
        again.mkdir()
        kept = (folder / "run" / "decisions.json").read_bytes()
        (again / "decisions.json").write_bytes(kept)
        stale_run.run(again, config, shared)
    finally:
        over.set()
        watching.join()
    assert decided(again)[0] == keys
    states = [checkpoint.load_params(x) for x in (folder / "run", again)]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_the_watcher_starts_from_a_command_line(tmp_path):
    command = [sys.executable, "-m", "experiments.watch", "--config.once=True"]
    done = subprocess.run(
        [*command, "--workdir", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "0 snapshots wait" in done.stderr


def test_a_watcher_tells_what_fails_and_goes_on(tmp_path, capsys):
    partial = tmp_path / "joint/indexes/step_4.partial"
    (partial / "snapshot").mkdir(parents=True)
    assert watch.run(watch.Config(once=True), tmp_path) == 0  # no job yet
    (partial / "snapshot/job.json").write_text("[]")
    assert watch.run(watch.Config(), tmp_path, dry_run=True) == 0
    assert watch.run(watch.Config(once=True), tmp_path) == 0
    assert "job.json is damaged" in capsys.readouterr().err
    with pytest.raises(UserError, match="no folder"):
        watch.run(watch.Config(), tmp_path / "nowhere")
    with pytest.raises(UserError, match="choose more than 0"):
        watch.run(watch.Config(seconds=0), tmp_path)
