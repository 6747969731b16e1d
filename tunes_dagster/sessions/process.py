"""What a process that sees to sessions does beside its work: it says that it is there, and hears that it is to end."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tunes_dagster.core.failures import Failure, FailureCode

log = logging.getLogger("tunes.session")

_ENDING = (signal.SIGINT, signal.SIGTERM)


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
def told_to_end(stop: Callable[[], None]) -> Iterator[None]:
    """Take a signal to end as a request; a second one ends the process as ever.

    Where this is not the process's main thread, which alone hears signals, nothing changes.
    """
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
