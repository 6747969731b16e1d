"""The accelerator: which device, dtype and memory a GPU asset gets, and the lock that makes it its own.

Dagster's pool counts slots but does not say which one a step got, and the command line may work beside the
daemon. So each device has a lock file on its host, held while a run computes on it (`sessions/leases.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from pydantic import Field

from tunes_dagster.core.progress import Phase, Reporter
from tunes_dagster.core.settings import Settings
from tunes_dagster.resources.texts import of_setting
from tunes_dagster.sessions.hardware import Device, find_devices
from tunes_dagster.sessions.leases import lock_any

_POLL_SECONDS = 0.5


class ComputeResource(dg.ConfigurableResource):
    """The devices of this machine, leased one at a time."""

    device: str = Field(default="", description=of_setting("device"))
    dtype: str = Field(default="", description=of_setting("dtype"))

    def devices(self, settings: Settings) -> list[Device]:
        """Return the devices that may be used, best first. Imports torch."""
        return find_devices(self.device or settings.device, self.dtype or settings.dtype)

    @contextmanager
    def lease(self, report: Reporter, settings: Settings, holder: str = "") -> Iterator[Device]:
        """Hold one device for the while; waits when all are taken, and a cancel ends the wait.

        Args:
            report: Told what is waited for.
            settings: Say which devices there are, and where they are locked.
            holder: Written into the lock file for people: the run's id.
        """
        devices = self.devices(settings)
        told = False
        while (got := lock_any(devices, settings, holder)) is None:
            report.check_cancelled()
            if not told:
                names = ", ".join(device.name for device in devices)
                report.phase(Phase.QUEUED, f"Waiting for a free device ({names}).")
                told = True
            time.sleep(_POLL_SECONDS)
        device, lock = got
        try:
            yield device
        finally:
            lock.release()
