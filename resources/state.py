"""The two places where this project keeps things: the registry (rows) and the store (files)."""

from __future__ import annotations

from typing import Any

import dagster as dg
from pydantic import Field

from tunes_dagster.resources.texts import of_setting


class RegistryResource(dg.ConfigurableResource):
    """The rows: what was asked and what is owed; `InstallationResource` opens it."""

    url: str = Field(default="", description=of_setting("registry_url"))


class StoreResource(dg.ConfigurableResource):
    """The files: a folder or any fsspec URL; `InstallationResource` opens it."""

    url: str = Field(default="", description=of_setting("store_url"))
    options: dict[str, Any] = Field(default_factory=dict, description=of_setting("store_options"))
