"""The base-model catalog as a resource: which weights a word means."""

from __future__ import annotations

import dagster as dg
from pydantic import Field

from tunes_dagster.families.catalog import Catalog, load_catalog


class CatalogResource(dg.ConfigurableResource):
    """What can be trained on."""

    profile: str = Field(default="", description="`embedded` or `production`; empty means $TUNES_PROFILE.")
    extra: str = Field(default="", description="YAML file laid over the catalog; empty means $TUNES_CATALOG.")

    def load(self, profile: str) -> Catalog:
        """Return the catalog under a profile."""
        return load_catalog(profile, self.extra or None)
