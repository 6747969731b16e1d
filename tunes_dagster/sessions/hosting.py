"""The process of a session, whoever starts it: Dagster's `device_session` job, `tunes session`, systemd, a container.

It says that it is there for as long as it is, also while it has nothing to do, and ends in peace when it is told to:
what it is doing is kept, given back, and goes on in the next one.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.ids import SESSION, new_id
from tunes_dagster.sessions.journal import Queued
from tunes_dagster.sessions.keeping import give_up
from tunes_dagster.sessions.leases import lock_any
from tunes_dagster.sessions.process import beating, told_to_end
from tunes_dagster.sessions.recording import Recorded
from tunes_dagster.sessions.reporting import end_process

if TYPE_CHECKING:
    from tunes_dagster.service.installation import Installation
    from tunes_dagster.sessions.hardware import Device
    from tunes_dagster.sessions.session import Session

log = logging.getLogger("tunes.session")

_POLL_SECONDS = 0.5


def host(
    installation: Installation,
    *,
    name: str = "",
    run_id: str | None = None,
    alone: bool = False,
    warm_seconds: float | None = None,
    ready: Callable[[Session], None] | None = None,
    line: int | None = None,
) -> str:
    """Hold a device until told to end, or until nothing came for as long as the settings say.

    Args:
        installation: Opened with `works=True`.
        name: Of the session; empty makes one.
        run_id: The Dagster run that hosts it.
        alone: Whether the process exists for the session: it may be killed when it hears nothing any more.
        warm_seconds: How long to stay with nothing to do; None takes the setting.
        ready: Called once the session is there.
        line: A pipe from whoever keeps the session, who closes it to have it end.

    Returns:
        The session's name.
    """
    from tunes_dagster.sessions.hardware import find_devices
    from tunes_dagster.sessions.session import Session

    settings, name = installation.settings, name or new_id(SESSION)
    device = _taken(installation, find_devices(settings.device, settings.dtype), name, run_id)
    journal = Queued(Recorded(installation.registry))
    session = Session(installation, device, journal, name=name, end=end_process if alone else None)
    try:
        with _alive(session, run_id), told_to_end(session.stop, line), _alone_on(session):
            if ready is not None:
                ready(session)
            session.run(warm_seconds=warm_seconds)
    finally:
        journal.close()
    return session.name


def _taken(installation: Installation, devices: Sequence[Device], name: str, run_id: str | None) -> Device:
    """Take the first device that no session holds, and give back what those that are gone had on it.

    Raises:
        Failure: `CONFLICT` when sessions hold all of them.
    """
    registry, refused = installation.registry, None
    for device in devices:
        try:
            gone = registry.sessions.hold(
                name,
                platform.node(),
                device.name,
                run_id,
                memory_gb=device.memory_gb,
                lost_after_seconds=installation.settings.lost_after_seconds,
            )
        except Failure as failure:
            if failure.code != FailureCode.CONFLICT:
                raise
            refused = failure
            continue
        for one in gone:
            give_up(registry, one)
        return device
    assert refused is not None
    raise refused


@contextmanager
def _alone_on(session: Session) -> Iterator[None]:
    """Wait until no run of its own computes on the device any more, and keep it from others."""
    said = False
    while (got := lock_any([session.device], session.settings, session.name)) is None:
        if not said:
            log.info("%s waits until the run that has %s ends.", session.name, session.device.name)
            said = True
        if session.stopping.wait(_POLL_SECONDS):
            yield  # it was told to end, and does so at once
            return
    try:
        yield
    finally:
        got[1].release()


@contextmanager
def _alive(session: Session, run_id: str | None) -> Iterator[None]:
    """Say from a thread that a session is there."""
    sessions, device, host_name = session.registry.sessions, session.device.name, platform.node()
    session.does = partial(sessions.does, session.name)

    def say(last: bool) -> None:
        sessions.beat(session.name, host_name, device, run_id, over=last)

    with beating(session.name, session.settings.heartbeat_seconds, say, superseded=session.stop):
        yield
