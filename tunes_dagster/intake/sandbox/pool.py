"""Tasks: a file of a stranger goes in, messages of a child come out, and its end means one `Failure` at most."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.settings import Settings, get_settings
from tunes_dagster.intake.sandbox import wire
from tunes_dagster.intake.sandbox.limits import Limits, most_memory
from tunes_dagster.intake.sandbox.nursery import Gone, Nursery

Source = bytes | Path | IO[bytes]
Refuse = Callable[[str, str], Failure]

asked_by: ContextVar[str] = ContextVar("asked_by", default="")
"""The account on whose behalf a server opens files; empty elsewhere. Whoever asks for much waits for himself."""

# In a server each that waits keeps one of its 40 threads.
_WAITING = 12
_WAITING_OF_ONE = 4
# A child opens so many files of one owner before another takes its place.
_TASKS_OF_A_CHILD = 32
_GO_ON = b"+"
_PIECE = 1 << 20
_CHILD_SAYS = 65_536


class Busy(Failure):
    """Too many files wait to be opened: try again in a moment."""

    def __init__(self) -> None:
        super().__init__(
            FailureCode.TIMED_OUT, "Too many pictures are being looked at.", "Try again in a few seconds."
        )


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: Its exit status, or minus the signal that ended it.
        killed: Why the nursery ended it, or empty.
        cpu_seconds: That it used.
        peak_bytes: Of resident memory.
    """

    status: int
    killed: str = ""
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


class Child:
    """A child process, from its birth to its end.

    Args:
        nursery: Forks it.
        memory_bytes: That it may hold at most, whatever it opens.
    """

    def __init__(self, nursery: Nursery, memory_bytes: int) -> None:
        self.said, theirs = socket.socketpair()
        self.life, line = socket.socketpair()
        self.frames = wire.Frames()
        self.tasks = 0
        try:
            with theirs, line:
                nursery.fork(memory_bytes, theirs.fileno(), line.fileno())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it, whatever it does."""
        self.life.close()
        self.said.close()


class Task:
    """One file in the hands of a child.

    Args:
        child: Does it.
        limits: Of this file.
        refuse: Makes the failure of this file of a reason and a remedy.

    Attributes:
        over: Whether the child has done all of it and may do another.
    """

    def __init__(self, child: Child, limits: Limits, refuse: Refuse) -> None:
        self._child, self._limits, self._refuse = child, limits, refuse
        self._ended: Ended | None = None
        self.over = False

    def begin(self, op: str, arguments: dict[str, Any], fds: list[int]) -> None:
        """Hand the file over."""
        task = {"op": op, "arguments": arguments, "limits": self._limits.as_dict()}
        with contextlib.suppress(OSError):  # one that is gone already is found out when it should answer
            socket.send_fds(self._child.said, [json.dumps(task).encode()], fds)

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield what the child says.

        Raises:
            Failure: As `refuse` makes it when the child refuses the file, or comes to an end over it; `TIMED_OUT` when
                it takes too long by the clock.
            Gone: When somebody else ended it.
        """
        while (message := self._next()) is not None:
            if "done" in message:
                self.over = message.get("tired") is False
                return
            if "failure" in message:
                raise self._told(message["failure"])
            if "exhausted" in message:
                raise self._too_much_memory()
            if "broken" in message:
                raise self._in_detail(self._refuse("opening it went wrong", ""), message["broken"])
            yield message
        raise self._died(self.end())

    def go_on(self) -> None:
        """Tell the child that its output was taken."""
        with contextlib.suppress(OSError):
            self._child.said.sendall(_GO_ON)

    def end(self) -> Ended:
        """Let the child end and return how it did, as the nursery says it.

        Raises:
            Gone: When nobody knows.
        """
        if self._ended is not None:
            return self._ended
        self.over = False
        with contextlib.suppress(OSError):
            self._child.said.shutdown(socket.SHUT_RDWR)
        self._child.life.settimeout(self._limits.wall_seconds)
        try:
            said = wire.receive(self._child.life)
        except TimeoutError:
            raise self._too_slow() from None
        except OSError:
            said = None
        if said is None:
            raise Gone
        self._ended = Ended(**said)
        return self._ended

    def _next(self) -> dict[str, Any] | None:
        deadline = time.monotonic() + self._limits.wall_seconds
        said, frames = self._child.said, self._child.frames
        try:
            while (message := frames.next()) is None:
                said.settimeout(max(0.001, deadline - time.monotonic()))
                data = said.recv(_CHILD_SAYS)
                if not data:
                    return None
                frames.feed(data)
        except TimeoutError:
            raise self._too_slow() from None
        except ConnectionError:
            return None
        except (ValueError, RecursionError):
            raise self._refuse("what was read of it makes no sense", "") from None
        return message

    def _too_slow(self) -> Failure:
        failure = self._refuse(
            f"opening it took longer than {self._limits.wall_seconds:.0f} s",
            "Try again; the machine is busy.",
        )
        failure.code = FailureCode.TIMED_OUT
        return failure

    def _told(self, said: Any) -> Failure:
        """Return the failure that a child reports; it may choose the words, for this file, and nothing else."""
        told = said if isinstance(said, dict) else {}
        message, remedy = str(told.get("message", ""))[:1000], str(told.get("remedy", ""))[:500]
        failure = self._refuse("opening it went wrong", remedy)
        if told.get("code") == str(failure.code):
            failure.message = message
        return self._in_detail(failure, told.get("detail", ""))

    @staticmethod
    def _in_detail(failure: Failure, said: Any) -> Failure:
        """Return a failure with what a library said of it, which only operators see."""
        failure.detail = str(said)[:300]
        return failure

    def _too_much_memory(self) -> Failure:
        most = self._limits.memory_bytes / 1e6
        return self._refuse(
            f"opening it takes more than the {most:,.0f} MB of memory that a file of its size may take", ""
        )

    def _died(self, ended: Ended) -> Exception:
        if ended.killed == "memory":
            return self._too_much_memory()
        if ended.status == -signal.SIGXCPU:
            return self._refuse(
                f"opening it takes more than the {self._limits.cpu_seconds:.0f} s that a file of its size may take",
                "",
            )
        if ended.status == -signal.SIGKILL:
            return Gone()  # somebody else did it: the system, when memory ends
        how = f"status {ended.status}"
        if ended.status < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-ended.status).name
        return self._refuse(f"the program that opens it crashed ({how})", "")


class Pool:
    """Opens strangers' files, a few at a time.

    Args:
        places: Children at a time.
        settings: Say how much a file may cost.
    """

    def __init__(self, places: int, settings: Settings) -> None:
        self.nursery = Nursery()
        self.places = places
        self.settings = settings
        # Archives wait for their members to be opened, so they have places of their own.
        self._places = {"archive": _Places(places), "": _Places(places)}

    @contextlib.contextmanager
    def task(
        self,
        op: str,
        source: Source,
        arguments: dict[str, Any],
        limits: Callable[[int, Settings], Limits],
        outputs: list[IO[bytes]],
        refuse: Refuse,
        among: Session | None = None,
    ) -> Iterator[Task]:
        """Have a child at work on a file for the while; see `Task`.

        Args:
            op: See `child/tasks.py`.
            source: The stranger's file.
            arguments: For the operation; `size` is added.
            limits: By the size of the file and the settings.
            outputs: Files for what is too long for a message.
            refuse: Makes the failure of this file of a reason and a remedy.
            among: Files of one owner, which a child may open one after another.

        Raises:
            Busy: When a server has too many waiting.
        """
        with self._places.get(op, self._places[""]).held(), opened(source) as (file, size):
            allowed = limits(size, self.settings)
            given = {**arguments, "size": size, "memory_bytes": allowed.memory_bytes}
            child = (among.idle() if among else None) or Child(self.nursery, most_memory(self.settings))
            task = Task(child, allowed, refuse)
            try:
                task.begin(op, given, [file.fileno(), *(one.fileno() for one in outputs)])
                yield task
            finally:
                if among is None or not among.take_back(child, task.over):
                    child.close()

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """Yield a place for children that open several files of one owner."""
        session = Session()
        try:
            yield session
        finally:
            session.close()

    def close(self) -> None:
        """End the nursery and everything in it."""
        self.nursery.close()


class Session:
    """Children that have opened files of one owner and can open more of them: a new one takes 10 ms to warm up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: list[Child] = []
        self._closed = False

    def idle(self) -> Child | None:
        """Return a child that has nothing to do, or None."""
        with self._lock:
            return self._children.pop() if self._children else None

    def take_back(self, child: Child, over: bool) -> bool:
        """Keep a child for the next file; False when it should end."""
        child.tasks += 1
        if not over or child.tasks >= _TASKS_OF_A_CHILD:
            return False
        with self._lock:
            if not self._closed:
                self._children.append(child)
        return not self._closed

    def close(self) -> None:
        """End them all."""
        with self._lock:
            self._closed = True
            children, self._children = self._children, []
        for child in children:
            child.close()


class _Places:
    """So many at a time. Where accounts ask, the number of those who wait is bounded, in all and for each of them."""

    def __init__(self, places: int) -> None:
        self._free = threading.BoundedSemaphore(places)
        self._lock = threading.Lock()
        self._waiting: dict[str, int] = {}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        account = asked_by.get()
        if not account:
            with self._free:
                yield
            return
        with self._lock:
            mine = self._waiting.get(account, 0)
            if mine >= _WAITING_OF_ONE or sum(self._waiting.values()) >= _WAITING:
                raise Busy
            self._waiting[account] = mine + 1
        try:
            with self._free:
                yield
        finally:
            with self._lock:
                self._waiting[account] -= 1
                if not self._waiting[account]:
                    del self._waiting[account]


@contextlib.contextmanager
def opened(source: Source) -> Iterator[tuple[IO[bytes], int]]:
    """Yield a file with a descriptor, at its beginning, and its length."""
    if isinstance(source, bytes):
        with scratch() as file:
            file.write(source)
            file.flush()
            file.seek(0)
            yield file, len(source)
        return
    if isinstance(source, Path):
        with source.open("rb") as file:
            yield file, os.fstat(file.fileno()).st_size
        return
    source.seek(0)
    try:
        number = source.fileno()  # which puts a file that was kept in memory so far onto the disk
        source.flush()
        size = os.fstat(number).st_size
    except (OSError, AttributeError):
        with scratch() as file:
            while piece := source.read(_PIECE):
                file.write(piece)
            file.flush()
            size = file.tell()
            file.seek(0)
            yield file, size
        return
    os.lseek(number, 0, os.SEEK_SET)
    yield source, size
    source.seek(0)


def scratch() -> IO[bytes]:
    """Return a file without a name, in memory where the system has that."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("tunes-sandbox", os.MFD_CLOEXEC), "w+b")
    return tempfile.TemporaryFile()


@lru_cache(maxsize=1)
def get_pool() -> Pool:
    """Return this process's pool."""
    settings = get_settings()
    pool = Pool(settings.open_processes or max(1, min(4, os.cpu_count() or 1)), settings)
    atexit.register(pool.close)
    return pool
