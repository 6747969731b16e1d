"""What a database's errors mean, and which are tried again: the one place for both.

Every public method of the registry is a transaction that can be run again from its start, because nothing of it was
kept and it does nothing but read and write rows. `retried` runs it again after a deadlock (40P01, 40001), and while the
database is locked or away for as long as the registry's `patience`, which is one of three:

- `ASKED_SECONDS` where somebody waits for the answer and asks again by himself: a request of an API, a command, a tick
  of a sensor, a heartbeat.
- `Settings.registry_patience_seconds` where something would be lost: a run of any kind, from the opening of its
  registry to its end (`open_registry(…, works=True)`), and what a command drives in its own process.
- `FOR_EVER` for what cannot be had again: what a receiver answered to a callback.

A connection that breaks during the commit leaves
open whether the transaction was kept: only methods marked `repeatable`, which the second time change nothing, are run
again then. What does not pass is raised as `DatabaseAway`, a `Failure` without a word of what was to be written.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.registry.holders import writer_of

log = logging.getLogger("tunes.registry")

# Two that met in a deadlock or a serialization failure try again for this long, whatever the patience.
CONFLICT_SECONDS = 30.0
# How long somebody waits who asks again: over a restart of a server, but not so long that a person thinks that nothing
# happens.
ASKED_SECONDS = 3.0
FOR_EVER = float("inf")
# Longest nap between two tries; a database that comes back is noticed within a second.
_LONGEST_NAP = 1.0

Method = TypeVar("Method", bound=Callable[..., Any])


class Trouble(Enum):
    """What is the matter with a database, as a sentence and a remedy."""

    CONFLICT = ("Two transactions of the registry were in each other's way.", "Try again.")
    BUSY = ("The registry's database is locked or has no connection free.", "Try again in a moment.")
    AWAY = (
        "The registry's database does not answer.",
        "Check that it runs and that TUNES_REGISTRY_URL leads to it.",
    )
    SLOW = (
        "The registry's database took too long.",
        "Try again in a moment; if it goes on, look at the database's load.",
    )
    FULL = ("The registry's database has no space left.", "Make room on its disk; nothing was lost.")
    READ_ONLY = (
        "The registry's database takes no writes.",
        "Check the file's permissions, or which server is the primary.",
    )
    REFUSED = (
        "The registry's database refuses this installation.",
        "Check user, password and database in TUNES_REGISTRY_URL.",
    )
    DAMAGED = ("The registry's file is no database, or is damaged.", "Restore it from a backup.")

    @property
    def sentence(self) -> str:
        """What is said of it."""
        return self.value[0]

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return self.value[1]

    @property
    def passes(self) -> bool:
        """Whether it may be over soon."""
        return self not in (Trouble.REFUSED, Trouble.DAMAGED)


class DatabaseAway(Failure):
    """The database could not be asked; nothing is known to have been written.

    Attributes:
        trouble: What is the matter.
        unknown: Whether the transaction may have been kept all the same: then nothing that it counts on may go.
    """

    def __init__(self, trouble: Trouble, detail: str = "", unknown: bool = False) -> None:
        super().__init__(FailureCode.STORE_UNAVAILABLE, trouble.sentence, trouble.remedy, detail)
        self.trouble = trouble
        self.unknown = unknown


_SQLITE = {
    "SQLITE_BUSY": Trouble.BUSY,
    "SQLITE_LOCKED": Trouble.BUSY,
    "SQLITE_PROTOCOL": Trouble.BUSY,
    "SQLITE_FULL": Trouble.FULL,
    "SQLITE_READONLY": Trouble.READ_ONLY,
    "SQLITE_CANTOPEN": Trouble.AWAY,
    "SQLITE_IOERR": Trouble.AWAY,
    "SQLITE_CORRUPT": Trouble.DAMAGED,
    "SQLITE_NOTADB": Trouble.DAMAGED,
}

# By SQLSTATE, or the class that it begins with (PostgreSQL's appendix A).
_POSTGRES = {
    "40001": Trouble.CONFLICT,
    "40P01": Trouble.CONFLICT,
    "55P03": Trouble.BUSY,
    "53300": Trouble.BUSY,
    "57014": Trouble.SLOW,
    "53100": Trouble.FULL,
    "25006": Trouble.READ_ONLY,
    "25P03": Trouble.AWAY,
    "08": Trouble.AWAY,
    "53": Trouble.AWAY,
    "57P": Trouble.AWAY,
    "58": Trouble.AWAY,
    "28": Trouble.REFUSED,
    "3D000": Trouble.REFUSED,
    "XX001": Trouble.DAMAGED,
    "XX002": Trouble.DAMAGED,
}
# A connection that is not made has no SQLSTATE.
_NO_ENTRY = re.compile(
    r"authentication failed|does not exist|no pg_hba.conf entry|permission denied", re.IGNORECASE
)


def trouble_of(error: BaseException) -> Trouble | None:
    """Return what an error says of the database; None for what is wrong with the statement or its values."""
    if isinstance(error, PoolTimeout):
        return Trouble.BUSY
    if not isinstance(error, DBAPIError):
        return None
    driver: Any = error.orig
    if name := getattr(driver, "sqlite_errorname", None):
        return next((kind for start, kind in _SQLITE.items() if str(name).startswith(start)), None)
    code = getattr(driver, "pgcode", None) or ""
    for length in (5, 3, 2):
        if code and (kind := _POSTGRES.get(code[:length])):
            return kind
    if code and not error.connection_invalidated:
        return None
    if error.connection_invalidated or type(driver).__name__ in ("OperationalError", "InterfaceError"):
        return Trouble.REFUSED if _NO_ENTRY.search(str(driver)) else Trouble.AWAY
    return None


def away(error: BaseException, trouble: Trouble, place: str, unknown: bool) -> DatabaseAway:
    """Return the failure that stands for a database error; of the driver's words it keeps the first line.

    Args:
        error: As SQLAlchemy raised it.
        trouble: What it means.
        place: The database's URL, without its password.
        unknown: See `DatabaseAway`.
    """
    driver = str(getattr(error, "orig", None) or "").strip().splitlines()
    said = driver[0].strip().rstrip(".:")[:200] if driver else ""
    return DatabaseAway(trouble, ": ".join(filter(None, (place, said, _waited_for(trouble, place)))), unknown)


def _waited_for(trouble: Trouble, place: str) -> str:
    """Return words for the operator about the process that everybody waits for, if it is another one here."""
    if trouble is not Trouble.BUSY or not place.startswith("sqlite:///"):
        return ""
    holder = writer_of(Path(place.removeprefix("sqlite:///")))
    return "" if holder is None or holder.pid == os.getpid() else f"{holder.sentence} {holder.remedy}"


class Outage:
    """When a database was last found away, for everybody who has the same registry open."""

    def __init__(self) -> None:
        self._seen: float | None = None

    def see(self) -> None:
        """Note that it is away."""
        self._seen = time.monotonic()

    def seconds_ago(self) -> float:
        """Return how long ago it was last seen; infinite when it never was."""
        return FOR_EVER if self._seen is None else time.monotonic() - self._seen


def repeatable(method: Method) -> Method:
    """Mark a method that changes nothing when it is called a second time with the same arguments."""
    method.__dict__["tunes_repeatable"] = True
    return method


_unheard: ContextVar[bool] = ContextVar("unheard", default=False)


def unheard() -> bool:
    """Whether the method that asks is run again because what it wrote before may have been kept."""
    return _unheard.get()


def may_have_been_kept(error: BaseException) -> bool:
    """Whether a transaction that ended in this error may have been kept all the same."""
    return isinstance(error, DatabaseAway) and error.unknown


def mark_unknown(error: BaseException) -> None:
    """Note on an error that it came during the commit: what was written may have been kept."""
    error.__dict__["tunes_unknown"] = True


def retried(method: Method) -> Method:
    """Return a method of a `Database`, or of a `Part` of it, that is run again while what ended it passes.

    Methods that call each other are each retried by themselves: the inner one alone is run again.
    """
    again = method.__dict__.get("tunes_repeatable", False)

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        database = getattr(self, "database", self)
        began, attempt, unknown = time.monotonic(), 0, False
        while True:
            before = _unheard.set(unknown)
            try:
                return method(self, *args, **kwargs)
            except SQLAlchemyError as error:
                trouble = trouble_of(error)
                if trouble is None:
                    raise
                if trouble is not Trouble.CONFLICT:
                    database.outage.see()
                limit = CONFLICT_SECONDS if trouble is Trouble.CONFLICT else database.patience
                over = time.monotonic() - began > limit
                unknown |= trouble is Trouble.AWAY and error.__dict__.get("tunes_unknown", False)
                if over or not trouble.passes or (unknown and not again):
                    raise away(error, trouble, str(database.engine.url), unknown) from error
                if attempt % 60 == 0:  # about once in a minute
                    said = " ".join(
                        filter(None, (trouble.sentence, _waited_for(trouble, str(database.engine.url))))
                    )
                    log.warning("%s %s is tried again.", said, method.__name__)
                if trouble is Trouble.READ_ONLY:
                    # After a failover the open connections still lead to the former primary.
                    database.engine.dispose()
            finally:
                _unheard.reset(before)
            time.sleep(random.uniform(0.0, min(_LONGEST_NAP, 0.01 * 2 ** min(attempt, 10))))
            attempt += 1

    return run  # type: ignore[return-value]
