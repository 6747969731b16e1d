"""The dataset of a tune: `source_images`, `training_set`, `captions`, partitioned by tune, on the CPU.

One run materializes all three (`prepare_tune`) under one attempt: the first asset of the run's selection claims
it, the last one closes it.
"""

from functools import partial

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
from tunes_dagster.core.results import TuneResult
from tunes_dagster.core.work import WorkKind
from tunes_dagster.pipeline.partitions import tunes
from tunes_dagster.resources import (
    CaptionerResource,
    FaceDetectorResource,
    FetcherResource,
    InstallationResource,
)
from tunes_dagster.service.prepare import caption, crop, gather


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
    with sentences():
        tune, changes = tune_of_partition(context.partition_key, config, whole)
    with attempt(context, whole, WorkKind.PREPARE, tune.id, closes=closes_attempt(context)) as mine:
        if changes:
            tune = change_request(mine, tune, changes, whole)
        hands = fetcher.open(whole.settings), face_detector.open(whole.settings)
        manifest, failure = gather(whole, tune, *hands, mine.report)
        result = described_manifest(whole.store, tune, manifest, failure)
        if failure is not None:
            mine.fail(failure)
        else:
            close(context, mine, TuneResult(pictures=manifest.counts()))
    return result


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
    whole = installation.open()
    with sentences():
        tune = require_tune(whole.registry, context.partition_key)
    with attempt(context, whole, WorkKind.PREPARE, tune.id, closes=closes_attempt(context)) as mine:
        built = crop(whole, tune, face_detector.open(whole.settings), mine.report)
        result = described_training_set(whole.store_of(tune.id), tune, built)
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
    whole = installation.open()
    with sentences():
        tune = require_tune(whole.registry, context.partition_key)
    with attempt(context, whole, WorkKind.PREPARE, tune.id, closes=closes_attempt(context)) as mine:
        written = caption(whole, tune, partial(captioner.open, whole.settings, whole.catalog), mine.report)
        result = described_captions(whole.store, tune, written)
        close(context, mine, TuneResult(captions=len(written.rows)))
    return result
