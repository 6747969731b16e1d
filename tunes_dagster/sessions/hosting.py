"""The process of a session, whoever starts it: Dagster's `device_session` job, `tunes session`, systemd, a container.

It says that it is there for as long as it is, also while it has nothing to do, and ends in peace when it is told to:
what it is doing is kept, given back, and goes on in the next one.
"""

from __future__ import annotations

import logging
import platform
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.sessions.journal import Queued
from tunes_dagster.sessions.keeping import give_up
from tunes_dagster.sessions.recording import Recorded
from tunes_dagster.sessions.reporting import end_process

if TYPE_CHECKING:
    from tunes_dagster.service.installation import Installation
    from tunes_dagster.sessions.session import Session

log = logging.getLogger("tunes.session")

_ENDING = (signal.SIGINT, signal.SIGTERM)


def host(
    installation: Installation,
    *,
    name: str = "",
    run_id: str | None = None,
    alone: bool = False,
    warm_seconds: float | None = None,
    ready: Callable[[Session], None] | None = None,
) -> str:
    """Hold a device until told to end, or until nothing came for as long as the settings say.

    Args:
        installation: Opened with `works=True`.
        name: Of the session; empty makes one.
        run_id: The Dagster run that hosts it.
        alone: Whether the process exists for the session: it may be killed when it hears nothing any more.
        warm_seconds: How long to stay with nothing to do; None takes the setting.
        ready: Called once the session is there.

    Returns:
        The session's name.
    """
    from tunes_dagster.sessions.session import open_session

    journal = Queued(Recorded(installation.registry))
    session = open_session(
        installation, journal, name=name or new_id("session"), end=end_process if alone else None
    )
    try:
        with _alive(session, run_id), _told_to_end(session.stop):
            if ready is not None:
                ready(session)
            session.run(warm_seconds=warm_seconds)
    finally:
        journal.close()
    return session.name


@contextmanager
def _alive(session: Session, run_id: str | None) -> Iterator[None]:
    """Say from a thread that a session is there."""
    runs, over = session.registry.device_runs, threading.Event()
    device, interval = session.device.name, session.settings.heartbeat_seconds

    def beat(ended: bool = False) -> None:
        try:
            runs.session_beats(session.name, platform.node(), device, run_id, over=ended)
        except Exception as error:
            if isinstance(error, Failure) and error.code == FailureCode.CONFLICT:
                log.error("%s", error)
                session.stop()
                over.set()
                return
            # The next one says it.
            log.warning("The heartbeat of %s could not be written: %s", session.name, error)

    def beats() -> None:
        while not over.wait(interval):
            beat()

    gone = runs.hold_device(
        session.name,
        platform.node(),
        device,
        run_id,
        memory_gb=session.device.memory_gb,
        lost_after_seconds=session.settings.lost_after_seconds,
    )
    for name in gone:
        give_up(session.registry, name)
    session.does = partial(runs.session_does, session.name)
    thread = threading.Thread(target=beats, name="session-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)
        beat(ended=True)


@contextmanager
def _told_to_end(stop: Callable[[], None]) -> Iterator[None]:
    """Take a signal to end as a request; a second one ends the process as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDING}

    def heard(_number: int, _frame: object) -> None:
        stop()
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in _ENDING:
        signal.signal(number, heard)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
