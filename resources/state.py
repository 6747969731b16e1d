"""The two places where this project keeps things: the registry (rows) and the store (files)."""

from __future__ import annotations

from typing import Any

import dagster as dg
from pydantic import Field


class RegistryResource(dg.ConfigurableResource):
    """The rows: what was asked and what is owed; `InstallationResource` opens it."""

    url: str = Field(default="", description="SQLAlchemy URL; empty means $TUNES_REGISTRY_URL.")


class StoreResource(dg.ConfigurableResource):
    """The files: a folder or any fsspec URL; `InstallationResource` opens it."""

    url: str = Field(default="", description="Folder or s3://bucket/prefix; empty means $TUNES_STORE_URL.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the filesystem; empty means $TUNES_STORE_OPTIONS."
    )
