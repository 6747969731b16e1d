"""PostgreSQL through psycopg2: every call ends, also when its server does not answer, and no error quotes a row.

A server that was stopped (SIGSTOP, a frozen virtual machine, a dead disk) keeps its connections open and never answers;
neither TCP nor libpq notices, and psycopg2 waits for ever. So each call is guarded by `_Watchdog`, which shuts the
connection down when the answer is late: psycopg2 then raises what it raises when a server goes away. The server is told
to end statements before that by itself, so that one that is merely slow keeps its connection.
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg2.extensions
from sqlalchemy import URL, Engine, ExceptionContext, create_engine, event

# A living server answers `SELECT 1` at once; one on a machine that swaps may need a while.
PING_SECONDS = 3.0
# Opening a connection, from the lookup of the name to the last word about the password.
CONNECT_SECONDS = 5
# The server ends a statement that takes too long; when it does not even do that, we do.
_MARGIN_SECONDS = 5.0

# What libpq is told unless the URL says otherwise: a machine that went away is noticed, not waited for.
_LIBPQ = {
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 40_000,
    "application_name": "tunes-dagster",
}

# A transaction of ours takes milliseconds; one that idles for so long belongs to a process that was stopped, and its
# locks would hold up everybody else.
_IDLE_TRANSACTION_SECONDS = 120.0


class _Watchdog:
    """One thread that ends calls whose answer is late, by shutting their connections down."""

    _LOOK_SECONDS = 0.2

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._calls: dict[object, tuple[float, Any]] = {}
        self._thread: threading.Thread | None = None
        self._asleep = False

    @contextmanager
    def over(self, connection: Any, seconds: float | None) -> Iterator[None]:
        """Shut the connection down when the block takes longer than so many seconds."""
        if seconds is None:
            yield
            return
        call = object()
        with self._changed:
            self._calls[call] = (time.monotonic() + seconds, connection)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="registry-watchdog", daemon=True)
                self._thread.start()
            elif self._asleep:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._calls.pop(call, None)

    def _watch(self) -> None:
        while True:
            with self._changed:
                self._asleep = not self._calls
                self._changed.wait(self._LOOK_SECONDS if self._calls else None)
                self._asleep = False
                now = time.monotonic()
                for call in [one for one, (ends, _) in self._calls.items() if ends < now]:
                    # Under the lock: whoever waits for this connection is still inside its call.
                    _shut(self._calls.pop(call)[1])


def _shut(connection: Any) -> None:
    with suppress(OSError, psycopg2.Error), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)


_watchdog = _Watchdog()


class Cursor(psycopg2.extensions.cursor):  # type: ignore[misc]  # psycopg2 has no types
    """A cursor whose statements are answered in time or fail."""

    def execute(self, query: Any, vars: Any = None) -> None:
        """Execute a statement."""
        with _watchdog.over(self.connection, getattr(self.connection, "answer_seconds", None)):
            super().execute(query, vars)


class Connection(psycopg2.extensions.connection):  # type: ignore[misc]
    """A connection whose every call is answered in time or fails.

    Attributes:
        answer_seconds: For each call.
    """

    answer_seconds: float | None = None

    def commit(self) -> None:
        """Commit the transaction."""
        with _watchdog.over(self, self.answer_seconds):
            super().commit()

    def rollback(self) -> None:
        """Roll the transaction back."""
        with _watchdog.over(self, self.answer_seconds):
            super().rollback()


def _prepare(busy_seconds: float, answer_seconds: float) -> Callable[[Any, Any], None]:
    """Return what prepares a connection."""

    def prepare(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET lock_timeout = {round(busy_seconds * 1000)}")
        cursor.execute(f"SET statement_timeout = {round(answer_seconds * 1000)}")
        cursor.execute(f"SET idle_in_transaction_session_timeout = {round(_IDLE_TRANSACTION_SECONDS * 1000)}")
        cursor.close()
        connection.commit()

    return prepare


# What a value looks like in PostgreSQL's sentences about values (SQLSTATE class 22).
_QUOTED = re.compile(r'"[^"]*("|$)')


def _without_values(context: ExceptionContext) -> None:
    """Keep what an error says and drop what it quotes: the statement with its values (`LINE 1: …`), the row."""
    driver: Any = context.original_exception
    said = str(driver)
    head = said.split("\n", 1)[0]
    if str(getattr(driver, "pgcode", None) or "").startswith("22"):
        head = _QUOTED.sub('"…"', head)
    if head == said or context.sqlalchemy_exception is None:
        return
    driver.args = (head, *driver.args[1:])
    outer = context.sqlalchemy_exception
    outer.args = tuple(one.replace(said, head) if isinstance(one, str) else one for one in outer.args)


def make_postgres_engine(url: URL, busy_seconds: float, answer_seconds: float) -> Engine:
    """Return an engine for PostgreSQL.

    Args:
        url: Its address; what its query says goes before what is told here.
        busy_seconds: How long a statement waits for a row that somebody else has locked.
        answer_seconds: How long any statement may take.
    """
    given: dict[str, Any] = {name: value for name, value in _LIBPQ.items() if name not in url.query}
    ours = type("BoundedConnection", (Connection,), {"answer_seconds": answer_seconds + _MARGIN_SECONDS})
    given |= {"connection_factory": ours, "cursor_factory": Cursor}
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_pre_ping=True,
        pool_size=5,
        max_overflow=20,
        pool_timeout=busy_seconds,
        connect_args=given,
    )
    ping = engine.dialect.do_ping

    def ping_in_time(connection: Any) -> bool:
        with _watchdog.over(connection, PING_SECONDS):
            return ping(connection)

    engine.dialect.__dict__["do_ping"] = ping_in_time
    event.listen(engine, "connect", _prepare(busy_seconds, answer_seconds))
    event.listen(engine, "handle_error", _without_values)
    return engine
