"""Who computes on a device of this machine: one process at a time, be it a session or a run of its own.

A lock file per device, which the operating system frees when its process dies, however it dies.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from tunes_dagster.core.settings import Settings
    from tunes_dagster.sessions.hardware import Device


def lock_any(
    devices: Sequence[Device], settings: Settings, holder: str
) -> tuple[Device, BaseFileLock] | None:
    """Take the first of some devices that nobody computes on; None when all are taken.

    Args:
        devices: Best first.
        settings: Say where the locks lie.
        holder: Written into the lock for people.

    Returns:
        The device, and its lock, to be released by whoever is done with it, in any thread.
    """
    folder = settings.resolved_home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    for device in devices:
        path = folder / f"{platform.node()}-{device.name.replace(':', '-')}.lock"
        # A file system without locks is an error: a file that only says so would outlive its process.
        lock = FileLock(path, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        path.write_text(holder, encoding="utf-8")
        return device, lock
    return None
