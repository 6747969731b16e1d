"""The nursery as its parent sees it: started when it is first needed, started again when it is gone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from tunes_dagster.core.failures import Failure, FailureCode

_READY, _FORKED = b"ready", b"forked"
# Importing the decoders takes 0.5 s, and on a busy machine much longer.
_START_SECONDS = 120.0
_FORK_SECONDS = 60.0
# What a decoder may know of its surroundings. Addresses of databases, keys and tokens stand in the others.
_ENVIRONMENT = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "PYTHONPATH",
    "PYTHONPYCACHEPREFIX",
    "VIRTUAL_ENV",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
)
_FIXED = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "PYTHONSAFEPATH": "1",
    # glibc: take memory of freed pictures again instead of handing each back, which is a third of the time of a small
    # picture.
    "MALLOC_MMAP_THRESHOLD_": str(128 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(16 << 20),
    "MALLOC_ARENA_MAX": "2",
}


class Gone(Exception):
    """The nursery, or a child of it, ended without a word."""


class Nursery:
    """Forks children on request; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._owner = 0

    def fork(self, memory_bytes: int, said: int, life: int) -> None:
        """Start a child.

        Args:
            memory_bytes: That it may hold at most, whatever it opens.
            said: Descriptor of the socket over which it gets tasks and answers.
            life: Descriptor of the socket over which the nursery says how it ended; closing the other end kills it.

        Raises:
            Failure: `INTERNAL` when the nursery cannot be started.
            Gone: When it ended meanwhile twice over.
        """
        data = json.dumps({"memory_bytes": memory_bytes}).encode()
        with self._lock:
            for _ in range(2):
                try:
                    socket.send_fds(self._started(), [data], [said, life])
                    if self._heard(_FORK_SECONDS) == _FORKED:
                        return
                except OSError:
                    pass  # it had gone to rest, or was killed
                self._stop()
        raise Gone

    def close(self) -> None:
        """End the nursery and every child of it."""
        with self._lock:
            self._stop()

    @property
    def pid(self) -> int | None:
        """Its process, or None before it was needed."""
        return self._process.pid if self._process is not None else None

    def _started(self) -> socket.socket:
        if self._owner != os.getpid():  # this process was forked: the nursery is our parent's
            self._process = self._socket = None
        if self._socket is not None:
            return self._socket
        ours, theirs = socket.socketpair()
        with tempfile.TemporaryFile() as errors, theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module, no argument of a stranger
                [sys.executable, "-m", "tunes_dagster.intake.sandbox.child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[theirs.fileno()],
                env=_environment(),
                cwd="/",
                start_new_session=True,
            )
            theirs.close()
            self._socket, self._owner = ours, os.getpid()
            if self._heard(_START_SECONDS) != _READY:
                self._stop()
                errors.seek(0)
                said = errors.read()[-500:].decode("utf-8", "replace").strip()
                raise Failure(
                    FailureCode.INTERNAL,
                    "The process that opens files did not start.",
                    "See that Pillow, NumPy and pillow-heif can be imported here (`tunes doctor`).",
                    said or "It said nothing.",
                )
        return ours

    def _heard(self, seconds: float) -> bytes:
        assert self._socket is not None
        self._socket.settimeout(seconds)
        return self._socket.recv(64)

    def _stop(self) -> None:
        if self._socket is not None and self._owner == os.getpid():
            self._socket.close()  # which ends it
            assert self._process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        self._socket = self._process = None


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    package = str(Path(__file__).resolve().parents[3])
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [package, kept.get("PYTHONPATH", "")]))
    return {**kept, **_FIXED}
