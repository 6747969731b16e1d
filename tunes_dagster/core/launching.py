"""Where `dagster.yaml` has runs be processes, as far as it decides whether device sessions suit an installation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

_OURS = ("tunes_dagster.pipeline.launcher", "DeviceRunLauncher")
_DEFAULT = "DefaultRunLauncher"
_SHIPPED = Path(__file__).resolve().parent.parent / "pipeline" / "instance"


@dataclass(frozen=True)
class Suits:
    """Whether sessions suit an installation.

    Attributes:
        sessions: Whether they do.
        why: One sentence.
    """

    sessions: bool
    why: str


def sessions_suit() -> Suits:
    """Return whether sessions suit the Dagster instance of this process, and why.

    They do where runs are processes of one machine: there its devices are counted, and each has its session. Where a
    launcher places runs elsewhere, nobody sees to more than one session yet, and runs by themselves use more devices.
    """
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return Suits(False, "Kubernetes places the processes.")
    home = Path(os.environ.get("DAGSTER_HOME") or _SHIPPED)
    return _of_file(home / "dagster.yaml")


@lru_cache(maxsize=8)
def _of_file(path: Path) -> Suits:
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return Suits(False, f"{path} cannot be read, so that runs of device work would each be a process.")
    launcher = _block(said, "run_launcher")
    if (launcher.get("module"), launcher.get("class")) != _OURS:
        return Suits(False, f"{path} does not name {'.'.join(_OURS)} as its run launcher.")
    wrapped = _block(_block(launcher, "config"), "wrapped").get("class", _DEFAULT)
    if wrapped != _DEFAULT:
        return Suits(False, f"{wrapped} places the processes.")
    return Suits(True, "Runs are processes of this machine.")


def _block(said: Any, name: str) -> dict[str, Any]:
    block = said.get(name) if isinstance(said, dict) else None
    return block if isinstance(block, dict) else {}
