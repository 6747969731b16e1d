"""Servers that are no good company: each connection is handed to a script that may do with it what it likes."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

Script = Callable[[socket.socket, threading.Event], None]


class RawServer:
    """Listens on a port of this machine; `closing` is set when the test is over."""

    def __init__(self, script: Script) -> None:
        self.script, self.closing = script, threading.Event()
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self.script(connection, self.closing)

    def url(self, path: str = "/", host: str = "localhost") -> str:
        return f"http://{host}:{self.port}{path}"


@contextlib.contextmanager
def serving(script: Script) -> Iterator[RawServer]:
    """Run a server for the time of a test."""
    server = RawServer(script)
    try:
        yield server
    finally:
        server.closing.set()
        server._listener.close()


def dripping(before: bytes, drop: bytes, seconds: float = 0.05) -> Script:
    """Send something, and then a little of something again and again."""

    def script(connection: socket.socket, closing: threading.Event) -> None:
        connection.recv(65_536)
        connection.sendall(before)
        while not closing.wait(seconds):
            connection.sendall(drop)

    return script


def silent(connection: socket.socket, closing: threading.Event) -> None:
    """Take what comes, and say nothing."""
    connection.settimeout(0.1)
    while not closing.is_set():
        with contextlib.suppress(TimeoutError):
            if not connection.recv(65_536):
                return
