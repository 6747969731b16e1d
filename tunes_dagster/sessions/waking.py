"""Hearing of new work without asking for it: looks so cheap that they can be made many times a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tunes_dagster.registry import Registry

# Work that becomes due by the clock (another attempt, after its backoff) rings no bell.
_SECONDS_WITHOUT_BELL = 1.0
# Between two looks of `listen`.
_LOOK_SECONDS = 0.05
# A query by index on a server; SQLite's look is a thousand times cheaper.
_SECONDS_BETWEEN_QUERIES = 0.1

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

    SQLite counts the commits of others in a number that is read without a transaction (`PRAGMA data_version`).
    """

    def __init__(self, registry: Registry) -> None:
        self._engine = registry.engine
        self._connection: Any = None
        self._version: int | None = None
        self._heard = float("-inf")
        self._is_file = registry.engine.dialect.name == "sqlite"

    def rung(self) -> bool:
        """Whether it is worth asking the registry for work."""
        now = time.monotonic()
        if self._is_file:
            version = self._data_version()
            changed, self._version = version != self._version, version
            if not changed and now - self._heard < _SECONDS_WITHOUT_BELL:
                return False
        elif now - self._heard < _SECONDS_BETWEEN_QUERIES:
            return False
        self._heard = now
        return True

    def close(self) -> None:
        """Give the connection back: what others write with it is not counted, so the next time asks anew."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._version, self._heard = None, float("-inf")

    def _data_version(self) -> int:
        if self._connection is None:
            self._connection = self._engine.raw_connection()
        cursor = self._connection.cursor()
        try:
            return int(cursor.execute("PRAGMA data_version").fetchone()[0])
        finally:
            cursor.close()
