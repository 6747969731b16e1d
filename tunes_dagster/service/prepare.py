"""Preparing a tune: its pictures are gathered, cropped and captioned; each step reads what the one before it wrote.

The three steps of a preparation, for whoever runs them: assets of Dagster, tests, a program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Phase, Reporter, Tee
from tunes_dagster.core.recipe import TrainingOptions, TuneRequest
from tunes_dagster.core.work import WorkKind

if TYPE_CHECKING:
    from tunes_dagster.intake.captions import Captioner, CaptionTable
    from tunes_dagster.intake.faces import FaceDetector
    from tunes_dagster.intake.fetch import Fetcher
    from tunes_dagster.intake.manifest import Manifest
    from tunes_dagster.intake.training_set import TrainingSet
    from tunes_dagster.registry import Tune
    from tunes_dagster.service.installation import Installation


def gather(
    installation: Installation, tune: Tune, fetcher: Fetcher, detector: FaceDetector, report: Reporter
) -> tuple[Manifest, Failure | None]:
    """Fetch, decode and judge what was handed in.

    Returns:
        The manifest, and the failure when there are too few pictures to go on.
    """
    from tunes_dagster.intake.collect import collect_sources
    from tunes_dagster.intake.manifest import Manifest
    from tunes_dagster.intake.sources import SourceRules
    from tunes_dagster.intake.verdict import save_verdict

    request = TuneRequest.model_validate(tune.request)
    remote = "://" in (request.sources.folder or "")
    try:
        manifest = collect_sources(
            tune.id,
            request,
            installation.store_of(tune.id),
            fetcher,
            detector,
            report,
            SourceRules(folder_options=installation.settings.store_options if remote else None),
        )
    except Failure as failure:
        if failure.code != FailureCode.TOO_FEW_PICTURES:
            raise
        manifest = Manifest.load(installation.store, tune.id)
        save_verdict(installation.store, manifest, None, None, request, [failure.message])
        return manifest, failure
    save_verdict(installation.store, manifest, None, None, request)
    return manifest, None


def crop(installation: Installation, tune: Tune, detector: FaceDetector, report: Reporter) -> TrainingSet:
    """Crop, bucket and split the pictures that were accepted."""
    from tunes_dagster.intake.manifest import Manifest
    from tunes_dagster.intake.restore import open_restorer
    from tunes_dagster.intake.training_set import Framing, build_training_set

    report.phase(Phase.CHECKING, "Cropping, bucketing and holding out pictures.")
    request = TuneRequest.model_validate(tune.request)
    options = TrainingOptions.model_validate(tune.recipe["training"])
    store, entry = installation.store_of(tune.id), installation.catalog.resolve(tune.base_id)
    return build_training_set(
        Manifest.load(store, tune.id),
        Framing(request.dataset, options.resolution or entry.native_size, tune.class_name),
        store,
        detector,
        options.seed,
        report,
        open_restorer(installation.settings.bases_folder) if request.dataset.face_correct else None,
    )


def caption(
    installation: Installation,
    tune: Tune,
    open_captioner: Callable[[], Captioner | None],
    report: Reporter,
) -> CaptionTable:
    """Write the captions of the training set, and with them the whole verdict on the dataset.

    Args:
        installation: Where its files lie.
        tune: Its request may want no captioner at all.
        open_captioner: Returns who is asked about pictures that came without a caption; None leaves these the template.
        report: Told of it.
    """
    from tunes_dagster.intake.captions import write_captions
    from tunes_dagster.intake.manifest import Manifest
    from tunes_dagster.intake.training_set import TrainingSet
    from tunes_dagster.intake.verdict import save_verdict
    from tunes_dagster.service.looking import Told

    request, store, told = TuneRequest.model_validate(tune.request), installation.store, Told()
    built, manifest = TrainingSet.load(store, tune.id), Manifest.load(store, tune.id)
    captioner = open_captioner() if request.dataset.captioner else None
    written = write_captions(tune.id, built, manifest, request, store, captioner, Tee([report, told]))
    known = installation.registry.tunes.get(tune.id).made.findings.get(WorkKind.PREPARE, [])
    save_verdict(store, manifest, built, written, request, [*known, *told.said])
    return written
