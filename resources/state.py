"""The two places where this project keeps things: the registry (rows) and the store (files)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from tunes_dagster.core.settings import get_settings
from tunes_dagster.core.store import Store

if TYPE_CHECKING:
    from tunes_dagster.registry import Registry


@lru_cache(maxsize=4)
def _registry(url: str, works: bool) -> Registry:
    # One engine per process: sensors tick every few seconds in the same code server.
    from tunes_dagster.registry import open_registry

    return open_registry(get_settings(), url, works=works)


class RegistryResource(dg.ConfigurableResource):
    """The rows: what was asked and what is owed."""

    url: str = Field(default="", description="SQLAlchemy URL; empty means $TUNES_REGISTRY_URL.")

    def open(self, works: bool = True) -> Registry:
        """Return the registry, migrated to this version's tables.

        Args:
            works: Whether it is opened for a run; a sensor's tick does not wait for a database, it comes again.
        """
        return _registry(self.url or get_settings().resolved_registry_url, works)


class StoreResource(dg.ConfigurableResource):
    """The files: a folder or any fsspec URL."""

    url: str = Field(default="", description="Folder or s3://bucket/prefix; empty means $TUNES_STORE_URL.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the filesystem; empty means $TUNES_STORE_OPTIONS."
    )

    def open(self) -> Store:
        """Return the store."""
        settings = get_settings()
        return Store(self.url or settings.resolved_store_url, self.options or settings.store_options)
