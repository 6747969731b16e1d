"""Dagster resources: one per outside thing, each a thin face of the plain library.

An empty field means "as `tunes_dagster.core.settings` says", so that the environment is the one place an operator
configures; tests and other code locations override single resources through `build_defs(resource_overrides=…)`.
What needs a setting gets the installation handed in.
"""

from __future__ import annotations

from tunes_dagster.resources.catalog import CatalogResource
from tunes_dagster.resources.compute import ComputeResource, Device
from tunes_dagster.resources.installation import InstallationResource, installed
from tunes_dagster.resources.models import CaptionerResource, FaceDetectorResource, ScorersResource
from tunes_dagster.resources.network import FetcherResource, NotifierResource
from tunes_dagster.resources.state import RegistryResource, StoreResource

__all__ = [
    "CaptionerResource",
    "CatalogResource",
    "ComputeResource",
    "Device",
    "FaceDetectorResource",
    "FetcherResource",
    "InstallationResource",
    "NotifierResource",
    "RegistryResource",
    "ScorersResource",
    "StoreResource",
    "default_resources",
    "installed",
]


def default_resources() -> dict[str, object]:
    """Return every resource by the key under which assets and sensors ask for it."""
    return {
        "store": StoreResource(),
        "registry": RegistryResource(),
        "compute": ComputeResource(),
        "catalog": CatalogResource(),
        "captioner": CaptionerResource(),
        "face_detector": FaceDetectorResource(),
        "scorers": ScorersResource(),
        "fetcher": FetcherResource(),
        "notifier": NotifierResource(),
    }
