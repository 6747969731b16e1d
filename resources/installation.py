"""The installation as a resource: what registry, store, catalog and settings were configured, handed on as one thing.

Assets, jobs and sensors ask for nothing else when they need a part of it, so that a `StoreResource(url=…)` or a setting
that was passed to `Definitions` counts for all of them, and for the addresses in callbacks.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import dagster as dg
from pydantic import Field

from tunes_dagster.core.settings import Settings, get_settings
from tunes_dagster.resources.catalog import CatalogResource
from tunes_dagster.resources.state import RegistryResource, StoreResource
from tunes_dagster.service.installation import Installation

# One engine per process: sensors tick every few seconds in the same code server.
_opened: dict[tuple[str, str, bool], Installation] = {}
_opening = Lock()


class InstallationResource(dg.ConfigurableResource):
    """Settings, registry, store and catalog, opened once per process."""

    registry: RegistryResource
    store: StoreResource
    catalog: CatalogResource
    values: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings by name (`heartbeat_seconds`) instead of the environment's.",
    )

    @property
    def settings(self) -> Settings:
        """The environment's settings, with what the resources say in their place."""
        said = {
            "registry_url": self.registry.url,
            "store_url": self.store.url,
            "store_options": self.store.options,
            "profile": self.catalog.profile,
        }
        changed = {**self.values, **{name: value for name, value in said.items() if value}}
        if not changed:
            return get_settings()
        return Settings.model_validate({**get_settings().model_dump(), **changed})

    def open(self, works: bool = True) -> Installation:
        """Return the installation.

        Args:
            works: Whether it is opened for a run; a sensor's tick does not wait for a database, it comes again.
        """
        settings = self.settings
        key = (settings.model_dump_json(), self.catalog.extra, works)
        with _opening:
            if key not in _opened:
                catalog = self.catalog.load(settings.profile)
                _opened[key] = Installation(settings, catalog=catalog, works=works)
            return _opened[key]


def installed(resources: dict[str, Any], values: dict[str, Any] | None = None) -> InstallationResource:
    """Return the installation that resources by key make up.

    Args:
        resources: With `registry`, `store` and `catalog`.
        values: Settings by name instead of the environment's.
    """
    return InstallationResource(
        registry=resources["registry"],
        store=resources["store"],
        catalog=resources["catalog"],
        values=values or {},
    )
