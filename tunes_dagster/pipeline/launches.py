"""Launches and runs: how a decision of `decide.py` becomes a run, and what a run says about its attempt.

Shared by the sensors (which request runs from the daemon) and by `inprocess` (which executes them here).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
from dagster import DagsterRun, DagsterRunStatus

from tunes_dagster.core.failures import Failure
from tunes_dagster.core.work import WorkKind, is_run_key
from tunes_dagster.registry import Registry, Work
from tunes_dagster.service.decide import Launch

log = logging.getLogger(__name__)

RUN_KEY_TAG = "dagster/run_key"
ORIGIN_TAG = "tunes/origin"

# A tune that somebody waits for goes before the next one's training.
_PRIORITY = {
    WorkKind.RENDER: "3",
    WorkKind.FINISH: "2",
    WorkKind.EMBED: "2",
    WorkKind.PREPARE: "1",
    WorkKind.TRAIN: "0",
}

_PATIENT = "0"

# After its last work a run only writes events; so many times the silence after which work is lost is ample.
_GRACES = 5

# Runs at a time that are looked at for being forgotten; `max_concurrent_runs` is far below.
_MOST_RUNS = 200

_SILENT = "The run was silent for too long, or took too long; its work was given to another run."

_ENDED = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)


def run_config(launch: Launch) -> dict[str, Any]:
    """Return the run config: ids only, everything else stands in the registry."""
    if launch.cohort_id is not None:
        return {"ops": {launch.kind.op: {"config": {"cohort_id": launch.cohort_id}}}}
    return {}


def partition_of(launch: Launch) -> str | None:
    """Return the partition key of the run; jobs of one op have none."""
    return None if launch.cohort_id is not None else launch.partition


def request_for(launch: Launch) -> dg.RunRequest:
    """Return the request of a launch for the daemon."""
    return dg.RunRequest(
        job_name=launch.kind.job,
        run_key=launch.run_key,
        run_config=run_config(launch),
        partition_key=partition_of(launch),
        tags={**launch.tags, "dagster/priority": _PATIENT if launch.patient else _PRIORITY[launch.kind]},
    )


def find_run(instance: dg.DagsterInstance, name: str) -> DagsterRun | None:
    """Return the run of a run id or of a run key, the newest one when there are several."""
    if is_run_key(name):
        found = instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: name}), limit=5)
        # A re-execution carries the key of its parent and is an attempt of its own.
        return next((run for run in found if run.parent_run_id is None), None)
    return instance.get_run_by_id(name)


def run_is_alive(instance: dg.DagsterInstance, name: str) -> bool | None:
    """Return whether a run may still work: None when no such run is known."""
    run = find_run(instance, name)
    return None if run is None else run.status not in _ENDED


def name_of_run(work: Work) -> str | None:
    """Return by what the run of submitted or running work is found."""
    return work.run_id if work.state == "running" else work.cohort_id or work.run_key


def cancel_what_people_cancelled(instance: dg.DagsterInstance, registry: Registry) -> int:
    """Cancel the work whose run a person cancelled before it could say so itself; returns how many.

    A run that is cancelled in the queue, or marked as cancelled by force, never runs a line of our code.
    """
    cancelled = 0
    for work in registry.work.active():
        name = name_of_run(work)
        run = find_run(instance, name) if name else None
        if run is not None and run.status == DagsterRunStatus.CANCELED:
            cancel_subject(registry, work)
            cancelled += 1
    return cancelled


def cancel_subject(registry: Registry, work: Work) -> None:
    """Ask for a piece of work to be stopped; for a batch, for all of its prompts."""
    prompts = registry.prompts.rows(batch_id=work.subject_id) if work.kind == WorkKind.RENDER else []
    try:
        for prompt in prompts:
            if prompt.status in ("queued", "rendering"):
                registry.work.cancel_prompt(prompt.id)
        if work.kind != WorkKind.RENDER:
            registry.work.cancel_tune(work.subject_id)
        elif work.origin == "ui":
            registry.device_runs.stop_again(work)
    except Failure:
        return  # it ended by itself meanwhile


def forgotten_runs(
    instance: dg.DagsterInstance,
    registry: Registry,
    pools: Sequence[str],
    now: datetime,
    lost_after_seconds: float,
) -> list[str]:
    """Return runs that count as running, or hold a slot of one of the pools, although all of their work ended long ago.

    Their machine died between the last row and the end of the run, or they hang where nothing can tell them: no row is
    stuck, so only Dagster knows of them.
    """
    grace = timedelta(seconds=_GRACES * lost_after_seconds)
    claims = map(instance.event_log_storage.get_concurrency_info, pools)
    holders = {run_id for claim in claims for run_id in claim.active_run_ids}
    going = dg.RunsFilter(statuses=[DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING])
    holders |= {run.run_id for run in instance.get_runs(going, limit=_MOST_RUNS)}
    ends = {run_id: registry.work.run_ended_at(run_id) for run_id in holders}
    return sorted(run_id for run_id, end in ends.items() if end is not None and now - end > grace)


def full_pools(instance: dg.DagsterInstance, pools: Sequence[str]) -> frozenset[str]:
    """Return those of the pools that have no slot free."""
    found = map(instance.event_log_storage.get_concurrency_info, pools)
    return frozenset(pool.concurrency_key for pool in found if 0 < pool.slot_count <= pool.active_slot_count)


def without_work(registry: Registry, run_ids: Sequence[str | None]) -> list[str]:
    """Return those of some runs that hold no living piece of work any more."""
    living = {work.run_id for work in registry.work.active() if work.state == "running"}
    return sorted({run_id for run_id in run_ids if run_id is not None} - living)


def give_up_runs(instance: dg.DagsterInstance, run_ids: Sequence[str], why: str = _SILENT) -> None:
    """End runs whose work was given to another run, and mark them as failed, which frees their pool slots.

    Some look alive and are gone (their machine crashed); others live and are told to end.
    """
    for run_id in run_ids:
        run = instance.get_run_by_id(run_id)
        if run is not None and run.status in (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING):
            try:
                instance.run_launcher.terminate(run_id)
            except Exception as error:  # launchers raise what their platform does
                log.warning("The run %s could not be told to end: %s", run_id, error)
            instance.report_run_failed(run, why)
            # A daemon that watches runs would do this later; on the command line there is none.
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
