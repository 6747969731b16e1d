"""The sensor that gives each attempt of a session its Dagster run, and tells what became of it.

A run is requested when the work has begun, or is done already: nothing that needs a device waits for Dagster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import dagster as dg
from dagster import DagsterRunStatus

from tunes_dagster.core.work import WorkKind
from tunes_dagster.pipeline.launcher import DEVICE_RUN_TAG
from tunes_dagster.pipeline.launches import RUN_KEY_TAG, cancel_subject
from tunes_dagster.pipeline.partitions import new_partitions

if TYPE_CHECKING:
    from tunes_dagster.registry import DeviceRun, Registry


def run_key_of(row: DeviceRun) -> str:
    """Return the run key of the newest request for an attempt."""
    return f"{row.id}:{row.requests}"


def request_for_attempt(row: DeviceRun) -> dg.RunRequest:
    """Return the request of a run that will tell of an attempt."""
    return dg.RunRequest(
        job_name=WorkKind(row.kind).told_by,
        run_key=run_key_of(row),
        partition_key=row.subject_id,
        tags={
            # Few, because the list of runs shows each on a line of its own; the job and the partition say the rest.
            "tunes/attempt": str(row.attempt),
            DEVICE_RUN_TAG: row.id,
            # It starts no process, so that nobody has to wait for it.
            "dagster/priority": "9",
        },
    )


def requests(instance: dg.DagsterInstance, rows: Sequence[DeviceRun]) -> dg.SensorResult:
    """Return the requests for some attempts, with the partitions that they need."""
    if not rows:
        return dg.SensorResult(skip_reason="Every attempt has its run.")
    return dg.SensorResult(
        run_requests=[request_for_attempt(row) for row in rows],
        dynamic_partitions_requests=new_partitions(instance, [(row.kind, row.subject_id) for row in rows]),
    )


def heed_cancelled_runs(instance: dg.DagsterInstance, registry: Registry) -> int:
    """Cancel the work of runs that a person cancelled where no launcher heard of it: in the queue, or by force.

    Returns:
        How many runs there were.
    """
    waiting: list[str] = []
    for row in registry.device_runs.requested():
        found = instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: run_key_of(row)}), limit=5)
        run = next((one for one in found if one.parent_run_id is None), None)
        if run is None:
            continue
        if run.is_finished:  # also when it could not be launched
            registry.device_runs.bind(row.id, run.run_id)
        else:
            waiting.append(row.id)
    if waiting:
        registry.device_runs.keep_waiting(waiting)
    wanted = sorted({row.run_id for row in registry.device_runs.open() if row.run_id})
    if not wanted:
        return 0
    over = instance.get_runs(dg.RunsFilter(run_ids=wanted, statuses=[DagsterRunStatus.CANCELED]))
    for run in over:
        for work in registry.device_runs.works_of_run(run.run_id):
            cancel_subject(registry, work)
    return len(over)
