"""The dataset of a tune: `source_images`, `training_set`, `captions`, partitioned by tune, on the CPU.

One run materializes all three (`prepare_tune`) under one attempt: the first asset of the run's selection claims
it, the last one closes it.
"""

from typing import TYPE_CHECKING

import dagster as dg

from tunes_dagster.assets.attempt import Attempt, attempt, sentences
from tunes_dagster.assets.dataset_pages import (
    ENOUGH_PICTURES,
    NO_LEAKAGE,
    TOKEN_AND_CLASS,
    described_captions,
    described_manifest,
    described_training_set,
)
from tunes_dagster.assets.names import (
    CAPTIONS,
    CODE_VERSIONS,
    LORA,
    PREPARE_ASSETS,
    SOURCE_IMAGES,
    TRAINING_SET,
    Group,
    Owner,
)
from tunes_dagster.assets.requests import SourceImagesConfig, change_request, require_tune, tune_of_partition
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.progress import Phase
from tunes_dagster.core.recipe import TrainingOptions, TuneRequest
from tunes_dagster.core.results import TuneResult
from tunes_dagster.pipeline.partitions import tunes
from tunes_dagster.resources import (
    CaptionerResource,
    FaceDetectorResource,
    FetcherResource,
    InstallationResource,
)

if TYPE_CHECKING:
    from tunes_dagster.intake.manifest import Manifest
    from tunes_dagster.service.installation import Installation


def assets_of_run(context: dg.AssetExecutionContext) -> set[dg.AssetKey]:
    """Return the assets that this whole run materializes; a re-execution may do some steps only."""
    chosen = set(context.job_def.asset_layer.selected_asset_keys)
    steps = context.run.step_keys_to_execute
    return {key for key in chosen if steps is None or key.to_python_identifier() in steps}


def closes_attempt(context: dg.AssetExecutionContext) -> bool:
    """Whether this asset is the last one of the dataset that this run materializes."""
    chosen = assets_of_run(context)
    return [key for key in PREPARE_ASSETS if key in chosen][-1] == context.asset_key


def close(context: dg.AssetExecutionContext, mine: Attempt, result: TuneResult | None = None) -> None:
    """Close the attempt when this asset is the last one.

    Training is queued only after a whole dataset, and not when this very run trains as well. Of a part (`source_images`
    alone, say) the rest is queued.
    """
    if not closes_attempt(context):
        return
    trains = LORA in assets_of_run(context)
    whole = trains or context.asset_key == CAPTIONS
    mine.finish(result, continue_=False if trains or not whole else None, whole=whole)


@dg.asset(
    key=SOURCE_IMAGES,
    code_version=CODE_VERSIONS[SOURCE_IMAGES],
    partitions_def=tunes,
    group_name=Group.DATASET,
    kinds={"python", "pillow", "opencv"},
    owners=[Owner.DATA],
    check_specs=[ENOUGH_PICTURES],
    description=(
        "The pictures of a tune, by content hash, and a manifest with one row per picture: verdict, reason, "
        "remedy. To start a new tune here: add a partition, open the Launchpad, fill in `name` and one source."
    ),
)
def source_images(
    context: dg.AssetExecutionContext,
    config: SourceImagesConfig,
    installation: InstallationResource,
    fetcher: FetcherResource,
    face_detector: FaceDetectorResource,
) -> dg.MaterializeResult:
    """Fetch, decode and judge what was handed in."""
    whole = installation.open()
    kept = whole.store
    with sentences():
        tune, changes = tune_of_partition(context.partition_key, config, whole)
    with attempt(context, whole, "prepare", tune.id, closes=closes_attempt(context)) as mine:
        if changes:
            tune = change_request(mine, tune, changes, whole)
        request = TuneRequest.model_validate(tune.request)
        manifest, failure = collected(request, tune.id, whole, fetcher, face_detector, mine)
        result = described_manifest(kept, tune, manifest, failure)
        if failure is not None:
            mine.fail(failure)
        else:
            close(context, mine, TuneResult(pictures=manifest.counts()))
    return result


def collected(
    request: TuneRequest,
    tune_id: str,
    installation: "Installation",
    fetcher: FetcherResource,
    face_detector: FaceDetectorResource,
    mine: Attempt,
) -> tuple["Manifest", Failure | None]:
    """Return the manifest, and the failure when there are too few pictures to go on."""
    from tunes_dagster.intake.collect import collect_sources
    from tunes_dagster.intake.manifest import Manifest

    remote = "://" in (request.sources.folder or "")
    try:
        manifest = collect_sources(
            tune_id,
            request,
            installation.store_of(tune_id),
            fetcher.open(installation.settings),
            face_detector.open(installation.settings),
            mine.report,
            folder_options=installation.settings.store_options if remote else None,
        )
    except Failure as failure:
        if failure.code != FailureCode.TOO_FEW_PICTURES:
            raise
        return Manifest.load(installation.store, tune_id), failure
    return manifest, None


@dg.asset(
    key=TRAINING_SET,
    code_version=CODE_VERSIONS[TRAINING_SET],
    deps=[SOURCE_IMAGES],
    partitions_def=tunes,
    group_name=Group.DATASET,
    kinds={"python", "pillow"},
    owners=[Owner.DATA],
    check_specs=[NO_LEAKAGE],
    description=(
        "What is trained on: full pictures and face crops in buckets of one area by aspect ratio, and the "
        "pictures that are held out for scoring."
    ),
)
def training_set(
    context: dg.AssetExecutionContext,
    installation: InstallationResource,
    face_detector: FaceDetectorResource,
) -> dg.MaterializeResult:
    """Crop, bucket and split the accepted pictures."""
    from tunes_dagster.intake.manifest import Manifest
    from tunes_dagster.intake.restore import open_restorer
    from tunes_dagster.intake.training_set import build_training_set

    whole = installation.open()
    rows, kept = whole.registry, whole.store_of(context.partition_key)
    with sentences():
        tune = require_tune(rows, context.partition_key)
    with attempt(context, whole, "prepare", tune.id, closes=closes_attempt(context)) as mine:
        mine.report.phase(Phase.CHECKING, "Cropping, bucketing and holding out pictures.")
        request = TuneRequest.model_validate(tune.request)
        options = TrainingOptions.model_validate(tune.recipe["training"])
        entry = whole.catalog.resolve(tune.branch)
        built = build_training_set(
            tune.id,
            Manifest.load(kept, tune.id),
            request.dataset,
            options.resolution or entry.native_size,
            tune.class_name,
            kept,
            face_detector.open(whole.settings),
            options.seed,
            mine.report,
            open_restorer(whole.settings.bases_folder) if request.dataset.face_correct else None,
        )
        result = described_training_set(kept, tune, built)
        close(context, mine, TuneResult(trained_on=len(built.training), held_out=len(built.held_out)))
    return result


@dg.asset(
    key=CAPTIONS,
    code_version=CODE_VERSIONS[CAPTIONS],
    deps=[TRAINING_SET],
    partitions_def=tunes,
    group_name=Group.DATASET,
    kinds={"python", "transformers", "csv"},
    owners=[Owner.DATA],
    check_specs=[TOKEN_AND_CLASS],
    description=(
        "One caption per training picture, as a CSV that a person may edit: edits win over sidecar files, these "
        "over the captioner, this over the template."
    ),
)
def captions(
    context: dg.AssetExecutionContext,
    installation: InstallationResource,
    captioner: CaptionerResource,
) -> dg.MaterializeResult:
    """Write the caption table."""
    from tunes_dagster.intake.captions import write_captions
    from tunes_dagster.intake.manifest import Manifest
    from tunes_dagster.intake.training_set import TrainingSet

    whole = installation.open()
    rows, kept = whole.registry, whole.store
    with sentences():
        tune = require_tune(rows, context.partition_key)
    with attempt(context, whole, "prepare", tune.id, closes=closes_attempt(context)) as mine:
        request = TuneRequest.model_validate(tune.request)
        model = captioner.open(whole.settings, whole.catalog) if request.dataset.captioner else None
        written = write_captions(
            tune.id,
            TrainingSet.load(kept, tune.id),
            Manifest.load(kept, tune.id),
            request,
            kept,
            model,
            mine.report,
        )
        result = described_captions(kept, tune, written)
        close(context, mine, TuneResult(captions=len(written.rows)))
    return result
