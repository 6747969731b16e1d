"""The nursery: `python -m tunes_dagster.intake.sandbox.child FD`, where FD is a socket to its parent.

It has one thread and does one thing: for each pair of sockets that comes it forks a child, acknowledges, and later
says how the child ended. One whose life line was closed is killed; when the parent is gone, so is everything here.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field

from tunes_dagster.intake.sandbox import wire
from tunes_dagster.intake.sandbox.child import kernel, tasks

READY = b"ready"
FORKED = b"forked"
_WATCH_SECONDS = 0.05
_IDLE_SECONDS = 300.0


@dataclass
class _Child:
    life: socket.socket
    most_bytes: int
    killed: str = ""
    since: float = field(default_factory=time.monotonic)


class Nursery:
    """The loop.

    Args:
        parent: Tasks come over it.
    """

    def __init__(self, parent: socket.socket) -> None:
        self._parent = parent
        self._children: dict[int, _Child] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, wakes = socket.socketpair()
        for end in (self._wake, wakes):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        self._wakes = wakes
        self._selector.register(self._parent, selectors.EVENT_READ, None)
        self._selector.register(self._wake, selectors.EVENT_READ, None)
        self._base = kernel.resident_bytes(os.getpid())

    def run(self) -> None:
        """Serve until the parent is gone, or has wanted nothing for minutes."""
        self._parent.sendall(READY)
        while True:
            timeout = _WATCH_SECONDS if self._children else _IDLE_SECONDS
            events = self._selector.select(timeout)
            if not events and not self._children:
                return
            for key, _ in events:
                if key.fileobj is self._parent:
                    if not self._take():
                        return
                elif key.fileobj is self._wake:
                    with contextlib.suppress(BlockingIOError):
                        self._wake.recv(4096)
                else:
                    self._kill(key.data, "let go")
            self._watch()
            self._reap()

    def _take(self) -> bool:
        """Fork the child that is asked for; False when nothing comes any more."""
        data, fds, _, _ = socket.recv_fds(self._parent, 4096, 2)
        if not data:
            return False
        pid = os.fork()
        if pid == 0:
            self._be_child(*fds)
        os.close(fds[0])
        life = socket.socket(fileno=fds[1])
        self._children[pid] = _Child(life, self._base + json.loads(data)["memory_bytes"])
        self._selector.register(life, selectors.EVENT_READ, pid)
        self._parent.sendall(FORKED)
        return True

    def _be_child(self, said: int, life: int) -> None:
        """Do tasks and end; nothing of the nursery stays open in here."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(life)
            for end in (
                self._parent,
                self._wake,
                self._wakes,
                *(one.life for one in self._children.values()),
            ):
                end.close()
            self._selector.close()
            kernel.settle_down()
            tasks.serve(socket.socket(fileno=said))
            code = 0
        finally:
            os._exit(code)

    def _kill(self, pid: int, why: str) -> None:
        child = self._children.get(pid)
        if child is not None and not child.killed:
            child.killed = why
            self._selector.unregister(child.life)
            os.kill(pid, signal.SIGKILL)  # it is not reaped yet, so the number is still its own

    def _watch(self) -> None:
        """Kill children whose resident memory has grown beyond their limit in a way that the kernel does not count."""
        now = time.monotonic()
        for pid, child in self._children.items():
            if now - child.since > 2 * _WATCH_SECONDS and kernel.resident_bytes(pid) > child.most_bytes:
                self._kill(pid, "memory")

    def _reap(self) -> None:
        while self._children:
            pid, status, used = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self._children.pop(pid)
            if not child.killed:
                self._selector.unregister(child.life)
            peak = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            said = {
                "status": os.waitstatus_to_exitcode(status),
                "killed": child.killed,
                "cpu_seconds": used.ru_utime + used.ru_stime,
                "peak_bytes": peak,
            }
            with contextlib.suppress(OSError):
                wire.send(child.life, said)
            child.life.close()


def main() -> None:
    """Import what children need, then serve."""
    parent = socket.socket(fileno=int(sys.argv[1]))
    tasks.prepare()
    gc.collect()
    gc.freeze()  # so that a child's collector does not write to pages that all of them share
    with contextlib.suppress(ConnectionError):
        Nursery(parent).run()
    if os.getpgrp() == os.getpid():  # the group is our own: it has nobody but us and the children
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
