"""Names that several assets share: keys, groups, owners, checks, the pool."""

from __future__ import annotations

import warnings

import dagster as dg

from tunes_dagster.core.settings import Settings
from tunes_dagster.core.work import WorkKind

GPU_POOL = "gpu"
# Report cards wait for a device by themselves and not for ever; one worker process at a time does so.
REPORT_POOL = "report"
POOLS = (GPU_POOL, REPORT_POOL)

# A run that starts a worker process; `dagster.yaml` says how many may at a time.
PROCESS_TAG = {"tunes/process": "own"}

MAX_RUNTIME_TAG = "dagster/max_runtime"
# The registry's own watch comes first, and says why.
_MARGIN_SECONDS = 600


def pool_of(name: str, settings: Settings) -> str | None:
    """Return the pool of an asset that needs a device; sessions, which hold devices themselves, need none."""
    return None if settings.uses_sessions else name


def longest_run(kind: str, settings: Settings) -> dict[str, str]:
    """Return the tag by which Dagster ends a run of a job that goes on for too long.

    A run that trains takes newcomers for as long as one tune may take, so it may take twice as long itself.
    """
    times = 2 if kind == WorkKind.TRAIN else 1
    return {MAX_RUNTIME_TAG: str(round(times * settings.longest(kind)) + _MARGIN_SECONDS)}


def process_run(kind: str, settings: Settings) -> dict[str, str]:
    """Return the tags of a job whose runs start a process."""
    return {**longest_run(kind, settings), **PROCESS_TAG}


def device_run(kind: str, settings: Settings) -> dict[str, str]:
    """Return the tags of a job of device work: a process per run only without sessions."""
    return longest_run(kind, settings) if settings.uses_sessions else process_run(kind, settings)


class Group:
    """Groups of the asset graph; plain strings, because Dagster serializes no enums."""

    DATASET = "dataset"
    TUNE = "tune"
    RENDERS = "renders"
    CAMPAIGNS = "campaigns"
    INSTALLATION = "installation"


class Owner:
    """Who answers for an asset."""

    DATA = "team:data"
    TRAINING = "team:training"
    RENDERING = "team:rendering"


SOURCE_IMAGES = dg.AssetKey(WorkKind.PREPARE.asset)
TRAINING_SET = dg.AssetKey("training_set")
CAPTIONS = dg.AssetKey("captions")
LORA = dg.AssetKey(WorkKind.TRAIN.asset)
REPORT_CARD = dg.AssetKey(WorkKind.FINISH.asset)
RENDERS = dg.AssetKey(WorkKind.RENDER.asset)
DROP_FOLDER = dg.AssetKey("drop_folder")
INSTALLATION = dg.AssetKey("installation")

# Raised when an asset makes something else of the same inputs: Dagster then shows what was made before as outdated.
CODE_VERSIONS = {
    SOURCE_IMAGES: "1",
    TRAINING_SET: "1",
    CAPTIONS: "1",
    LORA: "1",
    REPORT_CARD: "1",
    RENDERS: "1",
}

# In the order in which one run materializes them: the last one of a run's selection closes the attempt.
PREPARE_ASSETS = (SOURCE_IMAGES, TRAINING_SET, CAPTIONS)


def check_spec(
    name: str,
    asset: dg.AssetKey,
    partitions_def: dg.PartitionsDefinition,
    description: str,
    *,
    blocking: bool = False,
) -> dg.AssetCheckSpec:
    """Return the spec of a partitioned check, without Dagster's notice that these are new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.AssetCheckSpec(
            name, asset=asset, partitions_def=partitions_def, description=description, blocking=blocking
        )
