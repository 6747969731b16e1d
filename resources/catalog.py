"""The base-model catalog as a resource: which weights a word means."""

from __future__ import annotations

import dagster as dg
from pydantic import Field

from tunes_dagster.families.catalog import Catalog, load_catalog
from tunes_dagster.resources.texts import of_setting


class CatalogResource(dg.ConfigurableResource):
    """What can be trained on."""

    profile: str = Field(default="", description=of_setting("profile"))
    extra: str = Field(default="", description="YAML file laid over the catalog; empty means $TUNES_CATALOG.")

    def load(self, profile: str) -> Catalog:
        """Return the catalog under a profile."""
        return load_catalog(profile, self.extra or None)
