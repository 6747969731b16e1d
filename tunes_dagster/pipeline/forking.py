"""Runs that begin at once: their processes are forked from one that has loaded what they import.

Importing Dagster, this package and what pictures are prepared with takes several seconds, of a run that does its work
in one or two. The process that is forked from begins with the first run. It ends when there was none for a while, which
gives its memory back.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

import psutil

from tunes_dagster.pipeline.dagster_private import fork_runs

# Nothing of these opens a file of the installation, asks a device or starts a thread when it is imported.
LOADED = (
    "tunes_dagster.definitions",
    "tunes_dagster.intake.training_set",
    "tunes_dagster.rendering.sheets",
    "cv2",
    "transformers.models.blip.modeling_blip",
)
# As long as a session on a CPU keeps its bases.
_WARM_SECONDS = 120.0
_LOOK_SECONDS = 15.0


def fork_prepared() -> None:
    """Fork the runs of the code server that this process is; anywhere else, nothing happens."""
    global _watched
    if fork_runs(LOADED) and not _watched:
        _watched = True
        threading.Thread(target=_end_when_idle, name="forks", daemon=True).start()


_watched = False


def _end_when_idle() -> None:
    used = time.monotonic()
    while True:
        time.sleep(_LOOK_SECONDS)
        with suppress(psutil.Error):
            used = time.monotonic() if end_idle(time.monotonic() - used) else used


def end_idle(idle_seconds: float) -> bool:
    """End the process that is forked from when no run was there for long enough; returns whether one is there.

    It is made again with the next run: Python looks whether it lives.
    """
    for child in psutil.Process(os.getpid()).children():
        if "multiprocessing.forkserver" not in " ".join(child.cmdline()):
            continue
        if child.children():
            return True
        if idle_seconds >= _WARM_SECONDS:
            child.kill()  # it has nothing to end, and may have been started where SIGTERM is ignored
    return False
