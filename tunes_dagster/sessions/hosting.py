"""The process of a session, whoever starts it: Dagster's `device_session` job, `tunes session`, systemd, a container.

It says that it is there for as long as it is, also while it has nothing to do, and ends in peace when it is told to:
what it is doing is kept, given back, and goes on in the next one.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from tunes_dagster.core.ids import new_id
from tunes_dagster.sessions.journal import Queued
from tunes_dagster.sessions.keeping import give_up
from tunes_dagster.sessions.process import beating, told_to_end
from tunes_dagster.sessions.recording import Recorded
from tunes_dagster.sessions.reporting import end_process

if TYPE_CHECKING:
    from tunes_dagster.service.installation import Installation
    from tunes_dagster.sessions.session import Session


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
        with _alive(session, run_id), told_to_end(session.stop):
            if ready is not None:
                ready(session)
            session.run(warm_seconds=warm_seconds)
    finally:
        journal.close()
    return session.name


@contextmanager
def _alive(session: Session, run_id: str | None) -> Iterator[None]:
    """Take the device, give back what those that are gone had on it, and say from a thread that this one is there."""
    runs, device, host_name = session.registry.device_runs, session.device.name, platform.node()
    gone = runs.hold_device(
        session.name,
        host_name,
        device,
        run_id,
        memory_gb=session.device.memory_gb,
        lost_after_seconds=session.settings.lost_after_seconds,
    )
    for name in gone:
        give_up(session.registry, name)
    session.does = partial(runs.session_does, session.name)

    def say(last: bool) -> None:
        runs.session_beats(session.name, host_name, device, run_id, over=last)

    with beating(session.name, session.settings.heartbeat_seconds, say, superseded=session.stop):
        yield
