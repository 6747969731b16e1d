"""A dataset looked at before anything is queued: everything that preparing a tune does, in a store that goes away."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Silent
from tunes_dagster.core.recipe import TuneRequest
from tunes_dagster.core.store import Store
from tunes_dagster.intake.captions import write_captions
from tunes_dagster.intake.collect import collect_sources
from tunes_dagster.intake.manifest import Manifest
from tunes_dagster.intake.sources import SourceRules
from tunes_dagster.intake.training_set import Framing, build_training_set
from tunes_dagster.intake.verdict import in_words

if TYPE_CHECKING:
    from tunes_dagster.intake.faces import FaceDetector
    from tunes_dagster.intake.fetch import Fetcher
    from tunes_dagster.service.installation import Installation

_ID = "check"
# A caller waits for a trial's answer; most datasets are there, and judged, within a few seconds.
_PATIENCE = 60.0


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


class Told(Silent):
    """Keeps what whoever asked should know.

    Args:
        seconds: After which the looking is given up; None never does.

    Attributes:
        said: A sentence each.
    """

    def __init__(self, seconds: float | None = None) -> None:
        super().__init__()
        self.said: list[str] = []
        self._until = None if seconds is None else time.monotonic() + seconds

    def finding(self, message: str) -> None:
        """Keep a sentence."""
        self.said.append(message)

    def check_cancelled(self) -> None:
        """Raise `SOURCE_UNREACHABLE` when it takes too long."""
        if self._until is not None and time.monotonic() > self._until:
            raise Failure(
                FailureCode.SOURCE_UNREACHABLE,
                f"Fetching and looking took longer than the {_PATIENCE:g} s of a trial.",
                "Look with `tunes check`, or hand the request in: the work itself has more time.",
            )


def look_over(
    request: TuneRequest,
    installation: Installation,
    fetcher: Fetcher,
    detector: FaceDetector,
    tune_id: str = _ID,
    told: Told | None = None,
) -> Looked:
    """Fetch, judge, crop and caption a request's pictures as its tune would, without a captioner.

    Args:
        request: Its uploads lie in the installation's store.
        installation: With a store that goes away, see `passing_store`.
        fetcher: For URLs.
        detector: Finds faces.
        tune_id: Under which its uploads lie.
        told: Hears what is found, and may end it.
    """
    told, store, catalog = told or Told(), installation.store, installation.catalog
    failure = None
    try:
        manifest = collect_sources(
            tune_id,
            request,
            store,
            fetcher,
            detector,
            told,
            SourceRules(folder_options=installation.settings.store_options),
        )
    except Failure as refused:
        if refused.code != FailureCode.TOO_FEW_PICTURES:
            raise
        failure, manifest = refused, Manifest.load(store, tune_id)
    if failure is not None:
        return Looked(in_words(manifest, None, None, request, [failure.message]), manifest, failure)
    entry = catalog.real(catalog.resolve(request.base))
    options = entry.training_options(request.training)
    built = build_training_set(
        manifest,
        Framing(request.dataset, options.resolution or entry.native_size, request.class_name),
        store,
        detector,
        options.seed,
        told,
    )
    table = write_captions(tune_id, built, manifest, request, store, None, told)
    return Looked(in_words(manifest, built, table, request, told.said), manifest, None)


def rehearsed(request: TuneRequest, tune_id: str, installation: Installation) -> list[str]:
    """Return the verdict on the pictures of a request that is only tried, or why they could not be looked at.

    Args:
        request: Completed; its uploads lie in the installation's store under the tune's id.
        tune_id: Of the tune that it would become.
        installation: Nothing is written into its store.
    """
    from tunes_dagster.intake.faces import load_detector
    from tunes_dagster.intake.fetch import Fetcher, FetchLimits
    from tunes_dagster.service.installation import Installation

    settings, told = installation.settings, Told(_PATIENCE)
    fetcher = Fetcher(tuple(settings.allow_hosts), FetchLimits(total_seconds=_PATIENCE, attempts=1))
    folder, store = passing_store()
    try:
        with folder, fetcher, Installation(settings, store=store, catalog=installation.catalog) as passing:
            for key in request.sources.uploads:
                with installation.store.local(key) as file:
                    store.write_file(key, file)
            detector = load_detector(settings.face_detector)
            return look_over(request, passing, fetcher, detector, tune_id, told).lines
    except Failure as failure:
        return [f"The pictures could not be looked at: {failure.message} {failure.remedy}".rstrip()]


def passing_store() -> tuple[tempfile.TemporaryDirectory[str], Store]:
    """Return a store in a folder that is gone when that is closed."""
    folder = tempfile.TemporaryDirectory(prefix="tunes-check-")
    return folder, Store(folder.name)
