"""The loop: resuming, stopping, and what is logged, evaluated and saved when."""

import functools
import os
import signal
import subprocess
import sys
import threading
import time

import chex
import jax
import numpy as np
import pytest

from rlm_jax.errors import UserError
from rlm_jax.train import checkpoint, loop, metrics
from tests.train import toy


def steps_of(workdir, split="train"):
    return [row["step"] for row in metrics.read(workdir) if row["split"] == split]


@pytest.mark.parametrize("kind", toy.METHODS)
def test_killed_and_resumed_equals_straight(tmp_path, kind, capsys):
    def run(name):
        return toy.run(tmp_path / name, 10, method=toy.METHODS[kind](dropout=0.2))

    straight = run("straight")
    assert bool(straight.moving) == (kind == "moving")
    killed = subprocess.run(
        [
            *(sys.executable, "-m", "tests.train.toy", kind),
            *(tmp_path / "killed", "10", "5"),
        ],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        timeout=120,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert os.listdir(tmp_path / "killed" / "checkpoints") == ["5"]
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "split": "train", "loss": 1.0}\n{"step": 8, "spl')
    resumed = run("killed")
    chex.assert_trees_all_equal(resumed, straight)
    lines = [metrics.read(tmp_path / name) for name in ("straight", "killed")]
    for rows in lines:
        for row in rows:
            del row["targets_per_second"]
    assert lines[0] == lines[1]
    # All done: nothing is trained again, and the state is the same.
    chex.assert_trees_all_equal(run("killed"), straight)
    # Lines that go are told, but not where a copied step had none before it.
    assert "warning" not in capsys.readouterr().err
    (tmp_path / "killed" / "metrics.jsonl").unlink()
    run("killed")
    assert "metrics.jsonl is damaged" in capsys.readouterr().err
    (tmp_path / "killed" / "refreshes.json").write_text("{}")
    checkpoint.copy_latest(tmp_path / "killed", tmp_path / "copied" / "checkpoints")
    chex.assert_trees_all_equal(run("copied"), straight)
    assert "warning" not in capsys.readouterr().err


def test_loss_falls_and_is_logged(tmp_path, capsys):
    toy.run(tmp_path, 30)
    rows = metrics.read(tmp_path)
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert rows[0]["learning_rate"] == pytest.approx(0.03, rel=0.1)
    assert rows[0].keys() >= {"gradient_norm", "targets_per_second"}
    shown = capsys.readouterr().err
    assert "out/kernel" in shown and "272" in shown and "tokens/s" in shown


def test_logged_loss_is_weighted_by_targets(tmp_path):
    batches = [toy.batch_at(step) for step in range(2)]
    method = toy.method()

    def loss(params, batch, key, *, axis=None):
        weight = batch["mask"].sum()
        return {"loss": (0 * params["embed"].sum() + batch["cost"][0], weight)}

    costs = [3.0, 500.0]
    for batch, cost in zip(batches, costs, strict=True):
        batch["cost"] = np.full(8, cost, np.float32)
    toy.run(tmp_path, 2, lambda step: batches[step], method=method._replace(loss=loss))
    weights = sum(batch["mask"].sum() for batch in batches)
    assert metrics.read(tmp_path)[0]["loss"] == pytest.approx(sum(costs) / weights)


def test_not_a_number_stops_and_leaves_the_last_good_checkpoint(tmp_path):
    def batch_at(step):
        batch = toy.batch_at(step)
        if step == 6:
            batch["mask"] = batch["mask"] * np.nan
        return batch

    with pytest.raises(UserError, match="'gradient_norm' is nan / 1.0 at step 7;"):
        toy.run(tmp_path, 10, batch_at, every={"checkpoint_every": 1, "keep": 1})
    assert os.listdir(tmp_path / "checkpoints") == ["6"]
    assert np.isfinite(checkpoint.load_params(tmp_path)["embed"]).all()


def test_order_of_batches_boundaries_evaluations_and_saves(tmp_path, monkeypatch):
    events, save = [], checkpoint.Checkpoints.save

    def batch_at(step, start=-1):
        events.append(f"batch {step} of {start}")
        return toy.batch_at(step)

    def enter(params, done):
        events.append(f"enter {done}")
        time.sleep(0.05)  # what is not to be made meanwhile would be
        return functools.partial(batch_at, start=done)

    def saving(self, step, state, log):
        events.append(f"save {step}")
        save(self, step, state)

    monkeypatch.setattr(checkpoint.Checkpoints, "save", saving)
    toy.run(
        tmp_path,
        5,
        batch_at,
        every={"checkpoint_every": 2, "eval_every": 2},
        evaluate=lambda params, done: events.append(f"evaluate {done}") or {"x": 1.0},
        boundaries={2: enter, 3: enter},
    )
    # Batch s + 1 is made while step s runs, so before or after what step s logs.
    prefetched = ["batch 1 of -1", "batch 4 of 3"]
    assert [event for event in events if event not in prefetched] == [
        "batch 0 of -1",
        "evaluate 2",
        "save 2",
        "enter 2",
        "batch 2 of 2",
        "enter 3",
        "batch 3 of 3",
        "evaluate 4",
        "save 4",
        "evaluate 5",
        "save 5",
    ]
    assert events.index("batch 0 of -1") < events.index("batch 1 of -1")
    assert events.index("batch 1 of -1") < events.index("evaluate 2")
    assert events.index("batch 3 of 3") < events.index("batch 4 of 3")
    assert steps_of(tmp_path, "validation") == [2, 4, 5]


def entering(entered, name):
    def enter(params, done):
        entered.append((name, done, float(np.array(params["embed"]).sum())))
        return toy.batch_at

    return enter


@pytest.mark.parametrize(
    ("stop", "wanted"),
    [
        pytest.param(4, [("b", 4), ("c", 7)], id="between"),
        pytest.param(3, [("b", 3), ("c", 7)], id="at"),
        pytest.param(7, [("c", 7)], id="at_the_last"),
        pytest.param(9, [("c", 9)], id="behind_the_last", marks=pytest.mark.slow),
        pytest.param(10, [], id="done", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_enters_the_boundary_before_it(tmp_path, stop, wanted):
    entered = []
    boundaries = {
        at: entering(entered, name) for at, name in ((7, "c"), (0, "a"), (3, "b"))
    }
    toy.run(tmp_path / "straight", 10, None, boundaries=boundaries)
    straight = {done: total for _, done, total in entered}
    assert list(straight) == [0, 3, 7]
    toy.run(tmp_path / "parts", stop)
    entered.clear()
    toy.run(tmp_path / "parts", 10, None, boundaries=boundaries)
    assert [(name, done) for name, done, _ in entered] == wanted
    for _, done, total in entered:
        assert total == straight.get(done, total)


def test_boundaries_compile_nothing_again(tmp_path):
    traces = []
    enter = entering([], "")
    toy.run(
        tmp_path,
        9,
        None,
        method=toy.method(traces, dropout=0.2),
        boundaries={at: enter for at in (0, 2, 3, 4, 8)},
    )
    assert len(traces) == 1


def test_without_batches_there_is_a_boundary_at_the_start(tmp_path):
    with pytest.raises(ValueError, match="boundary at step 0"):
        toy.run(tmp_path, 3, None, boundaries={1: entering([], "")})


def test_no_step_leaves_what_training_would_start_from(tmp_path):
    toy.run(tmp_path, 0)
    assert checkpoint.steps(tmp_path / "checkpoints") == [0]
    params = checkpoint.load_params(tmp_path)
    wanted = jax.jit(toy.method().init)(jax.random.key(3))
    chex.assert_trees_all_equal(params, jax.device_get(wanted))
    # More steps go on from there, and end where a run from nothing does.
    resumed = toy.run(tmp_path, 3)
    chex.assert_trees_all_equal(resumed, toy.run(tmp_path / "straight", 3))


def test_a_step_asks_for_every_transfer(tmp_path):
    every = {"transfer_guard": "disallow", "accumulate": 2}
    toy.run(tmp_path, 4, every=every)
    with pytest.raises(UserError, match="choose allow, log or disallow"):
        toy.run(tmp_path, 4, every={"transfer_guard": "never"})


@pytest.mark.parametrize(("steps", "recorded"), [(6, True), (2, False)])
def test_the_profiler_records_some_steps(tmp_path, monkeypatch, steps, recorded):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", calls.append)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    toy.run(tmp_path, steps, every={"profile_steps": 9})
    assert calls == [tmp_path / "profile", "stop"] * recorded
    calls.clear()
    toy.run(tmp_path / "again", 6, every={"profile_steps": 2})
    assert calls == [tmp_path / "again" / "profile", "stop"]


@pytest.mark.parametrize(
    ("number", "status", "told"),
    [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")],
)
def test_a_signal_saves_and_leaves(tmp_path, capsys, number, status, told):
    before = signal.getsignal(number)

    def stop(params, done):
        os.kill(os.getpid(), number)
        return toy.batch_at

    with pytest.raises(SystemExit) as stopped:
        toy.run(tmp_path, 10, boundaries={3: stop})
    assert stopped.value.code == status
    assert f"stopped by {told}; step 4 is saved" in capsys.readouterr().err
    assert os.listdir(tmp_path / "checkpoints") == ["4"]
    assert signal.getsignal(number) is before
    resumed = toy.run(tmp_path, 10)
    chex.assert_trees_all_equal(resumed, toy.run(tmp_path / "straight", 10))


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def stop(params, done):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return toy.batch_at

    with pytest.raises(KeyboardInterrupt):
        toy.run(tmp_path, 10, boundaries={3: stop})
    assert not (tmp_path / "checkpoints" / "4").exists()


def test_trains_outside_the_main_thread(tmp_path):
    thread = threading.Thread(target=toy.run, args=(tmp_path, 2))
    thread.start()
    thread.join(timeout=60)
    assert steps_of(tmp_path) == [2]


def test_starts_from_given_parameters_and_keeps_them_alive(tmp_path):
    toy.run(tmp_path / "first", 2)
    params = checkpoint.load_params(tmp_path / "first")
    seen = []

    def enter(params, done):
        seen.append(np.array(params["embed"]))
        return toy.batch_at

    toy.run(tmp_path / "second", 1, initial_params=params, boundaries={0: enter})
    np.testing.assert_array_equal(seen[0], params["embed"])
    assert params["embed"].sum() == seen[0].sum()


def test_parameters_of_another_model_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"'out/bias' is \(3,\) there and \(16,\) here"):
        params = {
            "embed": np.zeros((toy.VOCAB, toy.DIM), np.float32),
            "out": {"bias": np.zeros(3), "kernel": np.zeros((toy.DIM, toy.VOCAB))},
        }
        toy.run(tmp_path, 1, initial_params=params)


def test_batches_that_fail_are_reported(tmp_path):
    def batch_at(step):
        if step == 2:
            raise UserError("The corpus has no step 2; choose a longer one.")
        return toy.batch_at(step)

    with pytest.raises(UserError, match="no step 2"):
        toy.run(tmp_path, 5, batch_at)


def test_impossible_lengths(tmp_path):
    toy.run(tmp_path, 2)
    with pytest.raises(UserError, match="already holds step 2"):
        toy.run(tmp_path, 1)
    with pytest.raises(UserError, match="accumulate=0"):
        toy.run(tmp_path, 2, every={"accumulate": 0})
    with pytest.raises(UserError, match="log_every"):
        toy.run(tmp_path, 2, every={"log_every": -1})


def test_config_has_no_field_that_is_not_a_plain_value():
    defaults = vars(loop.TrainConfig())
    assert all(type(value) in (int, bool, str) for value in defaults.values())
