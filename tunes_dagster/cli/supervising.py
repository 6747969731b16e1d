"""Runs several processes until one signal ends them all, with everything that they started themselves."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any, NamedTuple, NoReturn

import psutil

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.urls import address_of

# Ctrl-C, `kill`, a closed terminal.
_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# A server answers what is open and Dagster ends its code servers; what is left then is killed.
PATIENCE_SECONDS = 25.0
_LAST_SECONDS = 3.0
# Between looks at whether what was started answers.
_LOOK_SECONDS = 0.5
_PR_SET_CHILD_SUBREAPER, _PR_SET_PDEATHSIG = 36, 1


def check_free(host: str, port: int, option: str) -> None:
    """Refuse a port on which somebody listens already, before anything is announced there.

    Raises:
        Failure: `CONFLICT` for a port that is taken, `INVALID_REQUEST` for an address that is not this machine's.
    """
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(place)
            trial.listen(1)
    except (OSError, OverflowError) as error:  # the latter for ports beyond 65535
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        raise Failure(
            FailureCode.CONFLICT if taken else FailureCode.INVALID_REQUEST,
            f"Something listens on {address_of(host, port)} already."
            if taken
            else f"This machine cannot listen on {address_of(host, port)}.",
            f"Stop it, or choose another port ({option})."
            if taken
            else f"Choose another address or port ({option}).",
            str(error),
        ) from error


@contextlib.contextmanager
def only_one(lock: Path) -> Iterator[IO[str]]:
    """Be the only process that holds this lock file; the system lets go of it when the process ends, however.

    By hand and not with filelock, since the open file is handed on to the program that this process becomes, which
    filelock takes care to prevent.

    Yields:
        The file that holds it.

    Raises:
        Failure: `CONFLICT` when another one holds it.
    """
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Failure(
                FailureCode.CONFLICT,
                "`tunes dev` runs in this installation already: a second daemon would do its work twice.",
                "Stop it first, or set TUNES_HOME to another folder.",
            ) from error
        yield file


class Place(NamedTuple):
    """Where something will answer.

    Attributes:
        says: Printed once it does.
        host: Address it listens on.
        port: Its port.
        path: A page that it answers with 200 when it is ready.
    """

    says: str
    host: str
    port: int
    path: str

    def answers(self) -> bool:
        """Whether it answers now."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - is not listened on here
        try:
            with socket.create_connection((everywhere.get(self.host, self.host), self.port), 2.0) as line:
                line.sendall(f"GET {self.path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
                return line.recv(64).split(b" ", 2)[1:2] == [b"200"]
        except OSError:
            return False


def become_supervisor(
    commands: Sequence[Sequence[str]], lock: IO[str], places: Sequence[Place] = ()
) -> NoReturn:
    """Turn this process into one that does nothing but `supervise`, and has nothing else in its memory.

    Args:
        commands: As of `supervise`, with whose status the process ends.
        lock: Stays locked.
        places: As of `supervise`.
    """
    os.set_inheritable(lock.fileno(), True)
    sys.stdout.flush()
    sys.stderr.flush()
    # `-P`: the modules that lie beside this one are no top-level modules.
    given = json.dumps([[list(one) for one in commands], places])
    arguments = [sys.executable, "-W", "ignore", "-P", __file__, given]
    os.execv(sys.executable, arguments)  # noqa: S606 - our own


def supervise(
    commands: Sequence[Sequence[str]], patience: float = PATIENCE_SECONDS, places: Sequence[Place] = ()
) -> int:
    """Run commands until the first of them ends or this process is told to end; then end all of them.

    They are kept out of the terminal's group, so that a Ctrl-C reaches each of them once, from here. Whatever they
    started and left behind is ended as well (on Linux, where orphans come to this process). When this process is
    killed, they are told to end.

    Args:
        commands: The first one is the main one.
        patience: Seconds until what was told to end is killed; a second signal kills at once.
        places: Where they will answer: each is printed when it does, not before.

    Returns:
        Exit status of the main one; 0 when it was told to end.
    """
    told: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        told.append(number)

    before = {number: signal.signal(number, note) for number in _ENDING}
    _adopt_orphans()
    started: list[subprocess.Popen[Any]] = []
    bound = functools.partial(_end_with, os.getpid())
    try:
        for command in commands:
            started.append(
                subprocess.Popen(command, start_new_session=True, preexec_fn=bound)  # noqa: PLW1509, S603 - our own
            )
        main, waited_for, looked = started[0], list(places), 0.0
        while not told and main.poll() is None:
            if waited_for and time.monotonic() - looked > _LOOK_SECONDS:
                waited_for, looked = _announced(waited_for), time.monotonic()
            time.sleep(0.1)
        status = main.poll()
        _end(started, told, patience)
        return 0 if told else status or 0
    finally:
        _kill_rest()
        for number, handler in before.items():
            signal.signal(number, handler)


def _announced(places: Sequence[Place]) -> list[Place]:
    """Print the places that answer; returns those that do not yet."""
    silent = []
    for place in places:
        if place.answers():
            sys.stdout.write(f"{place.says}\n")
            sys.stdout.flush()
        else:
            silent.append(place)
    return silent


def _end(started: Sequence[subprocess.Popen[Any]], told: list[int], patience: float) -> None:
    """Tell every process to end and wait until they did, and not longer than that."""
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
    first, deadline = len(told), time.monotonic() + patience
    while any(process.poll() is None for process in started):
        if time.monotonic() > deadline or len(told) > max(1, first):
            return
        time.sleep(0.1)


def _kill_rest() -> None:
    """End everything below this process: first they are asked, then killed."""
    left = psutil.Process().children(recursive=True)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _gone, stubborn = psutil.wait_procs(left, timeout=_LAST_SECONDS)
    while stubborn:  # their own children come to this process one by one
        for process in stubborn:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(stubborn, timeout=_LAST_SECONDS)
        stubborn = [one for one in psutil.Process().children(recursive=True) if _lives(one)]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _end_with(parent: int) -> None:
    """In a new process: be told to end when the one that started it is gone, however that came."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was gone before that
            os._exit(1)


if __name__ == "__main__":
    _commands, _places = json.loads(sys.argv[1])
    sys.exit(supervise(_commands, places=[Place(*one) for one in _places]))
