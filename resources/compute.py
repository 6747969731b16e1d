"""The accelerator: which device, dtype and memory a GPU asset gets, and the lock that makes it its own.

Dagster's pool counts slots but does not say which one a step got, and the command line may work beside the
daemon. So each device has a lock file on its host, held while a run computes on it and freed by the operating
system when the process dies, however it dies.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

import dagster as dg
from pydantic import Field

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Phase, Reporter
from tunes_dagster.core.settings import Settings

if TYPE_CHECKING:
    import torch

    from tunes_dagster.training.planner import Machine

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Device:
    """One device as the GPU assets see it.

    Attributes:
        name: torch's name: `cpu`, `cuda:0`, `mps`.
        dtype: `float32`, `bfloat16` or `float16`.
        memory_gb: Memory of the device in GiB; of the machine when the device is the CPU.
        label: For people: `NVIDIA H200` or `CPU, 2 cores`.
    """

    name: str
    dtype: str
    memory_gb: float
    label: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch knows it."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def machine(self) -> Machine:
        """Return what the memory planner needs to know of it."""
        from tunes_dagster.training.planner import Machine

        kind = self.name.partition(":")[0]
        has_quantizer = kind == "cuda" and find_spec("bitsandbytes") is not None
        return Machine(kind, self.memory_gb, self.dtype, has_quantizer)

    def metadata(self) -> dict[str, dg.MetadataValue]:
        """Return what the UI shows of it."""
        return {
            "device": dg.MetadataValue.text(
                f"{self.name} ({self.label}, {self.memory_gb:.0f} GiB, {self.dtype})"
            )
        }


def _cpu(dtype: str) -> Device:
    import psutil

    memory = psutil.virtual_memory().total / 2**30
    cores = os.cpu_count() or 1
    return Device("cpu", "float32" if dtype == "auto" else dtype, memory, f"CPU, {cores} cores")


def _cuda(index: int, dtype: str) -> Device:
    import torch

    found = torch.cuda.get_device_properties(index)
    chosen = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return Device(
        f"cuda:{index}", chosen if dtype == "auto" else dtype, found.total_memory / 2**30, found.name
    )


def _mps(dtype: str) -> Device:
    import psutil

    memory = psutil.virtual_memory().total / 2**30
    return Device("mps", "float32" if dtype == "auto" else dtype, memory, platform.machine())


def find_devices(asked: str = "auto", dtype: str = "auto") -> list[Device]:
    """Return the devices that may be used, best first.

    Args:
        asked: `auto` takes every CUDA device, else MPS, else the CPU; `cpu`, `mps`, `cuda`, `cuda:1` force it.
        dtype: `auto` is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        Failure: `INVALID_REQUEST` when the forced device is not there.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    has_mps = torch.backends.mps.is_available()
    if asked == "auto":
        asked = "cuda" if count else "mps" if has_mps else "cpu"
    if asked == "cpu":
        return [_cpu(dtype)]
    if asked == "mps" and has_mps:
        return [_mps(dtype)]
    if asked == "cuda" and count:
        return [_cuda(index, dtype) for index in range(count)]
    if asked.startswith("cuda:") and asked[5:].isdigit() and int(asked[5:]) < count:
        return [_cuda(int(asked[5:]), dtype)]
    raise Failure(
        FailureCode.INVALID_REQUEST,
        f"The device {asked!r} is not on this machine ({count} CUDA devices, MPS {'yes' if has_mps else 'no'}).",
        "Set TUNES_DEVICE to auto, cpu, mps, cuda or cuda:N.",
    )


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


def _lock_any(devices: list[Device], folder: Path, holder: str) -> tuple[Device, IO[str]] | None:
    for device in devices:
        path = folder / f"{platform.node()}-{device.name.replace(':', '-')}.lock"
        if (file := _try_lock(path, holder)) is not None:
            return device, file
    return None


class ComputeResource(dg.ConfigurableResource):
    """The devices of this machine, leased one at a time."""

    device: str = Field(default="", description="auto, cpu, mps, cuda, cuda:N; empty means $TUNES_DEVICE.")
    dtype: str = Field(default="", description="auto, float32, bfloat16, float16; empty means $TUNES_DTYPE.")

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
        folder = settings.resolved_home / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        devices = self.devices(settings)
        told = False
        while (got := _lock_any(devices, folder, holder)) is None:
            report.check_cancelled()
            if not told:
                names = ", ".join(device.name for device in devices)
                report.phase(Phase.QUEUED, f"Waiting for a free device ({names}).")
                told = True
            time.sleep(_POLL_SECONDS)
        device, file = got
        try:
            yield device
        finally:
            file.close()
