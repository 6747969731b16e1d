"""Who computes on a device of this machine: one process at a time, be it a session or a run of its own.

A lock file per device, which the operating system frees when its process dies, however it dies.
"""

from __future__ import annotations

import fcntl
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from tunes_dagster.core.settings import Settings
    from tunes_dagster.sessions.hardware import Device


def lock_any(devices: Sequence[Device], settings: Settings, holder: str) -> tuple[Device, IO[str]] | None:
    """Take the first of some devices that nobody computes on; None when all are taken.

    Args:
        devices: Best first.
        settings: Say where the locks lie.
        holder: Written into the lock for people.

    Returns:
        The device, and what frees it when it is closed.
    """
    folder = settings.resolved_home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    for device in devices:
        path = folder / f"{platform.node()}-{device.name.replace(':', '-')}.lock"
        if (file := _try_lock(path, holder)) is not None:
            return device, file
    return None


def _try_lock(path: Path, holder: str) -> IO[str] | None:
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    file.seek(0)
    file.truncate()
    file.write(holder)
    file.flush()
    return file
