"""The connection to the registry's database: engine, transactions, and the migration at opening.

SQLite is opened for several processes at once: WAL, a busy timeout, foreign keys on, and `BEGIN IMMEDIATE` for
every transaction that will write, because a reader that turns into a writer fails at once instead of waiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from tunes_dagster.core import clock
from tunes_dagster.core.failures import Failure, FailureCode

# The newest revision in migrations/versions. Kept here so that opening a current registry reads one row and
# never imports alembic (0.3 s); a test compares it with the files.
HEAD = "0008"

# Backoff between attempts of lost or failed work, in seconds; the last one repeats.
RETRY_BACKOFF = (5.0, 30.0, 120.0)

# Backoff between deliveries of one callback, in seconds: 5 s, 30 s, 2 min, 10 min, 1 h, 6 h, 24 h, then dead.
CALLBACK_BACKOFF = (5.0, 30.0, 120.0, 600.0, 3600.0, 21_600.0, 86_400.0)

BUSY_TIMEOUT_MS = 30_000


def _sqlite_connect(connection: Any, _record: Any) -> None:
    """Prepare one SQLite connection; transactions are begun by `_sqlite_begin`, not by the driver."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA foreign_keys=ON")
    # NORMAL loses nothing when a process dies, and saves an fsync per transaction.
    cursor.execute("PRAGMA synchronous=NORMAL")
    _ensure_wal(cursor)
    cursor.close()


def _ensure_wal(cursor: Any) -> None:
    """Switch to WAL once; the switch ignores the busy timeout, so several first openers need a retry."""
    import sqlite3

    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while cursor.execute("PRAGMA journal_mode").fetchone()[0].lower() not in ("wal", "memory"):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _sqlite_begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("tunes_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def make_engine(url: str) -> Engine:
    """Return an engine for the URL, with SQLite prepared for several processes."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True, pool_size=5, max_overflow=20)
    pool = {}
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
        # A connection costs nothing here, and a server's threads must not wait for each other's.
        pool = {"max_overflow": 60}
    engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}, **pool)
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", _sqlite_begin)
    return engine


class Database:
    """An open registry database; the queries of the other files are mixed in by `Registry`.

    Args:
        url: SQLAlchemy URL; SQLite and PostgreSQL are tested.
        migrate: Bring the schema up to date when it is not.
        max_attempts: Attempts of one piece of work before it fails for good.
        retry_backoff: Seconds before attempt 2, 3, …; the last one repeats.
        callback_backoff: Seconds before delivery 2, 3, …; after the last one a callback is dead.
        now: The clock, replaceable in tests.
    """

    def __init__(
        self,
        url: str,
        *,
        migrate: bool = True,
        max_attempts: int = 3,
        retry_backoff: tuple[float, ...] = RETRY_BACKOFF,
        callback_backoff: tuple[float, ...] = CALLBACK_BACKOFF,
        now: Callable[[], datetime] = clock.now,
    ) -> None:
        self.url = url
        self.max_attempts = max_attempts
        self.retry_backoff = retry_backoff
        self.callback_backoff = callback_backoff
        self.now = now
        self.engine = make_engine(url)
        self._writer = self.engine.execution_options(tunes_writes=True)
        # SQLite's writers poll for the lock, in growing naps of up to 100 ms; those of one process take turns here.
        sqlite = self.engine.dialect.name == "sqlite"
        self._turn: AbstractContextManager[object] = threading.RLock() if sqlite else nullcontext()
        if migrate:
            self.migrate()

    def migrate(self) -> None:
        """Upgrade the schema to this version's when it is older; safe when several processes do it at once.

        Raises:
            Failure: `CONFLICT` when a newer version of the software has already upgraded it.
        """
        if self.revision() == HEAD:
            return
        from tunes_dagster.registry.migrate import upgrade

        upgrade(self._writer)

    def create_all(self) -> None:
        """Make all tables; the same as `migrate`."""
        self.migrate()

    def revision(self) -> str | None:
        """Return the schema's revision, or None for an empty database."""
        try:
            with self.engine.connect() as connection:
                row = connection.execute(text("SELECT version_num FROM alembic_version")).first()
                return None if row is None else str(row[0])
        except DatabaseError as error:
            missing = "no such table" in str(error) or "does not exist" in str(error)
            if missing and "alembic_version" in str(error):
                return None
            raise Failure(
                FailureCode.STORE_UNAVAILABLE,
                f"The registry at {self.engine.url!r} cannot be opened: {error.orig}.",
                "Check TUNES_REGISTRY_URL, the file's permissions and the free disk space.",
            ) from error

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that only reads; rows stay usable after it."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that is committed as a whole or not at all; rows stay usable after it."""
        with self._turn, Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()
