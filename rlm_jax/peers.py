"""Notices when another process of a run ends before its time, and ends this one too.

JAX itself waits for minutes, and then aborts. Here the first process holds a connection
to each of the others, which say so when they end as they should. Where one ends without
a word, its process was killed or has failed, and the others would wait for it in vain.
"""

import atexit
import contextlib
import functools
import os
import secrets
import socket
import sys
import threading
import time
from typing import NoReturn

from rlm_jax import terminal
from rlm_jax.errors import UserError

_GOODBYE = b"."
_TOKEN_BYTES = 16
_CONNECT = 30.0  # seconds
_GRACE = 5.0  # seconds in which the end of another process is noticed

ENDED = (
    "Another process of this run has ended; see what it said, and start all of them "
    "again, which goes on from what is whole."
)


class Peers:
    """The connections of this process to others of its run."""

    def __init__(self):
        self._connections: list[socket.socket] = []
        self._parted = False

    def listen(self) -> tuple[socket.socket, bytes]:
        """Of the first process: where the others call, and what they have to say."""
        return socket.create_server(("", 0)), secrets.token_bytes(_TOKEN_BYTES)

    def accept(self, server: socket.socket, token: bytes, number: int) -> None:
        """Of the first process: waits for so many others.

        Raises:
          UserError: they did not call.
        """
        with server:
            server.settimeout(_CONNECT)
            while len(self._connections) < number:
                try:
                    connection, _ = server.accept()
                except TimeoutError as error:
                    raise UserError(ENDED) from error
                connection.settimeout(_CONNECT)
                if _exactly(connection, _TOKEN_BYTES) == token:
                    self._watch(connection)
                else:
                    connection.close()

    def call(self, host: str, port: int, token: bytes) -> None:
        """Of the others: calls the first process.

        Raises:
          UserError: it does not answer.
        """
        try:
            connection = socket.create_connection((host, port), _CONNECT)
            connection.sendall(token)
        except OSError as error:
            raise UserError(
                f"The first process does not answer at {host}:{port} "
                f"({error.strerror or error}); allow connections between the processes."
            ) from error
        self._watch(connection)

    def part(self) -> None:
        """Says goodbye: from now on each process may end when it will."""
        self._parted = True
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.sendall(_GOODBYE)

    def fail(self) -> None:
        """Leaves without a word, so that the others end too."""
        self._parted = True
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def parted(self) -> bool:
        """Whether this process works alone from now on."""
        return self._parted

    @property
    def several(self) -> bool:
        """Whether there is another process that has not said goodbye."""
        return bool(self._connections) and not self._parted

    def _watch(self, connection: socket.socket) -> None:
        # A machine that is switched off says nothing either.
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 10)):
            if hasattr(socket, name):
                connection.setsockopt(
                    socket.IPPROTO_TCP, getattr(socket, name), seconds
                )
        self._connections.append(connection)
        threading.Thread(
            target=self._listen_to, args=(connection,), name="peers", daemon=True
        ).start()

    def _listen_to(self, connection: socket.socket) -> None:
        with connection:
            last = _exactly(connection, 1)
        if last != _GOODBYE and not self._parted:
            end()


@functools.cache
def peers() -> Peers:
    """Those of this process."""
    made = Peers()
    # Before JAX's own, which waits for the others.
    atexit.register(lambda: made.fail() if hasattr(sys, "last_value") else made.part())
    return made


def end(status: int = 1, told: str = ENDED) -> NoReturn:
    """Ends this process with a sentence, whatever its threads wait for."""
    # Another thread may have turned what a library says away from the terminal.
    with contextlib.redirect_stderr(sys.__stderr__ or sys.stderr):
        terminal.say(f"error: {told}")
        sys.stderr.flush()
    sys.stdout.flush()
    os._exit(status)


def give_way() -> None:
    """Returns after a moment in which the end of another process is noticed.

    What fails in a collective fails before that; this process then ends here.
    """
    if peers().several:
        time.sleep(_GRACE)


def _exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer where the connection ends."""
    read = b""
    with contextlib.suppress(OSError):
        while len(read) < size and (more := connection.recv(size - len(read))):
            read += more
    return read
