"""The connection to the registry's database: engine, transactions, and the migration at opening.

Errors of the database never show what was to be written: no parameters, and nothing that PostgreSQL quotes.
SQLite is opened for several processes at once: WAL, a busy timeout, foreign keys on, and `BEGIN IMMEDIATE` for
every transaction that will write, because a reader that turns into a writer fails at once instead of waiting.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FunctionType
from typing import Any, Self

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, SQLAlchemyError
from sqlalchemy.orm import Session

from tunes_dagster.core import clock, disk
from tunes_dagster.core.extras import missing
from tunes_dagster.core.failures import Failure, FailureCode, detail_of
from tunes_dagster.registry.retrying import (
    ASKED_SECONDS,
    DatabaseAway,
    Outage,
    Trouble,
    mark_unknown,
    retried,
)

# The newest revision in migrations/versions. Kept here so that opening a current registry reads one row and
# never imports alembic (0.3 s); a test compares it with the files.
HEAD = "0023"

# Backoff between attempts of lost or failed work, in seconds; the last one repeats.
RETRY_BACKOFF = (5.0, 30.0, 120.0)

# How long work is put off in all because the store is away or full: a night and a day in which somebody makes room.
STORE_PATIENCE = 86_400.0

# Backoff between deliveries of one callback, in seconds: 5 s, 30 s, 2 min, 10 min, 1 h, 6 h, 24 h, then dead.
CALLBACK_BACKOFF = (5.0, 30.0, 120.0, 600.0, 3600.0, 21_600.0, 86_400.0)

# How long a statement waits for a row or file that somebody else has locked.
BUSY_SECONDS = 30.0

# How long a statement may take on a server; one that is not answered by then never will be.
ANSWER_SECONDS = 60.0

# The same while the schema is changed, which may copy tables.
_UPGRADE_SECONDS = 3600.0

# How often the database is asked for the time, and how soon again after it did not answer.
_ASK_SECONDS = 30.0
_ASK_AGAIN_SECONDS = 5.0


def _sqlite_connect(busy_seconds: float) -> Callable[[Any, Any], None]:
    """Return what prepares an SQLite connection; transactions are begun by `_sqlite_begin`, not by the driver."""

    def prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={round(busy_seconds * 1000)}")
        cursor.execute("PRAGMA foreign_keys=ON")
        _ensure_wal(cursor, busy_seconds)
        cursor.close()

    return prepare


def _ensure_wal(cursor: Any, busy_seconds: float) -> None:
    """Switch to WAL once; the switch ignores the busy timeout, so several first openers need a retry."""
    import sqlite3

    deadline = time.monotonic() + busy_seconds
    while cursor.execute("PRAGMA journal_mode").fetchone()[0].lower() not in ("wal", "memory"):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _sqlite_begin(connection: Connection) -> None:
    """Begin a transaction; what it commits survives a power loss, unless it only says that something is alive."""
    options = connection.get_execution_options()
    writes = options.get("tunes_writes", False)
    if writes:
        # In WAL mode FULL syncs at each commit. NORMAL loses the last ones to a power loss; a dying process loses none.
        lasts = options.get("tunes_lasts", True) and disk.ENABLED
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if lasts else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def make_engine(
    url: str, busy_seconds: float = BUSY_SECONDS, answer_seconds: float = ANSWER_SECONDS
) -> Engine:
    """Return an engine for the URL, with SQLite prepared for several processes.

    No engine is made elsewhere: this one hides in every error and log line what was to be written.

    Args:
        url: SQLAlchemy URL.
        busy_seconds: How long a statement waits for what somebody else has locked.
        answer_seconds: How long a statement may take on a server.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # a port that is no number ...
        raise Failure(
            FailureCode.INVALID_REQUEST,
            "The address of the registry cannot be read.",
            "TUNES_REGISTRY_URL should be like postgresql://user:password@host/name; escape / and @ in a password.",
        ) from error
    if parsed.get_backend_name() != "sqlite":
        try:
            from tunes_dagster.registry.postgres import make_postgres_engine
        except ImportError as error:
            instead = "leave TUNES_REGISTRY_URL out for a SQLite file"
            raise missing("psycopg2", "A registry on a server", instead, detail_of(error)) from error
        return make_postgres_engine(parsed, min(busy_seconds, answer_seconds), answer_seconds)
    options = url.partition("?")[2].split("&") if "?" in url else []
    if any("=" not in one or "/" in one.partition("=")[0] for one in options):
        raise Failure(
            FailureCode.INVALID_REQUEST,
            f"The registry cannot lie in {url.removeprefix('sqlite:///')!r}: there is a question mark in the path.",
            "Let TUNES_REGISTRY_URL name a folder without one.",
        )
    pool = {}
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).expanduser().parent.mkdir(parents=True, exist_ok=True)
        # A connection costs nothing here, and a server's threads must not wait for each other's.
        pool = {"max_overflow": 60}
    engine = create_engine(parsed, hide_parameters=True, connect_args={"timeout": busy_seconds}, **pool)
    event.listen(engine, "connect", _sqlite_connect(busy_seconds))
    event.listen(engine, "begin", _sqlite_begin)
    return engine


class _Turns:
    """Lets the writers of one process take turns, for whom SQLite's own queue is naps of up to 100 ms."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.RLock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn.

        Raises:
            DatabaseAway: When it did not come in time.
        """
        if not self._lock.acquire(timeout=self._seconds):
            raise DatabaseAway(Trouble.BUSY)
        try:
            yield
        finally:
            self._lock.release()


class DatabaseClock:
    """The time by the database's clock: leases, heartbeats and due times of several hosts are compared by one clock.

    The database is asked now and then; in between the host counts seconds, in which it cannot be wrong for long.
    SQLite has no clock but its host's.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asked: tuple[datetime, float] | None = None
        self._tried = float("-inf")

    def __call__(self) -> datetime:
        """Return the time, aware, in UTC."""
        if self._engine.dialect.name == "sqlite":
            return clock.now()
        known, uptime = self._asked, _uptime()
        stale = known is None or uptime - known[1] > _ASK_SECONDS
        # One that does not answer takes seconds to say so, each time.
        if stale and uptime - self._tried > _ASK_AGAIN_SECONDS:
            known = self._asked = self._ask() or known
            self._tried = _uptime() if known is None or uptime - known[1] > _ASK_SECONDS else float("-inf")
        if known is None:  # nothing can be written either; the caller hears so at once
            return clock.now()
        return known[0] + timedelta(seconds=_uptime() - known[1])

    def _ask(self) -> tuple[datetime, float] | None:
        before = _uptime()
        try:
            with self._engine.connect() as connection:
                moment: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        except SQLAlchemyError:
            return None
        return moment.astimezone(UTC), (before + _uptime()) / 2


def _uptime() -> float:
    """Return seconds that also pass while the machine sleeps."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often and how soon what failed is tried again.

    Attributes:
        max_attempts: Attempts of one piece of work before it fails for good.
        retry_backoff: Seconds before attempt 2, 3, …; the last one repeats.
        store_patience: Seconds that work may be put off in all because the store is away.
        callback_backoff: Seconds before delivery 2, 3, …; after the last one a callback is dead.
    """

    max_attempts: int = 3
    retry_backoff: tuple[float, ...] = RETRY_BACKOFF
    store_patience: float = STORE_PATIENCE
    callback_backoff: tuple[float, ...] = CALLBACK_BACKOFF


_USUAL = Retries()


class Database:
    """An open registry database; what it answers is asked of the parts that `Registry` puts around it.

    Args:
        url: SQLAlchemy URL; SQLite and PostgreSQL are tested.
        migrate: Bring the schema up to date when it is not.
        retries: What is tried again.
        patience: Seconds for which every transaction waits for a database that is away; see `retrying.py`.
        busy_seconds: Seconds for which a statement waits for what somebody else has locked.
        answer_seconds: Seconds that a statement may take on a server.
        now: The clock, replaceable in tests; None asks the database, whose clock all hosts share.
    """

    def __init__(
        self,
        url: str,
        *,
        migrate: bool = True,
        retries: Retries = _USUAL,
        patience: float = ASKED_SECONDS,
        busy_seconds: float = BUSY_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self.url = url
        self.retries = retries
        self.patience = patience
        self.outage = Outage()
        self.engine = make_engine(url, busy_seconds, answer_seconds)
        self.now: Callable[[], datetime] = now or DatabaseClock(self.engine)
        self._writer = self.engine.execution_options(tunes_writes=True)
        sqlite = self.engine.dialect.name == "sqlite"
        self._turns: Callable[[], AbstractContextManager[object]]
        self._turns = _Turns(busy_seconds).turn if sqlite else nullcontext
        self._divide()
        if migrate:
            self.migrate()

    def _divide(self) -> None:
        """Make the parts that lead back to this one."""

    def with_patience(self, seconds: float) -> Self:
        """Return the same registry for somebody who waits for its database in another way; see `retrying.py`."""
        view = copy.copy(self)
        view.patience = seconds
        view._divide()
        return view

    @retried
    def migrate(self, *, older: bool = False) -> str | None:
        """Make the schema in an empty database, and upgrade an older one; safe when several processes do it at once.

        Args:
            older: Upgrade a server's database, too. Others may work on that with the version that it has, so that it
                is done when an operator says so (`tunes registry upgrade`); a SQLite file is its one installation's.

        Returns:
            The revision that was there before, None for an empty database.

        Raises:
            Failure: `CONFLICT` when a newer version of the software has already upgraded it, or an older schema is
                not to be upgraded; `STORE_UNAVAILABLE` when it cannot be opened.
        """
        found = self.revision()
        if found == HEAD:
            return found
        from tunes_dagster.registry.migrate import check_known, upgrade

        if self.engine.dialect.name == "sqlite":
            upgrade(self._writer)
            return found
        if found is not None and not older:
            check_known(found)
            raise Failure(
                FailureCode.CONFLICT,
                f"The registry has schema {found}, and this version needs {HEAD}.",
                "The operator should stop what runs on it, make a backup, and run `tunes registry upgrade`.",
            )
        unhurried = make_engine(self.url, _UPGRADE_SECONDS, _UPGRADE_SECONDS)
        try:
            upgrade(unhurried)
        finally:
            unhurried.dispose()
        return found

    @retried
    def revision(self) -> str | None:
        """Return the schema's revision, or None for an empty database."""
        try:
            with self.engine.connect() as connection:
                row = connection.execute(text("SELECT version_num FROM alembic_version")).first()
                return None if row is None else str(row[0])
        except DatabaseError as error:
            missing = "no such table" in str(error) or "does not exist" in str(error)
            if missing and "alembic_version" in str(error.orig):
                return None
            raise

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that only reads; rows stay usable after it."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self, lasts: bool = True) -> Iterator[Session]:
        """A transaction that is committed as a whole or not at all; rows stay usable after it.

        Args:
            lasts: A power loss must not take it. What is written anew every second may go.
        """
        writer = self._writer if lasts else self._writer.execution_options(tunes_lasts=False)
        with self._turns(), Session(writer, expire_on_commit=False) as session:
            yield session
            session.flush()
            try:
                session.commit()
            except SQLAlchemyError as error:
                mark_unknown(error)
                # Its transaction may be open still, and SQLAlchemy would hand the connection out again like that.
                session.invalidate()
                raise

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()


class Part:
    """What a registry knows of one subject: its queries, each a transaction of the database that all parts share.

    Args:
        database: The open one.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """See that every public query is retried; see `retrying.py`."""
        super().__init_subclass__(**kwargs)
        for name, method in list(vars(cls).items()):
            if not name.startswith("_") and isinstance(method, FunctionType):
                setattr(cls, name, retried(method))

    def __init__(self, database: Database) -> None:
        self.database = database

    def now(self) -> datetime:
        """Return the time that all hosts share."""
        return self.database.now()

    def reading(self) -> AbstractContextManager[Session]:
        """A transaction that only reads; see `Database.reading`."""
        return self.database.reading()

    def writing(self, lasts: bool = True) -> AbstractContextManager[Session]:
        """A transaction that is committed as a whole or not at all; see `Database.writing`."""
        return self.database.writing(lasts)
