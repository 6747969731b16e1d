"""Hearing of new work without asking for it: looks so cheap that they can be made many times a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from tunes_dagster.registry import Registry

# Work that becomes due by the clock (another attempt, after its backoff) rings no bell.
_SECONDS_WITHOUT_BELL = 1.0
# After a connection was lost: somebody who trains meanwhile does not stand before a server that is away.
_SECONDS_WITHOUT_CONNECTION = 30.0
# Between two looks of `listen`.
_LOOK_SECONDS = 0.05

Found = TypeVar("Found")


def listen(registry: Registry, look: Callable[[], list[Found]], seconds: float) -> list[Found]:
    """Look, and look again as soon as something changes, until something is found or the time is over.

    Args:
        registry: Whose changes are heard.
        look: Returns what it finds.
        seconds: How long; 0 looks once.
    """
    found, until, bell = look(), time.monotonic() + seconds, Bell(registry)
    try:
        while not found and time.monotonic() < until:
            time.sleep(_LOOK_SECONDS)
            found = look() if bell.rung() else []
    finally:
        bell.close()
    return found


class Bell:
    """Says whether something may have changed since it was last asked.

    SQLite counts the commits of others in a number that is read without a transaction (`PRAGMA data_version`);
    PostgreSQL tells those who listen of rows that somebody waits for (migration 0023). Where a pooler between swallows
    what it tells, a look a second is left.
    """

    def __init__(self, registry: Registry) -> None:
        self._engine = registry.engine
        self._connection: Any = None
        self._version: int | None = None
        self._heard = self._connects_at = float("-inf")
        self._is_file = registry.engine.dialect.name == "sqlite"

    def rung(self) -> bool:
        """Whether it is worth asking the registry for work."""
        now = time.monotonic()
        try:
            changed = self._counted() if self._is_file else self._told()
        except (
            DBAPIError,
            self._engine.dialect.loaded_dbapi.Error,
        ):  # who asks the registry hears what it is
            self._leave()
            changed, self._connects_at = False, now + _SECONDS_WITHOUT_CONNECTION
        if not changed and now - self._heard < _SECONDS_WITHOUT_BELL:
            return False
        self._heard = now
        return True

    def close(self) -> None:
        """Give the connection back: what others write with it is not counted, so the next time asks anew."""
        self._leave()
        self._heard = float("-inf")

    def _leave(self) -> None:
        if self._connection is not None:
            with suppress(DBAPIError, self._engine.dialect.loaded_dbapi.Error):
                self._connection.close()
            self._connection = None
        self._version = None

    def _counted(self) -> bool:
        if self._connection is None:
            self._connection = self._engine.raw_connection()
        cursor = self._connection.cursor()
        try:
            version = int(cursor.execute("PRAGMA data_version").fetchone()[0])
        finally:
            cursor.close()
        changed, self._version = version != self._version, version
        return changed

    def _told(self) -> bool:
        if self._connection is None:
            if time.monotonic() < self._connects_at:
                return False
            opened = self._engine.raw_connection()
            self._connection = opened.driver_connection
            opened.detach()  # it listens for as long as it lives, and nobody else may have it
            self._connection.autocommit = True
            with self._connection.cursor() as cursor:
                cursor.execute("LISTEN tunes")
            return True
        self._connection.poll()
        told = bool(self._connection.notifies)
        self._connection.notifies.clear()
        return told
