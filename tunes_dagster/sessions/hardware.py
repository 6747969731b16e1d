"""The devices of this machine, as torch finds them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tunes_dagster.core import extras
from tunes_dagster.core.failures import Failure, FailureCode

if TYPE_CHECKING:
    import torch

    from tunes_dagster.training.planner import Machine


# Files by which drivers of NVIDIA, of AMD, and of NVIDIA below Windows show that they are there.
_DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))
_COUNT = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
# Loading torch from a cold disk.
_COUNT_SECONDS = 120.0


def count_devices(asked: str = "auto") -> int:
    """Return how many devices `find_devices` finds; another process loads torch for it, and only where it has to.

    Args:
        asked: As of `find_devices`; one that is not there counts as one, and whoever uses it hears of that.
    """
    if asked not in ("auto", "cuda") or not any(map(Path.exists, _DRIVERS)):
        return 1
    try:
        told = subprocess.run(  # noqa: S603 - our own
            [sys.executable, "-c", _COUNT], capture_output=True, text=True, timeout=_COUNT_SECONDS, check=True
        )
        return max(1, int(told.stdout.split()[-1]))
    except (subprocess.SubprocessError, OSError, ValueError, IndexError):
        return 1


@dataclass(frozen=True)
class Device:
    """One device that work is done on.

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
        has_quantizer = kind == "cuda" and extras.has("bitsandbytes")
        return Machine(kind, self.memory_gb, self.dtype, has_quantizer)

    def __str__(self) -> str:
        """Return it for people."""
        return f"{self.name} ({self.label}, {self.memory_gb:.0f} GiB, {self.dtype})"


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
