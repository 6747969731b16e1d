"""The limits of one child, set by itself before it looks at a stranger's byte."""

from __future__ import annotations

import contextlib
import ctypes
import math
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_FILES = 64
# Threads of decoders and what malloc keeps for them, beside what a picture itself takes.
_SLACK = 16 * 1024 * 1024


def private_bytes() -> int:
    """Return how much private memory this process has mapped; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 when it is gone."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
        return 0
    import psutil

    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def settle_down() -> None:
    """Bind this process to its nursery, once, right after it was forked."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(
            OSError
        ):  # if somebody has to be killed when memory ends, it is this one first
            Path("/proc/self/oom_score_adj").write_text("1000")
    _set(resource.RLIMIT_CORE, 0, 0)
    _set(resource.RLIMIT_NOFILE, _FILES, _FILES)


def confine(limits: dict[str, Any], mapped: int) -> None:
    """Hold this process to the limits of its next file.

    Memory is held by RLIMIT_DATA, which on Linux counts every private mapping: a decoder that asks for more gets none.
    Elsewhere the nursery's watch over resident memory alone holds it.

    Args:
        limits: See `sandbox.limits`.
        mapped: `private_bytes` before the first file.
    """
    _set(resource.RLIMIT_CPU, math.ceil(limits["cpu_seconds"] + time.process_time()))
    _set(resource.RLIMIT_FSIZE, limits["file_bytes"])
    if mapped:
        _set(resource.RLIMIT_DATA, mapped + limits["memory_bytes"] + _SLACK)


def _set(which: int, soft: int, hard: int | None = None) -> None:
    with contextlib.suppress(OSError, ValueError):  # one that is lower already stays
        most = resource.getrlimit(which)[1] if hard is None else hard
        resource.setrlimit(which, (soft, most))
