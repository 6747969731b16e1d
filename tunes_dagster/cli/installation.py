"""Which installation commands work on, and the Dagster instance that belongs to it."""

from __future__ import annotations

import os
from pathlib import Path

from tunes_dagster.core.settings import Settings, get_settings
from tunes_dagster.service.installation import Installation

__all__ = ["Installation", "instance_folder", "open_installation", "set_dagster_home"]

_PACKAGE = Path(__file__).resolve().parent.parent


def instance_folder() -> Path:
    """Return the folder of `dagster.yaml` and `workspace.yaml`: the clone's own, or the package's where there is none.

    Both are the same files: a wheel holds copies.
    """
    clone = _PACKAGE.parent
    return clone if (clone / "dagster.yaml").is_file() else _PACKAGE / "pipeline" / "instance"


def open_installation(settings: Settings | None = None) -> Installation:
    """Return the installation of the settings, by default of those in the environment."""
    return Installation(settings or get_settings())


def set_dagster_home(settings: Settings | None = None) -> None:
    """Point Dagster and its workers at this installation, unless the environment already points somewhere.

    The command line, `make dev` and the daemon must share one instance: then everything that the command line
    does shows up in the UI.
    """
    home = (settings or get_settings()).resolved_home
    os.environ.setdefault("DAGSTER_HOME", str(instance_folder()))
    os.environ.setdefault("TUNES_HOME", str(home))
    os.environ.setdefault("TUNES_DAGSTER_STORAGE", str(home / "dagster"))
    # torch's threads spin while they wait for each other. On cores that other programs use as well that made
    # a training step take 23 s instead of 0.5 s; sleeping costs an idle machine nothing worth measuring.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
