"""Which process holds the write lock of an SQLite file: one that was stopped inside a transaction holds it for ever.

SQLite's lock is the kernel's, which drops it when its process ends, and not before. Nobody can take it over: so
whoever waits for it says for whom.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

# Where the write lock of a database in WAL mode lies in its `-shm` file (`walLockOffset` in SQLite's source).
_WRITE_LOCK = 120


@dataclass(frozen=True)
class Holder:
    """A process of this machine that holds a lock.

    Attributes:
        pid: Its id.
        command: What it was started as.
        stopped: Whether it does nothing until somebody continues it (Ctrl-Z, SIGSTOP, a debugger).
    """

    pid: int
    command: str
    stopped: bool

    @property
    def sentence(self) -> str:
        """What is said of it."""
        return f"The process {self.pid} ({self.command}) holds it" + (
            ", and is stopped." if self.stopped else "."
        )

    @property
    def remedy(self) -> str:
        """What to do about it."""
        if self.stopped:
            return f"Continue it (`kill -CONT {self.pid}`, or `fg` where it was stopped), or end it."
        return f"Wait for it, or end it (`kill {self.pid}`)."


def writer_of(database: Path) -> Holder | None:
    """Return who writes into an SQLite database; None when nobody does, or when that cannot be known.

    The file itself is not opened: closing it would drop the locks that this process has on it.
    """
    try:
        about = Path(f"{database}-shm").stat()
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    name = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    for line in locks:
        # 1: POSIX  ADVISORY  WRITE 4711 08:01:1234 120 120
        fields = line.split()
        if len(fields) != 8 or fields[3] != "WRITE" or not fields[7].isdigit():
            continue
        if fields[5] == name and int(fields[6]) <= _WRITE_LOCK <= int(fields[7]):
            return _process(int(fields[4]))
    return None


def _process(pid: int) -> Holder | None:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return None  # it has ended, or belongs to another container
    # The program and its first words: what follows may hold what a person wrote.
    return Holder(pid, " ".join(Path(word).name for word in words[:3] if word), state in ("T", "t"))
