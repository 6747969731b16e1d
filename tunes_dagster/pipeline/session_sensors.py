"""The sensors of an installation with device sessions (`TUNES_SESSIONS`): what needs no device, and the runs that tell.

Whatever needs a device is taken by sessions, from the registry and without a sensor.
"""

from collections.abc import Mapping
from datetime import UTC, timedelta
from typing import Any

import dagster as dg
from dagster import DagsterRunStatus

from tunes_dagster.core.ids import SESSION, new_id
from tunes_dagster.core.launching import sessions_suit
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.work import ON_DEVICE
from tunes_dagster.pipeline.device_runs import heed_cancelled_runs, requests
from tunes_dagster.pipeline.jobs import device_session
from tunes_dagster.pipeline.sensors import ALWAYS, EACH_TIME, RUNNING
from tunes_dagster.pipeline.telling import Teller
from tunes_dagster.pipeline.ticks import installation_of, instance_of
from tunes_dagster.registry import Registry
from tunes_dagster.service import decide
from tunes_dagster.service.installation import Installation
from tunes_dagster.sessions.hardware import count_devices
from tunes_dagster.sessions.keeping import give_up

# A tick has 60 s, and requesting 25 runs takes up to 7 of them.
_TELLING_SECONDS = 20.0
# Of the silence after which a session counts as lost, for one to begin: torch is loaded first.
_GRACES = 3
# A process that keeps a device at hand (`tunes session --keep`) has a session there within that time.
_KEEPER_SECONDS = 15.0
_GOING = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
]


@dg.sensor(
    minimum_interval_seconds=EACH_TIME,
    default_status=RUNNING,
    description="Tells the runs of device work what the sessions did.",
)
def told_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Rows of sessions → events of their runs."""
    told = Teller(instance_of(context), installation_of(context)).tell(_TELLING_SECONDS)
    return dg.SkipReason(f"{told.runs} runs had something to say, {told.left} are left for the next tick.")


def device_runs(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Attempts of sessions → runs that tell of them; work that waits → device_session."""
    whole = installation_of(context)
    heed_cancelled_runs(instance_of(context), whole.registry)
    asked = requests(
        instance_of(context), whole.registry.device_runs.requests_due(limit=decide.RUNS_PER_TICK)
    )
    give_up_dead(instance_of(context), whole)
    if not session_is_wanted(instance_of(context), whole):
        return asked
    session = dg.RunRequest(
        job_name=device_session.name, run_key=new_id(SESSION), tags={"dagster/priority": "9"}
    )
    return dg.SensorResult(
        run_requests=[session, *(asked.run_requests or [])],
        dynamic_partitions_requests=asked.dynamic_partitions_requests,
    )


def device_runs_sensor(jobs: Mapping[str, Any]) -> dg.SensorDefinition:
    """Return the sensor that requests the runs of sessions, and sessions.

    Args:
        jobs: By name.
    """
    return dg.sensor(
        jobs=[jobs[name] for name in (device_session.name, *(kind.told_by for kind in ON_DEVICE))],
        minimum_interval_seconds=EACH_TIME,
        default_status=RUNNING,
        description=(
            "Requests a run for each attempt of a session that has none, and a session when something waits for a "
            "device and none is there."
        ),
    )(device_runs)


def give_up_dead(instance: dg.DagsterInstance, installation: Installation) -> None:
    """Have the work of sessions go on whose run has ended and who did not say so: Dagster saw their process die.

    A run that was marked as ended by force may have one that lives. It is fenced, and ends as soon as it hears of it.
    """
    registry = installation.registry
    for one in registry.sessions.alive(installation.settings.lost_after_seconds):
        run = instance.get_run_by_id(one.run_id) if one.run_id else None
        if run is not None and run.is_finished:
            give_up(registry, one.id)


def session_is_wanted(instance: dg.DagsterInstance, installation: Installation) -> bool:
    """Whether something waits for a device, and a device is left that no session has or is about to take."""
    registry, settings = installation.registry, installation.settings
    sessions, patience = registry.sessions, settings.lost_after_seconds
    if not sessions.work_waits(_KEEPER_SECONDS):
        return False
    alive = sessions.alive(patience)
    if any(not one.device for one in alive) or (alive and len(alive) >= _devices(settings)):
        return False
    return not begins(instance, registry, patience)


def _devices(settings: Settings) -> int:
    """Return how many sessions there may be: one for each device of this machine, where the launcher starts them here.

    How many there are elsewhere is known to nobody here.
    """
    if settings.device not in _counted:
        _counted[settings.device] = count_devices(settings.device) if sessions_suit().sessions else 1
    return _counted[settings.device]


# By TUNES_DEVICE; torch is asked once in the life of this process.
_counted: dict[str, int] = {}


def begins(instance: dg.DagsterInstance, registry: Registry, patience: float) -> bool:
    """Whether a run that hosts a session is on its way, and may still come to it.

    Runs whose process died are ended: Dagster would show them for ever.
    """
    soon = False
    alive = {one.id for one in registry.sessions.alive(patience)}
    for record in instance.get_run_records(
        dg.RunsFilter(job_name=device_session.name, statuses=_GOING), limit=20
    ):
        run = record.dagster_run
        known = registry.sessions.of_run(run.run_id)
        if known is not None and (known.ended_at is not None or known.id in alive):
            continue  # it has a device, or ended in peace and its run ends in a moment
        age = registry.now() - record.update_timestamp.astimezone(UTC)
        began = run.status == DagsterRunStatus.STARTED
        if known is not None or (began and age > timedelta(seconds=_GRACES * patience)):
            instance.report_run_failed(run, "Its process is gone; another session takes its place.")
        else:
            soon = True
    return soon


def with_sessions(jobs: Mapping[str, Any]) -> list[dg.SensorDefinition]:
    """Return the sensors of an installation whose sessions take by themselves what needs a device."""
    return [*ALWAYS, told_runs, device_runs_sensor(jobs)]
