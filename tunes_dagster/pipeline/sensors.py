"""The sensors: thin, over `decide.py`, which decides from the registry's rows alone.

A tick is not atomic: it takes rows out of the queue, then adds partitions, then requests runs. One that dies in
between leaves submitted rows without a run, which `stuck_work` gives back.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from tunes_dagster.assets.housekeeping import forget_deleted
from tunes_dagster.assets.installation import folder_answer, looked_at
from tunes_dagster.assets.names import Group
from tunes_dagster.core.work import MAKING, WorkKind
from tunes_dagster.pipeline.launches import partition_of, request_for
from tunes_dagster.pipeline.lost import give_up_lost
from tunes_dagster.pipeline.partitions import campaigns_keys, new_partitions
from tunes_dagster.pipeline.ticks import installation_of, instance_of, resource_of
from tunes_dagster.registry import Campaign, CampaignDate
from tunes_dagster.service import decide
from tunes_dagster.service.drops import take_in_drops
from tunes_dagster.service.erase import drive
from tunes_dagster.sessions.waking import listen

# The daemon looks every 5 s; a smaller interval means "each time".
EACH_TIME = 2
# Between two of the daemon's looks a tick stays and listens: what is handed in then is heard at once.
_LISTENING_SECONDS = 4.0
# For what nobody waits for: most of what an installation costs at rest are the looks of its sensors.
NOW_AND_THEN = 15
# A tick may take a minute; what is left is the next one's.
_DELETIONS = 20
RUNNING = dg.DefaultSensorStatus.RUNNING


def launched(context: dg.SensorEvaluationContext, launches: Sequence[decide.Launch]) -> dg.SensorResult:
    """Turn launches into run requests, with the partitions they need."""
    if not launches:
        return dg.SensorResult(skip_reason="Nothing waits.")
    subjects = [(launch.kind, key) for launch in launches if (key := partition_of(launch))]
    return dg.SensorResult(
        run_requests=[request_for(launch) for launch in launches],
        dynamic_partitions_requests=new_partitions(instance_of(context), subjects),
    )


def _patiently(
    look: Callable[[], list[decide.Launch]], waiting: Callable[[], bool], wait_seconds: float
) -> list[decide.Launch]:
    """Look, and look again when something only waits for company: the next tick would come seconds too late."""
    launches = look()
    if launches or not waiting() or wait_seconds > 4:
        return launches
    time.sleep(wait_seconds)
    return look()


@dg.sensor(
    job_name=WorkKind.PREPARE.job,
    minimum_interval_seconds=EACH_TIME,
    default_status=RUNNING,
    description="Starts a preparation for each queued tune.",
)
def queued_tunes(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Queued tunes → prepare_tune."""
    rows = installation_of(context).registry
    seconds = _LISTENING_SECONDS if context.repository_def is not None else 0.0  # not when called by hand
    return launched(context, listen(rows, lambda: decide.prepare_launches(rows), seconds))


def prepared_tunes(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Prepared tunes → cohorts → train_cohort, embed_faces."""
    whole = installation_of(context)
    rows, settings = whole.registry, whole.settings
    return launched(
        context,
        _patiently(
            lambda: decide.cohort_launches(whole),
            lambda: bool(rows.work.queued(WorkKind.TRAIN, limit=1)),
            settings.cohort_wait_seconds,
        ),
    )


def prepared_tunes_sensor(jobs: Mapping[str, Any]) -> dg.SensorDefinition:
    """Return the sensor that trains prepared tunes.

    Args:
        jobs: By name.
    """
    return dg.sensor(
        jobs=[jobs[kind.job] for kind in MAKING],
        minimum_interval_seconds=EACH_TIME,
        default_status=RUNNING,
        description=(
            "Groups prepared tunes by base into cohorts and trains each cohort in one run; those that train nothing "
            "are made by runs of their own, which wait for no GPU."
        ),
    )(prepared_tunes)


@dg.sensor(
    job_name=WorkKind.FINISH.job,
    minimum_interval_seconds=EACH_TIME,
    default_status=RUNNING,
    description="Finishes each trained tune.",
)
def trained_tunes(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Trained tunes → finish_tune."""
    return launched(context, decide.finish_launches(installation_of(context).registry))


@dg.sensor(
    job_name=WorkKind.RENDER.job,
    minimum_interval_seconds=EACH_TIME,
    default_status=RUNNING,
    description="Groups queued prompts by base and shape into batches and renders each batch in one run.",
)
def queued_prompts(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Queued prompts → batches → render_batch."""
    whole = installation_of(context)
    rows, settings = whole.registry, whole.settings
    return launched(
        context,
        _patiently(
            lambda: decide.render_launches(whole),
            lambda: bool(rows.prompts.rows(status="queued", limit=1)),
            settings.batch_wait_seconds,
        ),
    )


@dg.sensor(
    minimum_interval_seconds=10,
    default_status=RUNNING,
    description="Takes in datasets that were dropped into the watched folder; `queued_tunes` starts them.",
)
def new_datasets(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Drop folder → tunes; the check of the drop folder is answered when its answer changes."""
    whole = installation_of(context)
    seen = take_in_drops(whole)
    taken = [tune_id for tune_id, _said in seen if tune_id]
    left = len(seen) - len(taken)
    said = [f"Taken in: {', '.join(taken)}."] if taken else []
    said += [f"{left} cannot be used or are not complete: `tunes doctor` names them."] if left else []
    answer = folder_answer(whole.registry)
    unused = str(answer.metadata["not_used"].value)
    return dg.SensorResult(
        skip_reason=" ".join(said) or "Nothing new.",
        asset_events=[] if context.cursor == unused else [*([] if context.cursor else looked_at()), answer],
        cursor=unused,
    )


@dg.sensor(
    minimum_interval_seconds=EACH_TIME,
    default_status=RUNNING,
    description="Delivers the callbacks that are owed, concurrently, inside a 20 s budget.",
)
def due_callbacks(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Outbox → receivers."""
    done = resource_of(context, "notifier").deliver(installation_of(context))
    return dg.SkipReason(
        f"{done.delivered} delivered, {done.failed} to be tried again, {done.dead} given up, "
        f"{done.held} held, {done.left} left for the next tick, {done.unrecorded} to be recorded."
    )


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=RUNNING,
    description="Drives deletions to their end that whoever asked for them did not finish.",
)
def open_deletions(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Deletions → nothing left."""
    whole = installation_of(context)
    done = drive(whole, limit=_DELETIONS)
    forget_deleted(instance_of(context), whole.registry)
    return dg.SkipReason(f"{done.count} files were deleted, {done.unfinished} deletions go on later.")


@dg.sensor(
    minimum_interval_seconds=NOW_AND_THEN,
    default_status=RUNNING,
    description="Gives attempts up whose run is gone: requeues them (they resume) or fails them with a reason.",
)
def stuck_work(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Lost attempts → back into the queue."""
    whole, instance = installation_of(context), instance_of(context)
    seconds = whole.settings.lost_after_seconds
    watch = decide.Watch.after(decide.Watch.read(context.cursor), whole.registry.now(), seconds)
    done = give_up_lost(whole, instance, watch)
    context.update_cursor(str(watch))
    for run_id in done.forgotten:
        context.log.warning(f"Run {run_id} went on although its work had ended; it was given up.")
    for one in done.stuck:
        context.log.warning(f"{one.work.kind} of {one.work.subject_id}: {one.reason}")
    return dg.SkipReason(
        f"{len(done.stuck)} attempts were lost, {done.cancelled} cancelled."
        if done.stuck or done.cancelled
        else "All is well."
    )


def finished_campaigns_sensor(names: Sequence[str]) -> dg.SensorDefinition:
    """Return the sensor that asks for the report of each campaign date whose prompts have all ended.

    Args:
        names: Campaigns of this code location; a newer one is reported on once the location was reloaded.
    """

    @dg.sensor(
        name="finished_campaigns",
        minimum_interval_seconds=10,
        default_status=RUNNING,
        asset_selection=dg.AssetSelection.groups(Group.CAMPAIGNS),
        description="Makes the report of a campaign date when all of its prompts have ended.",
    )
    def finished_campaigns(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        """Ended prompts → campaign_report."""
        due = installation_of(context).registry.dates.due_reports(names)
        if not due:
            return dg.SensorResult(skip_reason="No campaign date has finished.")
        return dg.SensorResult(run_requests=[report_request(campaign, date) for campaign, date in due])

    return finished_campaigns


def report_request(campaign: Campaign, date: CampaignDate) -> dg.RunRequest:
    """Return the request for the report of a date."""
    _, report_key = campaigns_keys(campaign.name)
    return dg.RunRequest(
        run_key=f"{date.id}:{date.updated_at:%Y%m%d%H%M%S}:{date.report_attempt}",
        asset_selection=[report_key],
        partition_key=date.date,
        tags={"tunes/campaign": campaign.name, "tunes/date": date.date, "tunes/origin": "sensor"},
    )


# What is there with and without sessions.
ALWAYS = (new_datasets, queued_tunes, due_callbacks, open_deletions, stuck_work)


def without_sessions(jobs: Mapping[str, Any]) -> list[dg.SensorDefinition]:
    """Return the sensors of an installation whose device work is done by a process per run."""
    return [*ALWAYS, prepared_tunes_sensor(jobs), trained_tunes, queued_prompts]
