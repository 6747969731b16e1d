"""Keeping devices at hand: a small process that waits, and sessions with torch and models while there is work.

A session ends when nothing came for a while, which gives all of its memory back; the keeper stays and starts the next
one as soon as something waits, and another one for each further device when one is not enough. When a session dies,
what it was doing goes on at once, in the next one.
"""

from __future__ import annotations

import logging
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING

from tunes_dagster.core.failures import Failure
from tunes_dagster.core.ids import SESSION, new_id
from tunes_dagster.core.progress import format_seconds
from tunes_dagster.registry.retrying import DatabaseAway
from tunes_dagster.sessions.hardware import count_devices
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
# What a session takes between two steps of its own work does not wait for so long; what does wait is worth another
# device.
CROWDED_SECONDS = 5.0
# While there is a session, which commits all the time, at whether another one is wanted.
_SECONDS_BETWEEN_LOOKS = 1.0


def keep(
    installation: Installation, command: Sequence[str], devices: Callable[[], int] | None = None
) -> None:
    """Start sessions whenever there is work, until told to end.

    Args:
        installation: Whose work.
        command: Of a process that is one session, whose name is added to it. It ends when nothing comes, and when its
            standard input, a pipe from here, is closed.
        devices: Counts those of this machine, asked when one session is not enough; None asks the machine.
    """
    registry, told = installation.registry, threading.Event()
    if devices is None:
        settings = installation.settings
        devices = partial(count_devices, settings.device)
    bell, crew = Bell(registry), _Crew(registry, command, devices)
    postman = threading.Thread(target=_deliver, args=(installation, told), name="postman", daemon=True)
    postman.start()
    with told_to_end(told.set), _known(installation), crew.at_work():
        while not told.wait(_LOOK_SECONDS):
            crew.look()
            if not crew.may_grow():
                continue
            try:
                if bell.rung() and registry.sessions.work_waits(crew.patience):
                    crew.grow()
            except DatabaseAway:
                told.wait(1.0)
    bell.close()


@dataclass
class _Member:
    """A session of a crew."""

    name: str
    process: subprocess.Popen[bytes]
    line: IO[bytes]
    began: float


class _Crew:
    """The sessions of a keeper.

    They are kept out of the terminal's group, so that a Ctrl-C reaches each of them once, from here: a second one ends
    a session in the middle of its work.
    """

    def __init__(self, registry: Registry, command: Sequence[str], devices: Callable[[], int]) -> None:
        self._registry, self._command, self._count = registry, command, devices
        self._members: list[_Member] = []
        self._devices: int | None = None
        self._failures, self._not_before, self._looked = 0, 0.0, float("-inf")

    @property
    def patience(self) -> float:
        """How long something waits before it is worth another session."""
        return CROWDED_SECONDS if self._members else 0.0

    def may_grow(self) -> bool:
        """Whether there may be another session now, if there is something to do."""
        now = time.monotonic()
        if now < self._not_before:
            return False
        if not self._members:
            return True
        if now - self._looked < _SECONDS_BETWEEN_LOOKS:
            return False
        self._looked = now
        return self._devices is None or len(self._members) < self._devices

    def grow(self) -> None:
        """Start a session, where a device is left for it."""
        if self._members and self._devices is None:
            self._devices = self._count()
        if self._devices is not None and 0 < self._devices <= len(self._members):
            return
        name = new_id(SESSION)
        process = subprocess.Popen(  # noqa: S603 - our own
            [*self._command, name], stdin=subprocess.PIPE, start_new_session=True
        )
        assert process.stdin is not None
        self._members.append(_Member(name, process, process.stdin, time.monotonic()))

    def look(self) -> None:
        """See who has ended, and have what they left behind go on."""
        for one in [one for one in self._members if one.process.poll() is not None]:
            try:
                lost, status = give_up(self._registry, one.name), one.process.returncode
            except DatabaseAway:
                continue  # the next look tells
            self._members.remove(one)
            one.line.close()
            if not status:
                self._failures = 0
                continue
            lasted = time.monotonic() - one.began > _LONGEST_NAP
            self._failures = 1 if lasted else self._failures + 1
            nap = min(_LONGEST_NAP, 2.0 ** (self._failures - 1))
            said = "%s ended with %d; %d pieces of its work go on in the next one, in %s."
            log.error(said, one.name, status, lost, format_seconds(nap))
            self._not_before = time.monotonic() + nap

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have all of them end at last: in peace, or at once when this process is to end at once."""
        try:
            yield
            for one in self._members:
                _tell_to_end(self._registry, one)
            for one in self._members:
                one.process.wait()
        finally:
            for one in self._members:
                with suppress(OSError):
                    one.process.kill()
                one.process.wait()
                one.line.close()
                with suppress(DatabaseAway):  # who comes next gives up what is silent
                    give_up(self._registry, one.name)


def _tell_to_end(registry: Registry, member: _Member) -> None:
    """Have a session end at its next step; one that has not begun has nothing to lose."""
    with suppress(OSError):
        member.line.close()
    try:
        began = registry.sessions.get(member.name) is not None
    except DatabaseAway:
        began = True
    if not began:
        member.process.terminate()


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
    row, works = registry.sessions.get(name), registry.sessions.works_of(name)
    doing = set(row.doing) if row is not None else {work.id for work in works}
    if row is not None and row.ended_at is None:  # its device is free for the next one, without a silence
        registry.sessions.beat(name, row.host, row.device, row.run_id, over=True)
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
    sessions, name = installation.registry.sessions, new_id("keeper")

    def say(last: bool) -> None:
        sessions.beat(name, platform.node(), "", over=last)

    with beating(name, installation.settings.heartbeat_seconds, say):
        yield
