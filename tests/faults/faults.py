"""The faults, each at the n-th moment of a stage: an operation of the store or a transaction of the registry.

They happen in a process of their own, forked from one that has everything loaded. A kill and a stop are real signals.
The disk is filled where every file of a local store is begun (`Store._beside`), the store is taken away by moving its
folder, the database by an error of SQLite at each of its transactions, and the clock is turned where all code asks it.
"""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.exc import OperationalError

from tests.faults.home import Home, opened
from tunes_dagster.core import clock
from tunes_dagster.core.store import Store
from tunes_dagster.registry.engine import Database

# Long enough for several operations to meet it, short enough to wait for.
SECONDS = 0.7


class Moments:
    """Counts the moments of this process, and lets one thing happen at one of them."""

    def __init__(self, at: int = 0, happen: Callable[[], None] | None = None) -> None:
        self.count, self._at, self._happen = 0, at, happen
        self._lock = threading.Lock()

    def passed(self) -> None:
        """One more."""
        with self._lock:
            self.count += 1
            now = self._happen if self.count == self._at else None
        if now is not None:
            now()


class Away:
    """What is away for a while."""

    def __init__(self) -> None:
        self.until = 0.0

    def go(self) -> None:
        """Be away from now on."""
        self.until = time.monotonic() + SECONDS

    def __bool__(self) -> bool:
        return time.monotonic() < self.until


DISK, DATABASE = Away(), Away()


def watch(moments: Moments) -> None:
    """Count every operation of the store and every transaction of this process, and let them meet the faults."""
    reaching, beside, writing, reading = Store._reaching, Store._beside, Database.writing, Database.reading

    @contextmanager
    def reached(self: Store, key: str) -> Iterator[None]:
        moments.passed()
        with reaching(self, key):
            yield

    def begun(self: Store, *place: Any, **more: Any) -> Any:
        if DISK:
            raise OSError(errno.ENOSPC, "No space left on device")
        return beside(self, *place, **more)

    def met(transaction: Callable[..., Any]) -> Callable[..., Any]:
        @contextmanager
        def met_it(self: Database, *how: Any, **more: Any) -> Iterator[Any]:
            moments.passed()
            if DATABASE:
                away = sqlite3.OperationalError("disk I/O error")
                away.sqlite_errorcode = 10  # type: ignore[misc]
                away.sqlite_errorname = "SQLITE_IOERR"  # type: ignore[misc]
                raise OperationalError("", None, away)
            with transaction(self, *how, **more) as session:
                yield session

        return met_it

    Store._reaching = reached  # type: ignore[method-assign]
    Store._beside = begun  # type: ignore[method-assign]
    Database.writing = met(writing)  # type: ignore[method-assign]
    Database.reading = met(reading)  # type: ignore[method-assign]


def _signal(number: int) -> Callable[[Path], None]:
    return lambda _: os.kill(os.getpid(), number)


def _take_store_away(folder: Path) -> None:
    store = folder / "home" / "store"
    aside = store.with_name("store-aside")
    store.rename(aside)

    def back() -> None:
        if not store.exists():
            aside.rename(store)

    threading.Timer(SECONDS, back).start()


def _turn(hours: float) -> Callable[[Path], None]:
    def turned(_: Path) -> None:
        now = clock.now
        clock.now = lambda: now() + timedelta(hours=hours)  # type: ignore[assignment]

    return turned


FAULTS: dict[str, Callable[[Path], None]] = {
    "kill": _signal(signal.SIGKILL),
    "stop": _signal(signal.SIGSTOP),
    "full disk": lambda _: DISK.go(),
    "store away": _take_store_away,
    "database away": lambda _: DATABASE.go(),
    "clock forward": _turn(2),
    "clock back": _turn(-2),
}


def in_a_child(folder: Path, do: Callable[[Home], None], at: int = 0, fault: str = "") -> int:
    """Start a process that does something with a home, and to which a fault happens; returns its id.

    It ends with 0, or with 1 after it wrote its stack trace beside the home. It notes how many moments it had.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        moments = Moments(at, (lambda: FAULTS[fault](folder)) if fault else None)
        watch(moments)
        home = opened(folder)
        do(home)
        (folder / "moments").write_text(str(moments.count))
        code = 0
    except BaseException:
        (folder / f"trace-{os.getpid()}").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def ended(child: int, seconds: float = 240.0) -> str:
    """Return how a process is: `0`, `1`, `killed`, or `stopped`; one that goes on for too long is killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if pid:
            if os.WIFSTOPPED(status):
                return "stopped"
            return "killed" if os.WIFSIGNALED(status) else str(os.WEXITSTATUS(status))
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"
