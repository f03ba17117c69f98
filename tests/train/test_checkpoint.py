"""Checkpoints: what comes back, and what is said when it cannot."""

import contextlib
import json
import resource
import shutil
import sys
import threading
import types
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlm_jax.errors import UserError
from rlm_jax.train import checkpoint, checkpoint_files, optim
from rlm_jax.train import step as step_lib
from tests.train import toy

# Orbax closes its event loop at the first array that it cannot read, and a late answer
# for another array then finds no loop: noise on stderr, from a thread of TensorStore.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

OPTIMIZER = optim.optimizer(optim.OptimConfig(weight_decay=0.1), 10)


def state_of(seed: int, step: int) -> step_lib.State:
    params = toy.method().init(jax.random.key(seed))
    # Large enough that it is no longer stored inside Orbax's own index.
    params["embed"] = jax.random.normal(jax.random.key(seed), (2000, 64))
    return step_lib.init(params, OPTIMIZER, step)


def abstract(state):
    return jax.eval_shape(lambda: state)


@pytest.fixture
def saved(tmp_path):
    """A folder with steps 5 and 10."""
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints")
    for step in (5, 10):
        checkpoints.save(step, state_of(step, step))
    checkpoints.close()
    return tmp_path / "checkpoints"


def reopen_and_restore(folder, step=None):
    checkpoints = checkpoint.Checkpoints(folder)
    try:
        return checkpoints.restore(abstract(state_of(0, 0)), step)
    finally:
        checkpoints.close()


def largest_file(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_round_trip_is_exact(saved):
    chex.assert_trees_all_equal(reopen_and_restore(saved), state_of(10, 10))
    chex.assert_trees_all_equal(reopen_and_restore(saved, 5), state_of(5, 5))


class StateBeforeMoving(NamedTuple):
    """What checkpoints held before a method could have a moving state."""

    step: jax.Array
    params: Any
    opt_state: Any


def test_checkpoints_without_a_moving_state_are_read(tmp_path):
    wanted = state_of(3, 7)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(7, StateBeforeMoving(*wanted[:3]))  # type: ignore[arg-type]
    checkpoints.close()
    chex.assert_trees_all_equal(reopen_and_restore(tmp_path), wanted)


def test_a_moving_state_comes_back_and_is_asked_for(tmp_path):
    moving = {"queue": np.arange(6, dtype=np.float32).reshape(2, 3), "next": 1}
    moving = jax.tree.map(jnp.asarray, moving)
    state = state_of(3, 7)._replace(moving=moving)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(7, state)
    chex.assert_trees_all_equal(checkpoints.restore(abstract(state)), state)
    params = checkpoint.load_params(tmp_path)
    chex.assert_trees_all_equal(params, state.params)
    with pytest.raises(UserError, match="'moving/next' where this one has nothing"):
        checkpoints.restore(abstract(state_of(0, 0)))
    checkpoints.close()


def test_parameters_alone_need_no_optimiser(saved):
    for folder in (saved, saved.parent):
        params = checkpoint.load_params(folder)
        chex.assert_trees_all_equal(params, state_of(10, 10).params)
        assert isinstance(params["embed"], np.ndarray)
    params = checkpoint.load_params(saved, 5)
    chex.assert_trees_all_equal(params, state_of(5, 5).params)


def test_snapshot_survives_donation(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path)
    state = jax.tree.map(jnp.array, state_of(1, 1))
    consume = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
    checkpoints.save(1, state)
    jax.block_until_ready(consume(state))
    restored = checkpoints.restore(abstract(state_of(0, 0)))
    chex.assert_trees_all_equal(restored, state_of(1, 1))
    checkpoints.close()


def test_keeps_the_last(tmp_path):
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(0, step))
    checkpoints.save(3, state_of(7, 3))  # There already: left alone.
    checkpoints.wait()
    assert checkpoints.latest() == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    chex.assert_trees_all_equal(
        checkpoints.restore(abstract(state_of(0, 0))), state_of(0, 3)
    )
    checkpoints.close()


def test_a_save_that_was_killed_is_not_seen(saved):
    for left in ("15.writing", "15.orbax-checkpoint-tmp", "3.going"):
        shutil.copytree(saved / "10", saved / left)
    assert checkpoint.steps(saved) == [5, 10]
    checkpoints = checkpoint.Checkpoints(saved)
    assert checkpoints.latest() == 10
    checkpoints.close()
    assert sorted(path.name for path in saved.iterdir()) == ["10", "5"]


@pytest.mark.parametrize("item", ["params", "rest", "arrays", ""])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_damage_is_named_with_its_remedy(saved, item, damage):
    folder = saved / "10" / item
    path = largest_file(folder) if item else folder / "manifest.json"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
        if item:
            shutil.rmtree(folder)
            folder.mkdir()
    with pytest.raises(UserError, match="(?s)checkpoints/10 is damaged.*delete this"):
        reopen_and_restore(saved)
    shutil.rmtree(saved / "10")
    chex.assert_trees_all_equal(reopen_and_restore(saved), state_of(5, 5))


def test_a_checkpoint_of_an_older_version_needs_no_manifest(saved):
    (saved / "10" / "manifest.json").unlink()
    listed = saved / "10" / checkpoint.ARRAYS
    told = json.loads(listed.read_text())
    del told["manifest.json"]
    listed.write_text(json.dumps(told))
    chex.assert_trees_all_equal(reopen_and_restore(saved), state_of(10, 10))


def test_damaged_parameters_are_not_loaded(saved):
    path = largest_file(saved / "10" / "params")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load_params(saved)


def test_state_of_another_configuration(saved):
    checkpoints = checkpoint.Checkpoints(saved)
    other = state_of(0, 0)
    other.params["out"]["bias"] = jnp.zeros(7)
    with pytest.raises(UserError, match=r"another configuration.*\[16\].*out/bias"):
        checkpoints.restore(abstract(other))
    plain = step_lib.init(state_of(0, 0).params, optax.sgd(1.0))
    with pytest.raises(UserError, match="another configuration.*opt_state.*nothing"):
        checkpoints.restore(abstract(plain))
    checkpoints.close()


def test_nothing_to_restore(tmp_path, saved):
    with pytest.raises(UserError, match="no checkpoints at"):
        checkpoint.load_params(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"step 7 .*\[5, 10\]"):
        checkpoint.load_params(saved, 7)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no complete checkpoint"):
        checkpoint.load_params(tmp_path / "empty")


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="No checkpoint could be written"):
        checkpoint.Checkpoints(tmp_path / "file")
    with pytest.raises(UserError, match="keep=0"):
        checkpoint.Checkpoints(tmp_path, keep=0)


def test_full_disk_is_found_before_writing(saved, monkeypatch):
    checkpoints = checkpoint.Checkpoints(saved)
    free = shutil.disk_usage(saved)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(UserError, match=r"needs 1\.\d MiB .* 0\.0 MiB are free"):
        checkpoints.save(15, state_of(0, 15))
    checkpoints.close()
    assert checkpoints.latest() == 10


@pytest.mark.parametrize(
    "said",
    [
        "Writing: Failed to write: Disk quota [os_error_code='122']",
        "Writing [spec='{\"a\":true}'] [os_error_code='122']",
        "Writing [os_error_code='122'] [spec='{\"a\":true}']",
    ],
)
def test_what_the_system_refuses_while_writing(saved, monkeypatch, said):
    checkpoints = checkpoint.Checkpoints(saved)

    def refuse(item, tree):
        raise ValueError(said)

    monkeypatch.setattr(checkpoint, "_save", refuse)
    checkpoints.save(15, state_of(0, 15))
    with pytest.raises(
        UserError, match=r"written to .* \(Disk quota exceeded\); make room"
    ):
        checkpoints.wait()
    checkpoints.close()
    assert checkpoint.steps(saved) == [5, 10]


def test_older_checkpoints_stay_until_the_new_one_is_read_back(saved, monkeypatch):
    """A byte that the disk turns while a step is written costs that step alone."""
    checkpoints = checkpoint.Checkpoints(saved, keep=1)
    save = checkpoint._save

    def turn(item, tree):
        save(item, tree)
        path = largest_file(item)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(checkpoint, "_save", turn)
    checkpoints.save(15, state_of(15, 15))
    with pytest.raises(UserError, match="15 is not on the disk as it was written"):
        checkpoints.wait()
    assert sorted(path.name for path in saved.iterdir()) == ["10", "5"]
    monkeypatch.setattr(checkpoint, "_save", save)
    checkpoints.save(15, state_of(15, 15))
    checkpoints.close()
    assert [path.name for path in saved.iterdir()] == ["15"]
    chex.assert_trees_all_equal(reopen_and_restore(saved), state_of(15, 15))


def folder_of_length(root, length):
    while len(str(root)) < length - 201:
        root /= "a" * 200
    return root / ("b" * (length - len(str(root)) - 1))


@pytest.mark.parametrize("length", [3968, 4035, 4200])
def test_a_path_too_long_for_a_checkpoint_is_refused_before_any_work(tmp_path, length):
    """A background save failed there, and its threads waited for ever."""
    with pytest.raises(UserError, match="name a shorter one|File name too long"):
        checkpoint.Checkpoints(folder_of_length(tmp_path, length))


def test_the_longest_path_holds_checkpoints(tmp_path):
    folder = folder_of_length(tmp_path, 3967)
    checkpoints = checkpoint.Checkpoints(folder)
    checkpoints.save(999_999_999, state_of(0, 1))
    checkpoints.close()
    assert checkpoint.steps(folder) == [999_999_999]


def test_a_save_that_fails_ends_in_a_sentence_alone(tmp_path, capfd):
    """Orbax's own threads waited for one another, and told of every array."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    threads = set(threading.enumerate())
    checkpoints = checkpoint.Checkpoints(tmp_path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
        # Of many arrays, whose answers come late.
        moving = {str(i): np.full(9000, i, np.float32) for i in range(50)}
        checkpoints.save(1, state_of(0, 1)._replace(moving=moving))
        with pytest.raises(
            UserError, match=r"could be written to .*\(File too large\)"
        ):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    checkpoints.close()
    assert [x for x in threading.enumerate() if x not in threads and not x.daemon] == []
    assert capfd.readouterr().err == ""
    assert checkpoint.steps(tmp_path) == []


@pytest.mark.parametrize("fails", [True, False])
def test_late_answers_after_a_failure_are_not_told(tmp_path, monkeypatch, fails):
    """Threads of C++ told them by the one hook or the other, each with a traceback."""
    told = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: told.append(error[1]))
    monkeypatch.setattr(sys, "unraisablehook", lambda x: told.append(x.exc_value))
    before = sys.excepthook, sys.unraisablehook
    with (
        contextlib.suppress(OSError),
        checkpoint_files.logged(tmp_path / "checkpoints"),
    ):
        if fails:
            raise OSError("no room")
    late, other = RuntimeError("Event loop is closed"), RuntimeError("other")
    for error in (late, other):
        sys.excepthook(type(error), error, None)
        about = types.SimpleNamespace(exc_type=type(error), exc_value=error)
        sys.unraisablehook(about)  # type: ignore[arg-type]
    assert told == ([other, other] if fails else [late, late, other, other])
    assert fails or before == (sys.excepthook, sys.unraisablehook)


def test_an_optimiser_without_state(tmp_path):
    state = step_lib.init({"w": jnp.ones(3)}, optax.sgd(1.0), 2)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(2, state)
    chex.assert_trees_all_equal(checkpoints.restore(abstract(state)), state)
    checkpoints.close()
