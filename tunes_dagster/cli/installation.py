"""What commands work on: settings, registry, store and catalog of this installation, opened when first used."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tunes_dagster.core.settings import Settings, get_settings

if TYPE_CHECKING:
    from tunes_dagster.core.store import Store
    from tunes_dagster.families.catalog import Catalog
    from tunes_dagster.registry import Registry

_PACKAGE = Path(__file__).resolve().parent.parent


def instance_folder() -> Path:
    """Return the folder of `dagster.yaml` and `workspace.yaml`: the clone's own, or the package's where there is none.

    Both are the same files: a wheel holds copies.
    """
    clone = _PACKAGE.parent
    return clone if (clone / "dagster.yaml").is_file() else _PACKAGE / "pipeline" / "instance"


class Installation:
    """Settings, registry, store and catalog, each opened once and only when asked for."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or get_settings()

    @cached_property
    def registry(self) -> Registry:
        """The rows."""
        from tunes_dagster.registry import open_registry

        return open_registry(self.settings)

    @cached_property
    def store(self) -> Store:
        """The files."""
        from tunes_dagster.core.store import Store

        return Store(self.settings.resolved_store_url, self.settings.store_options)

    @cached_property
    def catalog(self) -> Catalog:
        """The base models."""
        from tunes_dagster.families.catalog import load_catalog

        return load_catalog(self.settings.profile)


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
