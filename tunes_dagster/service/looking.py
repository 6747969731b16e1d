"""A dataset looked at before anything is queued: everything that preparing a tune does, in a store that goes away."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.store import Store
from tunes_dagster.intake.captions import write_captions
from tunes_dagster.intake.collect import collect_sources
from tunes_dagster.intake.manifest import Manifest
from tunes_dagster.intake.training_set import build_training_set
from tunes_dagster.intake.verdict import in_words

if TYPE_CHECKING:
    from tunes_dagster.intake.faces import FaceDetector
    from tunes_dagster.intake.fetch import Fetcher
    from tunes_dagster.service.installation import Installation

_ID = "check"


@dataclass(frozen=True)
class Looked:
    """What was seen.

    Attributes:
        lines: The verdict, a line each.
        manifest: Of the pictures.
        failure: Why a tune of them would fail; None when it would not.
    """

    lines: list[str]
    manifest: Manifest
    failure: Failure | None


class _Told(Silent):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def finding(self, text: str) -> None:
        self.said.append(text)


def look_over(
    request: TuneRequest,
    installation: Installation,
    fetcher: Fetcher,
    detector: FaceDetector,
) -> Looked:
    """Fetch, judge, crop and caption a request's pictures as its tune would, without a captioner.

    Args:
        request: Its uploads lie in the installation's store.
        installation: With a store that goes away, see `passing_store`.
        fetcher: For URLs.
        detector: Finds faces.
    """
    told, store, catalog = _Told(), installation.store, installation.catalog
    failure = None
    try:
        manifest = collect_sources(
            _ID, request, store, fetcher, detector, told, folder_options=installation.settings.store_options
        )
    except Failure as refused:
        if refused.code != FailureCode.TOO_FEW_PICTURES:
            raise
        failure, manifest = refused, Manifest.load(store, _ID)
    found = set(manifest.findings())
    if failure is not None:
        return Looked(in_words(manifest, None, None, request, [failure.message]), manifest, failure)
    entry = catalog.real(catalog.resolve(request.base))
    options = entry.training_options(request.training)
    built = build_training_set(
        _ID,
        manifest,
        request.dataset,
        options.resolution or entry.native_size,
        request.class_name,
        store,
        detector,
        options.seed,
        told,
    )
    table = write_captions(_ID, built, manifest, request, store, None, told)
    more = [one for one in told.said if one not in found]
    return Looked(in_words(manifest, built, table, request, more), manifest, None)


def passing_store() -> tuple[tempfile.TemporaryDirectory[str], Store]:
    """Return a store in a folder that is gone when that is closed."""
    folder = tempfile.TemporaryDirectory(prefix="tunes-check-")
    return folder, Store(folder.name)
