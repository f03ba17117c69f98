"""What a launcher tells in one sentence, whoever found it, and what stays a bug."""

import errno
import os

import pytest

from rlm_jax import failures
from rlm_jax.errors import UserError

FULL = RuntimeError(f"write() failed: {os.strerror(errno.ENOSPC)}; writing x")


@pytest.mark.parametrize(
    "error, told",
    [
        (UserError("No such preset; choose tiny."), "No such preset; choose tiny."),
        (OSError(errno.ENOSPC, "", "x/y"), "The disk is full while writing x/y; make"),
        (OSError(errno.EROFS, "", "x/y"), "x/y: Read-only file system; mend that and"),
        (OSError(errno.EMFILE, ""), "A file: Too many open files; mend that and start"),
        (OSError(errno.ENAMETOOLONG, "", "x"), "The path x is too long for its file"),
        (OSError(errno.ELOOP, "", "x"), "The path x is a link that leads to itself;"),
        (MemoryError(), "There is too little memory; free some, or choose smaller"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GB"), "There is too little memory; free"),
        (ImportError("x.so: failed to map segment"), "There is too little memory; "),
        (RuntimeError("can't start new thread"), "There is too little memory; free"),
        (OSError(errno.ENOMEM, "", "x"), "There is too little memory; free some, or"),
        (FULL, "The disk is full; make room and start again, which goes on from what"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(error, told, capsys):
    with pytest.raises(SystemExit) as ended, failures.one_line():
        raise error
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {told}")


FORGOTTEN = SystemError("error return without exception set")


def test_little_memory_that_python_does_not_tell_is_told(capsys, monkeypatch):
    limits = lambda kind: (1 << 30, 1 << 30)
    monkeypatch.setattr(failures.resource, "getrlimit", limits)
    with pytest.raises(SystemExit), failures.one_line():
        raise FORGOTTEN
    assert "There is too little memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [FORGOTTEN, KeyError("x"), OSError(errno.EBADF, "bad")]
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)), failures.one_line():
        raise error


def test_an_interrupted_run_is_told_how_to_go_on(capsys):
    with pytest.raises(SystemExit) as ended, failures.one_line():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert "start again to go on" in capsys.readouterr().err
