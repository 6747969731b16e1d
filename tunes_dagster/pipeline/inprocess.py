"""Runs the pipeline in this process when no daemon does: the same decisions, jobs and Dagster instance.

What is done here shows in the Dagster UI afterwards, like everything else.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster import DagsterExecutionInterruptedError, DagsterRunStatus
from filelock import FileLock

from tunes_dagster.assets.names import GPU_POOL, POOLS, REPORT_POOL
from tunes_dagster.core.failures import Failure
from tunes_dagster.core.progress import Phase, Reporter, Silent
from tunes_dagster.core.settings import Settings, check_database_folder
from tunes_dagster.core.work import is_run_key
from tunes_dagster.pipeline.dagster_private import as_of_the_workspace
from tunes_dagster.pipeline.launches import (
    ORIGIN_TAG,
    RUN_KEY_TAG,
    find_run,
    full_pools,
    partition_of,
    run_config,
    run_is_alive,
)
from tunes_dagster.pipeline.lost import give_up_lost
from tunes_dagster.pipeline.partitions import campaigns_keys, set_of
from tunes_dagster.service import decide

if TYPE_CHECKING:
    from tunes_dagster.registry import Campaign
    from tunes_dagster.service.installation import Installation

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.3
# The sensor daemon writes a heartbeat every 30 s.
_DAEMON_SILENCE_SECONDS = 45.0
# Runs that somebody asked for and that only a daemon brings to life.
_TAKEN_UP_BY_DAEMON = (DagsterRunStatus.QUEUED, DagsterRunStatus.NOT_STARTED, DagsterRunStatus.STARTING)
# Runs that have not begun their work, the first thing that they do.
_BEFORE_ITS_WORK = (*_TAKEN_UP_BY_DAEMON, DagsterRunStatus.STARTED)
_STORAGE_ENV = "TUNES_DAGSTER_STORAGE"
# In which web server and daemon find every job.
WORKSPACE = Path(__file__).with_name("instance") / "workspace.yaml"


def open_instance(settings: Settings) -> dg.DagsterInstance:
    """Open the Dagster instance of this installation; an instance without `dagster.yaml` lies under the home.

    `$DAGSTER_HOME` wins, then the `dagster.yaml` that comes with the project.
    """
    home = Path(os.environ.get("DAGSTER_HOME") or Path(__file__).with_name("instance"))
    storage = Path(os.environ.setdefault(_STORAGE_ENV, str(settings.resolved_home / "dagster")))
    check_database_folder(storage.absolute(), _STORAGE_ENV).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    if not (home / "dagster.yaml").is_file():
        home = storage
        (home / "dagster.yaml").touch()
    # Two processes that make the tables of a new SQLite instance at once break each other.
    with FileLock(storage / ".opening"):
        return dg.DagsterInstance.from_config(str(home))


def daemon_is_alive(instance: dg.DagsterInstance) -> bool:
    """Whether a daemon that runs the sensors has shown itself within the last 45 s.

    A heartbeat outlives its daemon, so whoever waits asks again. One from the future is no sign of life either: the
    clock was set back since.
    """
    heartbeat = instance.get_daemon_heartbeats().get("SENSOR")
    return heartbeat is not None and abs(time.time() - heartbeat.timestamp) < _DAEMON_SILENCE_SECONDS


def drive(
    installation: Installation,
    until: Callable[[], bool],
    report: Reporter | None = None,
    *,
    instance: dg.DagsterInstance | None = None,
    resource_overrides: dict[str, Any] | None = None,
) -> None:
    """Do what waits in the registry, run after run, until a condition holds.

    A run that fails ends its own work only; the next decision goes on. Ctrl-C gives the running work back to
    the queue and raises `KeyboardInterrupt`.

    Args:
        installation: Where it waits.
        until: Looked at between runs and while nothing waits.
        report: Told what starts and asked about cancelling between runs.
        instance: The Dagster instance, unless given.
        resource_overrides: As for `build_defs`.
    """
    from tunes_dagster.definitions import build_defs

    watching = report or Silent()
    patient, settings = installation.patient(), installation.settings
    watch: decide.Watch | None = None
    place = instance or open_instance(settings)
    definitions = build_defs(resource_overrides=resource_overrides)
    while not until():
        watching.check_cancelled()
        full = full_pools(place, POOLS)
        launches = next_launches(patient, full)
        for launch in launches:
            watching.note(f"Starting {launch.kind.job}.")
            execute(definitions, place, launch)
        if not launches:
            watching.phase(Phase.QUEUED, "Waiting for the device: another run has it." if full else "")
            watch = decide.Watch.after(watch, patient.registry.now(), settings.lost_after_seconds)
            _take_over(patient, place, watch)
            time.sleep(_POLL_SECONDS)


def _take_over(
    installation: Installation,
    instance: dg.DagsterInstance,
    watch: decide.Watch | None = None,
) -> None:
    """Give up what is lost, and take over what a daemon that is gone had asked Dagster for."""
    never: list[str] = []

    def alive(name: str) -> bool | None:
        run = find_run(instance, name)
        states = _BEFORE_ITS_WORK if is_run_key(name) else _TAKEN_UP_BY_DAEMON
        if run is not None and run.status in states and _nobody_is_there(instance, run):
            never.append(run.run_id)
            return False
        return run_is_alive(instance, name)

    give_up_lost(installation, instance, watch, alive)
    for run in filter(None, map(instance.get_run_by_id, never)):
        instance.report_run_failed(run, "Nobody was there to begin it; its work is done by another run.")


def _nobody_is_there(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run that has not begun its work has nobody who would: its daemon or its own process is gone.

    Another process's own run is like that for a moment only. One that was merely slow finds its work given to another.
    """
    if daemon_is_alive(instance):
        return False
    record = instance.get_run_record_by_id(run.run_id)
    return record is not None and time.time() - record.update_timestamp.timestamp() > _DAEMON_SILENCE_SECONDS


def next_launches(installation: Installation, full: Collection[str] = ()) -> list[decide.Launch]:
    """Return what can start now; work near its end goes first, one run at a time.

    Args:
        installation: Where the work is queued.
        full: Pools without a free slot. Their work stays in the queue: a run of it would wait inside Dagster, where
            it hears nothing and says nothing.
    """
    registry, settings = installation.registry, installation.settings
    if settings.uses_sessions and registry.sessions.any_alive(settings.lost_after_seconds):
        return decide.prepare_launches(registry, limit=1)  # the session takes everything else
    looks: tuple[tuple[str, Callable[[], list[decide.Launch]]], ...] = (
        (GPU_POOL, lambda: decide.render_launches(installation, limit=1)),
        (REPORT_POOL, lambda: decide.finish_launches(registry, limit=1)),
        ("", lambda: decide.prepare_launches(registry, limit=1)),
        ("", lambda: decide.embed_launches(installation, limit=1)),
        (GPU_POOL, lambda: decide.cohort_launches(installation, limit=1)),
    )
    for pool, look in looks:
        if pool not in full and (launches := look()):
            return launches
    return []


def execute(definitions: dg.Definitions, instance: dg.DagsterInstance, launch: decide.Launch) -> bool:
    """Execute one launch in this process; returns whether it went well.

    What went wrong stands in the registry and in the run; only an interrupt is raised.
    """
    partition = partition_of(launch)
    if partition is not None:
        instance.add_dynamic_partitions(set_of(launch.kind), [partition])
    job = definitions.resolve_job_def(launch.kind.job)
    run_id = str(uuid.uuid4())
    try:
        with as_of_the_workspace(instance, job.name, WORKSPACE):
            job.execute_in_process(
                run_config=run_config(launch),
                instance=instance,
                partition_key=partition,
                tags={**launch.tags, RUN_KEY_TAG: launch.run_key, ORIGIN_TAG: "cli"},
                run_id=run_id,
            )
    except (KeyboardInterrupt, DagsterExecutionInterruptedError) as stop:
        run = instance.get_run_by_id(run_id)
        if run is None or run.status not in (DagsterRunStatus.CANCELING, DagsterRunStatus.CANCELED):
            raise KeyboardInterrupt from stop
        return False
    except Exception as error:
        log.debug("The run %s failed: %s", run_id, error)
        return False
    return True


def run_campaign_job(
    what: str,
    campaign: Campaign,
    date: str,
    instance: dg.DagsterInstance,
    *,
    retry_failed: bool = True,
    resource_overrides: dict[str, Any] | None = None,
) -> None:
    """Plan or report on one date of a campaign in this process, as its schedule and the sensor do.

    Args:
        what: `plan` or `report`.
        campaign: Its row.
        date: One of its partition keys.
        instance: The Dagster instance.
        retry_failed: For a plan: ask again for prompts of the date that failed.
        resource_overrides: As for `build_defs`.

    Raises:
        Failure: Why it was refused.
    """
    from tunes_dagster.definitions import build_defs

    definitions = build_defs(resource_overrides=resource_overrides, campaigns=[campaign])
    job = definitions.resolve_job_def(f"{what}_{campaign.name}")
    plan_key, _ = campaigns_keys(campaign.name)
    config = {"ops": {plan_key.to_python_identifier(): {"config": {"retry_failed": retry_failed}}}}
    try:
        with as_of_the_workspace(instance, job.name, WORKSPACE):
            job.execute_in_process(
                run_config=config if what == "plan" else None,
                instance=instance,
                partition_key=date,
                tags={"tunes/campaign": campaign.name, "tunes/date": date, ORIGIN_TAG: "cli"},
            )
    except dg.Failure as failure:
        cause = failure.__dict__.get("tunes_failure")
        raise cause if isinstance(cause, Failure) else failure from None
