"""Connections to strangers' servers that end in time: a deadline holds in every phase of an exchange.

httpx's timeouts are for the silence between two bytes: whoever sends one byte of a header, of a chunk's length or of
a certificate every few seconds is waited for without end. Here every wait, for a name, a connection, TLS, or the next
byte in either direction, happens in `_wait`, which knows the deadline and the stop signal of the thread that waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextvars import ContextVar, Token
from typing import Any, TypeVar

import httpcore

from tunes_dagster.core.failures import Cancelled

Result = TypeVar("Result")

# How soon a wait notices that it is told to stop.
_TICK_SECONDS = 0.25
_UNDER_WAY = (0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY)

_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


# Exceptions of the network, most telling first, and what is said of them: their own texts name what lies inside.
_SAID: tuple[tuple[type[BaseException], str], ...] = (
    (ssl.SSLCertVerificationError, "its certificate is not valid"),
    (ssl.SSLError, "it does not speak TLS as it should"),
    (socket.gaierror, "its name does not resolve"),
    (ConnectionRefusedError, "it refuses connections"),
    (ConnectionError, "the connection broke off"),
    (TimeoutError, "it did not answer in time"),
    (httpcore.ConnectError, "it cannot be reached"),
)


def in_words(error: BaseException) -> str:
    """Return what went wrong with a connection, as a clause that anyone may read."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for kind, said in _SAID:
        if any(isinstance(one, kind) for one in chain):
            return said
    return "the connection broke off"


class DeadlinePassed(Exception):
    """The time for a whole exchange was over."""


class Deadline:
    """The time for a whole exchange, redirects and further tries included: `with Deadline(30): client.get(…)`.

    It holds for everything that this thread sends and receives inside the `with` through the streams of this module.

    Args:
        seconds: From now.
        stop: Ends the exchange early when it is set.
    """

    def __init__(self, seconds: float, stop: threading.Event | None = None) -> None:
        self.seconds, self.stop = seconds, stop
        self._ends = time.monotonic() + seconds
        self._before: Token[Deadline | None] | None = None

    def __enter__(self) -> Deadline:
        """Hold from here on."""
        self._before = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Hold no longer."""
        if self._before is not None:
            _current.reset(self._before)

    def left(self) -> float:
        """Return the seconds until it has passed.

        Raises:
            DeadlinePassed: When it has.
            Cancelled: When told to stop.
        """
        if self.stop is not None and self.stop.is_set():
            raise Cancelled()
        left = self._ends - time.monotonic()
        if left <= 0:
            raise DeadlinePassed(f"It took longer than {self.seconds:g} s.")
        return left

    def sleep(self, seconds: float) -> None:
        """Wait between two tries."""
        ends = time.monotonic() + seconds
        while (wait := min(ends - time.monotonic(), self.left(), _TICK_SECONDS)) > 0:
            time.sleep(wait)


def _ready(sock: socket.socket, event: int, seconds: float) -> bool:
    """Wait until a socket can be read or written, or has failed; not `select`, which takes no file above 1024."""
    waiter = select.poll()
    waiter.register(sock, event)
    return bool(waiter.poll(max(0, round(seconds * 1000))))


def _waits(seconds: float | None) -> Iterable[float]:
    """Yield how long to wait each time, until the time of one step is over or the exchange has to end.

    Raises:
        DeadlinePassed: See `Deadline.left`.
        Cancelled: The same.
    """
    ends = None if seconds is None else time.monotonic() + seconds
    while True:
        deadline = _current.get()
        longest = _TICK_SECONDS if deadline is None else min(_TICK_SECONDS, deadline.left())
        left = longest if ends is None else ends - time.monotonic()
        if left <= 0:
            return
        yield min(longest, left)


def _wait(sock: socket.socket, event: int, seconds: float | None) -> None:
    """Wait until a socket is ready.

    Raises:
        TimeoutError: After so many seconds of silence.
        DeadlinePassed: See `Deadline.left`.
        Cancelled: The same.
    """
    if not any(_ready(sock, event, wait) for wait in _waits(seconds)):
        raise TimeoutError(f"nothing for {seconds:g} s")


def _done(sock: socket.socket, event: int, seconds: float | None, step: Callable[[], Result]) -> Result:
    """Return what a step of a non-blocking socket gives, waiting as often as it asks for."""
    deadline = _current.get()
    if deadline is not None:
        deadline.left()  # also when the other side is always ready
    while True:
        try:
            return step()
        except (BlockingIOError, InterruptedError):
            _wait(sock, event, seconds)
        except ssl.SSLWantReadError:
            _wait(sock, select.POLLIN, seconds)
        except ssl.SSLWantWriteError:
            _wait(sock, select.POLLOUT, seconds)


@contextlib.contextmanager
def _as_httpcore(silent: type[Exception], broken: type[Exception]) -> Any:
    """Translate what sockets raise into what httpcore's callers expect."""
    try:
        yield
    except TimeoutError as error:
        raise silent(str(error)) from error
    except (OSError, ValueError) as error:  # a server name that TLS cannot take is a ValueError
        raise broken(str(error) or type(error).__name__) from error


class Stream(httpcore.NetworkStream):
    """One connection whose every wait ends in time.

    Args:
        sock: Connected, non-blocking.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return the next bytes, none at the end."""
        with _as_httpcore(httpcore.ReadTimeout, httpcore.ReadError):
            return _done(self._sock, select.POLLIN, timeout, lambda: self._sock.recv(max_bytes))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of it."""
        with _as_httpcore(httpcore.WriteTimeout, httpcore.WriteError):
            rest = memoryview(buffer)
            while rest:
                part = rest
                sent = _done(self._sock, select.POLLOUT, timeout, lambda part=part: self._sock.send(part))  # type: ignore[misc]
                rest = rest[sent:]

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Return the same connection encrypted, once the certificate was checked."""
        with _as_httpcore(httpcore.ConnectTimeout, httpcore.ConnectError):
            sock = self._sock
            try:
                sock = ssl_context.wrap_socket(
                    sock, server_hostname=server_hostname, do_handshake_on_connect=False
                )
                _done(sock, select.POLLIN, timeout, sock.do_handshake)
            except BaseException:
                sock.close()
                raise
        return Stream(sock)

    def get_extra_info(self, info: str) -> Any:
        """Return what httpcore asks about a connection."""
        if info == "ssl_object":
            return (
                self._sock if isinstance(self._sock, ssl.SSLSocket) else None
            )  # knows the protocol agreed on, too
        if info == "is_readable":  # of one that rests: the other side has closed it
            return self._sock.fileno() < 0 or _ready(self._sock, select.POLLIN, 0)
        answers: dict[str, Callable[[], Any]] = {
            "client_addr": self._sock.getsockname,
            "server_addr": self._sock.getpeername,
            "socket": lambda: self._sock,
        }
        return answers[info]() if info in answers else None


class Backend(httpcore.NetworkBackend):
    """Connects to addresses; whose they may be is for others to decide."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        """Return a connection to an address."""
        with _as_httpcore(httpcore.ConnectTimeout, httpcore.ConnectError):
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for option in socket_options or ():
                    sock.setsockopt(*option)
                if local_address is not None:
                    sock.bind((local_address, 0))
                _connect(sock, (host, port), timeout)
            except BaseException:
                sock.close()
                raise
        return Stream(sock)


def _connect(sock: socket.socket, address: tuple[str, int], seconds: float | None) -> None:
    code = sock.connect_ex(address)
    if code in _UNDER_WAY:
        _wait(sock, select.POLLOUT, seconds)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))


def in_time(function: Callable[[], Result], seconds: float | None) -> Result:
    """Return what a function gives that cannot be told when to end: a lookup of a name.

    It runs in a thread of its own, which is left behind when time is over: one of a pool would be kept by names whose
    servers never answer from those that would.

    Raises:
        TimeoutError: After so many seconds.
        DeadlinePassed: See `Deadline.left`.
        Cancelled: The same.
    """
    found: Future[Result] = Future()

    def run() -> None:
        try:
            found.set_result(function())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, name="lookup", daemon=True).start()
    for wait in _waits(seconds):
        with contextlib.suppress(TimeoutError):
            found.exception(wait)
            return found.result()
    raise TimeoutError(f"nothing for {seconds:g} s")
