"""What a child can be asked for, and how it answers: messages, then `done`, or `failure` when the file is refused."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any

from tunes_dagster.core.failures import Failure
from tunes_dagster.intake.sandbox import wire
from tunes_dagster.intake.sandbox.child import kernel

GO_ON = b"+"
MAX_TASK = 65_536
MAX_FDS = 8
# Memory that a child may keep from one file for the next; then a new one takes its place.
_GROWTH = 512 * 1024 * 1024


@dataclass
class Work:
    """One task as the function that does it sees it.

    Attributes:
        arguments: As the parent gave them.
        file: The stranger's file.
        outputs: Files that take what is too long for a message.
        said: The socket to the parent.
    """

    arguments: dict[str, Any]
    file: IO[bytes]
    outputs: Sequence[IO[bytes]]
    said: socket.socket

    def say(self, **message: Any) -> None:
        """Send a message."""
        wire.send(self.said, message)

    def wait(self) -> None:
        """Wait until the parent has taken what was written; ends the child when nobody does."""
        if self.said.recv(1) != GO_ON:
            raise SystemExit


def _picture(work: Work) -> None:
    from tunes_dagster.intake.sandbox.child.pictures import open_picture

    open_picture(work)


def _archive(work: Work) -> None:
    from tunes_dagster.intake.sandbox.child.archives import unpack

    unpack(work)


def _table(work: Work) -> None:
    from tunes_dagster.intake.sandbox.child.tables import read_workbook

    read_workbook(work)


def _weights(work: Work) -> None:
    from tunes_dagster.intake.sandbox.child.weights import look_through

    look_through(work)


OPERATIONS: dict[str, Callable[[Work], None]] = {
    "picture": _picture,
    "archive": _archive,
    "table": _table,
    "weights": _weights,
}


def prepare() -> None:
    """Import the decoders, so that children have them from the start."""
    from tunes_dagster.intake.sandbox.child import archives, pictures

    assert archives
    pictures.prepare()


def serve(said: socket.socket) -> None:
    """Do the tasks that come over a socket, one after another, until no more come or one went wrong."""
    mapped = kernel.private_bytes()
    while True:
        data, fds, _, _ = socket.recv_fds(said, MAX_TASK, MAX_FDS)
        if not data:
            return
        task = json.loads(data)
        kernel.confine(task["limits"], mapped)
        file = os.fdopen(fds[0], "rb")
        outputs = [os.fdopen(fd, "r+b") for fd in fds[1:]]
        work = Work(task["arguments"], file, outputs, said)
        if not _done(work, task["op"]):
            return
        for one in (file, *outputs):
            one.close()
        work.say(done=True, tired=kernel.private_bytes() - mapped > _GROWTH)


def _done(work: Work, op: str) -> bool:
    """Do one task; a file that is refused is an answer like any other, but nothing is opened after it."""
    try:
        OPERATIONS[op](work)
    except Failure as failure:
        told = {"code": str(failure.code), "message": failure.message, "remedy": failure.remedy}
        work.say(failure={**told, "detail": failure.detail[:300]})
    except MemoryError:
        work.say(exhausted="memory")
    except Exception as error:
        work.say(broken=f"{type(error).__name__}: {error}"[:300])
    else:
        return True
    return False
