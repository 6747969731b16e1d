"""The jobs: what sensors launch, and what a person finds under Jobs in the UI; `jobs_of` gives them their tags.

prepare_tune   source_images, training_set, captions of one tune; CPU only
train_tune     lora of one tune: what a session's training is told as
train_cohort   one op over the tunes of a cohort, in the GPU pool
embed_faces    the same for tunes that train nothing (faceid); holds no GPU
finish_tune    report_card of one trained tune: scored, packaged, ready
render_batch   renders of one batch, in the GPU pool
device_session holds a device for everything that needs one
housekeeping   deletes what nobody needs any more
look_around    checks what no sensor will ever move
"""

from functools import partial
from typing import Any

import dagster as dg
from pydantic import Field

from tunes_dagster.assets.attempt import cancelled_by_person, mark_cancelled
from tunes_dagster.assets.cohort import train_cohort_members
from tunes_dagster.assets.housekeeping import forget_tunes, prune_cache, prune_partitions, prune_runs
from tunes_dagster.assets.names import (
    DROP_FOLDER,
    GPU_POOL,
    INSTALLATION,
    LORA,
    MAX_RUNTIME_TAG,
    PREPARE_ASSETS,
    RENDERS,
    REPORT_CARD,
    device_run,
    process_run,
)
from tunes_dagster.assets.window import close_window
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.work import WorkKind
from tunes_dagster.resources import ComputeResource, InstallationResource
from tunes_dagster.service.orphans import remove_orphans
from tunes_dagster.service.retain import retain

prepare_tune = dg.define_asset_job(
    WorkKind.PREPARE.job,
    selection=dg.AssetSelection.assets(*PREPARE_ASSETS),
    description="Fetches, checks and captions the pictures of one tune. Holds no GPU.",
)

train_tune = dg.define_asset_job(
    WorkKind.TRAIN.told_by,
    selection=dg.AssetSelection.assets(LORA),
    description="Trains one tune. A session trains it together with others; this run tells of it alone.",
)

render_batch = dg.define_asset_job(
    WorkKind.RENDER.job,
    selection=dg.AssetSelection.assets(RENDERS),
    description="Renders the prompts of one batch: one base, one model load, tunes of any number.",
)


finish_tune = dg.define_asset_job(
    WorkKind.FINISH.job,
    selection=dg.AssetSelection.assets(REPORT_CARD),
    description="Scores one trained tune, publishes the checkpoint that its report card chose, makes the tune ready.",
)


class CohortConfig(dg.Config):
    """Which cohort a run trains; its members are rows of the registry, so that tunes can leave and join."""

    cohort_id: str = Field(description="Id of the cohort (cohort_…).")


class HousekeepingConfig(dg.Config):
    """How long things are kept."""

    keep_failed_run_days: float = Field(
        default=30, description="Failed and cancelled runs in Dagster. Runs that made an asset stay."
    )
    keep_service_run_days: float = Field(
        default=7, description="Runs of housekeeping, look_around and finish_tune that materialized nothing."
    )
    keep_cache_days: float = Field(
        default=30, description="Files below cache/ in the store, by their age; they can be made again."
    )


@dg.op(
    name=WorkKind.TRAIN.op, pool=GPU_POOL, description="Trains the tunes of a cohort on their common base."
)
def train_op(
    context: dg.OpExecutionContext,
    config: CohortConfig,
    installation: InstallationResource,
    compute: ComputeResource,
) -> None:
    """Train; each tune is materialized and checked as it finishes."""
    train_cohort_members(context, config.cohort_id, installation.open(), compute)


@dg.graph(
    name=WorkKind.TRAIN.job,
    description=(
        "Trains one or more tunes of one base together. Each tune's `lora` partition gets its own "
        "materialization and checks as it finishes."
    ),
)
def train_cohort() -> None:
    """One op, because a run cannot have a set of partitions."""
    train_op()


@dg.op(
    name=WorkKind.EMBED.op,
    description="Keeps what an image encoder sees in the faces of tunes that train nothing.",
)
def embed_op(
    context: dg.OpExecutionContext,
    config: CohortConfig,
    installation: InstallationResource,
    compute: ComputeResource,
) -> None:
    """Look; each tune is materialized and checked as it finishes."""
    train_cohort_members(context, config.cohort_id, installation.open(), compute)


@dg.graph(
    name=WorkKind.EMBED.job,
    description=(
        "Makes tunes of the kind faceid, which train nothing, in seconds on the CPU. Each tune's `lora` partition "
        "gets its own materialization and checks."
    ),
)
def embed_faces() -> None:
    """One op, outside of the GPU pool."""
    embed_op()


@dg.op(
    name="clean_up",
    description="Deletes what expired, old runs, partitions of deleted tunes and cache files.",
)
def clean_up_op(
    context: dg.OpExecutionContext,
    config: HousekeepingConfig,
    installation: InstallationResource,
) -> None:
    """Prune."""
    runs = prune_runs(context.instance, config.keep_failed_run_days, config.keep_service_run_days)
    context.log.info(f"Deleted {runs} old runs.")
    whole = installation.open()
    rows = whole.registry
    done = retain(whole, rows.now())
    context.log.info(done.sentence())
    if done.tune_ids:
        context.log.info(forget_tunes(context.instance, rows, done.tune_ids).sentence())
    keys = prune_partitions(context.instance, rows)
    context.log.info(f"Deleted {keys} partitions of deleted tunes.")
    context.log.info(close_window(context.instance, whole).sentence())
    orphans = remove_orphans(whole)
    context.log.info(f"Deleted {orphans} files that nobody names.")
    freed = prune_cache(whole.store, config.keep_cache_days)
    context.log.info(f"Deleted {freed.count} cache files, {freed.megabytes:.0f} MB.")


@dg.graph(
    name="housekeeping",
    description="Deletes what nobody needs any more.",
)
def housekeeping() -> None:
    """One op."""
    clean_up_op()


look_around = dg.define_asset_job(
    "look_around",
    selection=dg.AssetSelection.checks_for_assets(DROP_FOLDER, INSTALLATION),
    description="Looks whether registry and Dagster agree, and whether the drop folder holds what cannot be used.",
)


@dg.op(name="hold_device", description="Trains, scores and renders whatever waits, until nothing does.")
def hold_device_op(context: dg.OpExecutionContext, installation: InstallationResource) -> None:
    """Be a session."""
    from tunes_dagster.sessions.hosting import host
    from tunes_dagster.sessions.reporting import runs_alone

    name = host(
        installation.open(),
        run_id=context.run.run_id,
        alone=runs_alone(),
        ready=lambda one: context.log.info(f"{one.name} holds {one.device.name} ({one.device.label})."),
    )
    context.log.info(f"{name} has ended.")
    if cancelled_by_person(context):
        mark_cancelled(context, "The session was told to end; what it did goes on in the next one.")


@dg.graph(
    name="device_session",
    description=(
        "Holds a device for everything that needs one: the process of a session, placed by the configured launcher. "
        "What it does is told by runs of its own, one per tune and per batch."
    ),
)
def device_session() -> None:
    """One op, which goes on for as long as there is work."""
    hold_device_op()


def jobs_of(settings: Settings) -> dict[str, Any]:
    """Return every job by its name, with the tags that the settings give to its runs.

    Args:
        settings: Say how long each may take, and whether device work starts processes.
    """
    process, device = partial(process_run, settings=settings), partial(device_run, settings=settings)
    made = (
        _tagged(prepare_tune, process(WorkKind.PREPARE)),
        _tagged(train_tune, device(WorkKind.TRAIN)),
        _tagged(train_cohort, process(WorkKind.TRAIN)),
        _tagged(embed_faces, process(WorkKind.EMBED)),
        _tagged(finish_tune, device(WorkKind.FINISH)),
        _tagged(render_batch, device(WorkKind.RENDER)),
        # It stays for as long as there is work, and ends after TUNES_KEEP_WARM_SECONDS without.
        _tagged(device_session, {MAX_RUNTIME_TAG: "0"}),
        _tagged(housekeeping, process("housekeeping")),
        _tagged(look_around, process("housekeeping")),
    )
    return {job.name: job for job in made}


def _tagged(job: Any, tags: dict[str, str]) -> Any:
    """Return a job with tags: of a graph, or of a selection of assets, whose type Dagster keeps to itself."""
    if isinstance(job, dg.GraphDefinition):
        return job.to_job(tags=tags)
    return dg.define_asset_job(job.name, selection=job.selection, description=job.description, tags=tags)
