import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from rlm_jax.errors import UserError
from rlm_jax.storage import cache, locks


def write(path):
    (path / "file").write_text("whole")


def test_once_builds_once(tmp_path):
    target = tmp_path / "a" / "b"
    assert cache.once(target, write) == target
    cache.once(target, lambda path: pytest.fail("built twice"))
    assert (target / "file").read_text() == "whole"


def test_who_comes_second_waits_for_the_lock(tmp_path):
    order, waiting = [], threading.Event()

    def second():
        with locks.locked(tmp_path / "lock", waiting.set):
            order.append("second")

    thread = threading.Thread(target=second)
    with locks.locked(tmp_path / "lock", lambda: pytest.fail("waited for nobody")):
        thread.start()
        assert waiting.wait(timeout=60)
        order.append("first")
    thread.join(timeout=60)
    assert order == ["first", "second"]


def test_failed_build_leaves_nothing(tmp_path):
    def fail(path):
        write(path)
        raise ValueError

    with pytest.raises(ValueError):
        cache.once(tmp_path / "a", fail)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
    cache.once(tmp_path / "a", write)


def test_killed_build_is_cleaned_up_and_done_again(tmp_path):
    program = (
        "import os, pathlib, signal, sys\n"
        "from rlm_jax.storage import cache\n"
        "def build(path):\n"
        "    (path / 'file').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "cache.once(pathlib.Path(sys.argv[1]), build)\n"
    )
    target = tmp_path / "a"
    process = subprocess.run(
        [sys.executable, "-c", program, str(target)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.returncode == -signal.SIGKILL
    assert not target.exists() and [p for p in tmp_path.iterdir() if p.is_dir()]
    cache.once(target, lambda path: (path / "other").touch())
    assert [p.name for p in target.iterdir()] == ["other"]
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == [target]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        RuntimeError(f"write() failed: {os.strerror(errno.ENOSPC)}; at byte 9"),
    ],
)
def test_full_disk_is_a_user_error(tmp_path, error):
    def fail(path):
        write(path)
        raise error

    with pytest.raises(UserError, match="disk is full"):
        cache.once(tmp_path / "a", fail)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


@pytest.mark.parametrize("folder", ["file", "/proc/.cache", "n" * 300, "link"])
def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path, folder):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(UserError, match="RLM_CACHE"):
        cache.once(tmp_path / folder / "kind" / "a", write)


def test_root(monkeypatch, tmp_path):
    monkeypatch.setenv("RLM_CACHE", str(tmp_path))
    assert cache.root() == tmp_path
    assert cache.root(tmp_path / "other") == tmp_path / "other"
    monkeypatch.delenv("RLM_CACHE")
    assert cache.root().name == "rlm_jax"
