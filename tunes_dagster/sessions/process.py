"""What a process that sees to sessions does beside its work: it says that it is there, and hears that it is to end."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from tunes_dagster.core.failures import Failure, FailureCode

log = logging.getLogger("tunes.session")

_ENDING = (signal.SIGINT, signal.SIGTERM)
# Within it a second signal is the first one, come by another road.
_SAME_SECONDS = 2.0


@contextmanager
def beating(
    name: str, seconds: float, say: Callable[[bool], object], superseded: Callable[[], None] | None = None
) -> Iterator[None]:
    """Say from a thread that somebody is there, for as long as they are, and at last that they left.

    Args:
        name: Who it is, for the log.
        seconds: Between two times.
        say: Writes it; told whether this is the last time. What fails is said again the next time.
        superseded: Called when `say` hears by a `CONFLICT` that another has the place; nothing is said after it. None
            takes that for a failure like any other.
    """
    over, replaced = threading.Event(), threading.Event()

    def beat(last: bool = False) -> None:
        try:
            say(last)
        except Exception as error:
            if superseded is not None and isinstance(error, Failure) and error.code == FailureCode.CONFLICT:
                log.error("%s", error)
                over.set()
                replaced.set()
                superseded()
                return
            log.warning("The heartbeat of %s could not be written: %s", name, error)

    def beats() -> None:
        while not over.wait(seconds):
            beat()

    beat()
    thread = threading.Thread(target=beats, name=f"{name}-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(10)
        if not replaced.is_set():
            beat(True)


@contextmanager
def told_to_end(stop: Callable[[], None], line: int | None = None) -> Iterator[None]:
    """Take a signal to end as a request; a second one, a while later, ends the process as ever.

    The same request may come by two roads: from a terminal or a service manager, which tell a whole group, and from
    whoever started this process.

    Where this is not the process's main thread, which alone hears signals, they change nothing.

    Args:
        stop: Asks for the end.
        line: A pipe that is closed when the process that started this one asks for the end, or is gone.
    """
    if line is not None:
        threading.Thread(target=_listen, args=(line, stop), name="keeper's line", daemon=True).start()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDING}
    since: list[float] = []

    def heard(number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if not since:
            since.append(now)
            stop()
        elif now - since[0] > _SAME_SECONDS:
            for one, handler in before.items():
                signal.signal(one, handler)
            signal.raise_signal(number)

    for number in _ENDING:
        signal.signal(number, heard)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(line: int, stop: Callable[[], None]) -> None:
    with suppress(OSError):
        while os.read(line, 64):
            pass
    stop()
