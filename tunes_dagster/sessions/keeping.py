"""Keeping a device at hand: a small process that waits, and a session with torch and models while there is work.

The session ends when nothing came for a while, which gives all of its memory back; the keeper stays and starts the next
one as soon as something waits. When a session dies, what it was doing goes on at once, in the next one.
"""

from __future__ import annotations

import logging
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure
from tunes_dagster.core.ids import new_id
from tunes_dagster.core.progress import format_seconds
from tunes_dagster.registry.retrying import DatabaseAway
from tunes_dagster.sessions.process import beating, told_to_end
from tunes_dagster.sessions.waking import Bell

if TYPE_CHECKING:
    from tunes_dagster.registry import Registry
    from tunes_dagster.service.installation import Installation

log = logging.getLogger("tunes.session")

# A session that dies is not started again at once: after 1 s, 2 s, 4 s … a minute.
_LONGEST_NAP = 60.0
_LOOK_SECONDS = 0.05
_POST_SECONDS = 0.1


def keep(installation: Installation, command: Sequence[str]) -> None:
    """Start a session whenever there is work, until told to end.

    Args:
        installation: Whose work.
        command: Of a process that is one session, whose name is added to it, and ends when nothing comes.
    """
    registry, told = installation.registry, threading.Event()
    bell, failures = Bell(registry), 0
    postman = threading.Thread(target=_deliver, args=(installation, told), name="postman", daemon=True)
    postman.start()
    with told_to_end(told.set), _known(installation):
        while not told.is_set():
            try:
                waits = bell.rung() and registry.device_runs.device_work_waits()
            except DatabaseAway:
                waits = False
                told.wait(1.0)
            if not waits:
                told.wait(_LOOK_SECONDS)
                continue
            name, began = new_id("session"), time.monotonic()
            status = _run([*command, name], told)
            lost = give_up(registry, name)
            if not status or told.is_set():
                failures = 0
                continue
            failures = 1 if time.monotonic() - began > _LONGEST_NAP else failures + 1
            nap = min(_LONGEST_NAP, 2.0 ** (failures - 1))
            said = "%s ended with %d; %d pieces of its work go on in the next one, in %s."
            log.error(said, name, status, lost, format_seconds(nap))
            told.wait(nap)
    bell.close()


def _deliver(installation: Installation, told: threading.Event) -> None:
    """Send callbacks as soon as they are owed; the sensor `due_callbacks` does what this leaves."""
    from tunes_dagster.callbacks.deliver import deliver_due

    bell = Bell(installation.registry)
    while not told.wait(_POST_SECONDS):
        try:
            if bell.rung() and (due := installation.registry.outbox.next_at()) is not None:
                if due > installation.registry.now():
                    continue
                deliver_due(installation, allow_hosts=installation.settings.allow_hosts)
        except Exception as error:  # the next look tries again
            log.warning("Callbacks could not be sent: %s", error)
            told.wait(1.0)
    bell.close()


def give_up(registry: Registry, name: str) -> int:
    """Have the work of a session that is gone go on in another one; returns how many pieces that is.

    What it was computing counts a try, and what only lay in its hands does not.
    """
    row, works = registry.device_runs.session(name), registry.device_runs.works_of_session(name)
    doing = set(row.doing) if row is not None else {work.id for work in works}
    if row is not None and row.ended_at is None:  # its device is free for the next one, without a silence
        registry.device_runs.session_beats(name, row.host, row.device, row.run_id, over=True)
    for work in works:
        if work.id in doing:
            registry.work.requeue_lost(work.id, f"{name} ended without a word.", run_id=name)
            continue
        with suppress(Failure):  # it moved on meanwhile
            registry.work.give_back(work.id, name, f"{name} ended while this waited there.")
    return len(works)


def session_command() -> list[str]:
    """Return the command of a process of this interpreter that is one session."""
    call = "from tunes_dagster.cli import main; raise SystemExit(main())"
    return [sys.executable, "-W", "ignore", "-c", call, "session", "--named"]


@contextmanager
def _known(installation: Installation) -> Iterator[None]:
    """Say that somebody sees to sessions here, so that nobody else starts one."""
    runs, name = installation.registry.device_runs, new_id("keeper")

    def say(last: bool) -> None:
        runs.session_beats(name, platform.node(), "", over=last)

    with beating(name, installation.settings.heartbeat_seconds, say):
        yield


def _run(command: Sequence[str], told: threading.Event) -> int:
    """Run the process of a session to its end; being told to end is passed on."""
    process = subprocess.Popen(command)  # noqa: S603 - our own
    passed_on = False
    while (status := process.poll()) is None:
        if told.is_set() and not passed_on:
            process.send_signal(signal.SIGTERM)
            passed_on = True
        time.sleep(_LOOK_SECONDS)
    return status
