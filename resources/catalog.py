"""The base-model catalog as a resource: which weights a word means, and where they lie."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
from pydantic import Field

from tunes_dagster.core.settings import get_settings
from tunes_dagster.families.catalog import BaseModelEntry, Catalog, load_catalog


class CatalogResource(dg.ConfigurableResource):
    """What can be trained on."""

    profile: str = Field(default="", description="`embedded` or `production`; empty means $TUNES_PROFILE.")
    extra: str = Field(default="", description="YAML file laid over the catalog; empty means $TUNES_CATALOG.")

    def open(self) -> Catalog:
        """Return the catalog under the profile."""
        return load_catalog(self.profile or get_settings().profile, self.extra or None)

    @property
    def bases_folder(self) -> Path:
        """The folder into which `tunes bases pull` puts real bases."""
        return get_settings().bases_folder

    def usable(self, word: str) -> tuple[BaseModelEntry, Path]:
        """Return the entry whose weights are used for a word, and their folder.

        Raises:
            Failure: `UNKNOWN_BASE` or `BASE_NOT_INSTALLED`.
        """
        entry = self.open().usable(word, self.bases_folder)
        return entry, entry.location(self.bases_folder)
