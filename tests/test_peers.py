"""Connections between the processes of a run: who ends when another one has ended."""

import socket
import subprocess
import sys
import threading
import time

import pytest

from rlm_jax import peers
from rlm_jax.errors import UserError


def listeners():
    return [x for x in threading.enumerate() if x.name == "peers"]


def until(condition):
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


@pytest.fixture
def pair(monkeypatch):
    """The first process's end and another's, and what was told since."""
    told = []
    monkeypatch.setattr(peers, "end", lambda: told.append(peers.ENDED))
    first, other = peers.Peers(), peers.Peers()
    server, token = first.listen()
    port = server.getsockname()[1]
    waits = threading.Thread(target=first.accept, args=(server, token, 1))
    waits.start()
    with socket.create_connection(("localhost", port)) as stranger:
        stranger.sendall(bytes(16))
        other.call("localhost", port, token)
        waits.join(10)
    assert first.several and other.several
    yield first, other, told
    first.part()
    other.part()
    until(lambda: not listeners())


def test_one_that_leaves_without_a_word_ends_the_other(pair):
    first, other, told = pair
    other.fail()
    until(lambda: told)
    assert told == [peers.ENDED] and not other.several


def test_one_that_says_goodbye_does_not(pair):
    first, other, told = pair
    first.part()
    other.part()
    until(lambda: not listeners())
    assert told == []


def test_a_first_process_that_does_not_answer_is_named():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UserError, match=f"does not answer at localhost:{port}"):
        peers.Peers().call("localhost", port, bytes(16))


SILENCED = """
import contextlib, io
from rlm_jax import peers
with contextlib.redirect_stderr(io.StringIO()):
    peers.end()
"""


def test_the_sentence_is_told_while_a_library_is_silenced():
    """A process that prepared a corpus ended without a word."""
    ended = subprocess.run([sys.executable, "-c", SILENCED], capture_output=True)
    assert ended.returncode == 1 and ended.stdout == b""
    assert ended.stderr.decode().splitlines() == [f"error: {peers.ENDED}"]
