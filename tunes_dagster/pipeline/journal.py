"""The events of a run that no process executes, written in the form in which Dagster's own executor writes them.

Dagster does not promise to keep `DagsterInstance.report_dagster_event`, the event classes and the shape of an
`EventLogEntry`; `dagster_private` names what is used of them.

Each event has the time at which it happened, which may lie before the run was requested. Events of one run are written
in the order in which Dagster's own executor writes them. An event that the run holds already is not written again
(`RunJournal(..., again=True)`), so that a teller that died half-way can be followed by another one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import dagster as dg

from tunes_dagster.pipeline.dagster_private import (
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    AssetCheckEvaluation,
    AssetCheckEvaluationTargetMaterializationData,
    AssetMaterializationPlannedData,
    DagsterEvent,
    DagsterEventType,
    ErrorSource,
    EventLogEntry,
    JobCanceledData,
    JobFailureData,
    NodeHandle,
    RunFailureReason,
    SerializableErrorInfo,
    StepFailureData,
    StepMaterializationData,
    StepSuccessData,
    UserFailureData,
)

_Key = tuple[str, str | None, str, int]


@dataclass(frozen=True)
class Shown:
    """What a materialization that no process returns shows.

    Attributes:
        metadata: Of what was made.
        answers: Of its checks.
        version: Of its data; see `assets.versions`.
    """

    metadata: Mapping[str, Any]
    answers: Sequence[dg.AssetCheckResult]
    version: str


def version_tags(version: str) -> dict[str, str]:
    """Return the tags that `MaterializeResult.data_version` becomes."""
    return {DATA_VERSION_TAG: version, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"}


class RunJournal:
    """Writes what happened in a run that has no process.

    Args:
        instance: Dagster's.
        run: As `instance.get_run_by_id` returns it.
        again: Whether a part of it may stand there already; nothing is then written twice.
    """

    def __init__(self, instance: dg.DagsterInstance, run: dg.DagsterRun, again: bool = False) -> None:
        self._instance, self._run = instance, run
        self._known: set[_Key] = set(self._written()) if again else set()

    def _written(self) -> Iterable[_Key]:
        for entry in self._instance.all_logs(self._run.run_id):
            kind = entry.dagster_event.event_type_value if entry.dagster_event is not None else "LOG"
            yield _key(kind, entry.step_key, _words(entry), entry.timestamp)

    def started(self, at: datetime) -> None:
        """The run began."""
        self._event(DagsterEventType.RUN_START, at, f'Started execution of run for "{self._run.job_name}".')

    def step_started(self, step: str, at: datetime) -> None:
        """A step began."""
        self._event(DagsterEventType.STEP_START, at, f'Started execution of step "{step}".', step=step)

    def line(self, step: str, text: str, level: int, at: datetime) -> None:
        """A line of the log of a step."""
        entry = EventLogEntry(
            error_info=None,
            level=level,
            user_message=text,
            run_id=self._run.run_id,
            timestamp=at.timestamp(),
            step_key=step,
            job_name=self._run.job_name,
            dagster_event=None,
        )
        self._write("LOG", entry, text)

    def materialized(
        self,
        step: str,
        key: dg.AssetKey,
        partition: str,
        seen: Shown,
        at: datetime,
    ) -> None:
        """A step made a partition of an asset, and its checks were answered of exactly this materialization."""
        tags = version_tags(seen.version)
        made = dg.AssetMaterialization(asset_key=key, partition=partition, metadata=seen.metadata, tags=tags)
        said = f"Materialized value {key.to_user_string()}."
        self._event(DagsterEventType.ASSET_MATERIALIZATION, at, said, StepMaterializationData(made), step)
        target = newest_materialization(self._instance, key, partition)
        for answer in seen.answers:
            evaluation = check_evaluation(key, partition, answer, target)
            how = "passed" if answer.passed else "did not pass"
            said = f"Asset check {answer.check_name!r} on {key.to_user_string()!r} {how}."
            self._event(DagsterEventType.ASSET_CHECK_EVALUATION, at, said, evaluation, step)

    def step_succeeded(self, step: str, seconds: float, at: datetime) -> None:
        """A step ended well."""
        said = f'Finished execution of step "{step}" in {seconds:.1f}s.'
        self._event(DagsterEventType.STEP_SUCCESS, at, said, StepSuccessData(1000.0 * seconds), step)

    def step_failed(self, step: str, message: str, at: datetime, facts: Mapping[str, Any]) -> None:
        """A step ended badly, for a reason that the step itself gave."""
        error = SerializableErrorInfo(f"{message}\n", [], "Failure")
        data = StepFailureData(error, UserFailureData("Failure", message, facts), ErrorSource.FRAMEWORK_ERROR)
        said = f'Execution of step "{step}" failed.'
        self._event(DagsterEventType.STEP_FAILURE, at, said, data, step, logging.ERROR)

    def succeeded(self, at: datetime) -> None:
        """The run ended well."""
        self._event(
            DagsterEventType.RUN_SUCCESS, at, f'Finished execution of run for "{self._run.job_name}".'
        )

    def failed(self, message: str, at: datetime) -> None:
        """The run ended badly."""
        said = f'Execution of run for "{self._run.job_name}" failed. {message}'
        data = JobFailureData(None, RunFailureReason.STEP_FAILURE)
        self._event(DagsterEventType.RUN_FAILURE, at, said, data, level=logging.ERROR)

    def canceled(self, message: str, at: datetime) -> None:
        """The run was cancelled, or its process told to end."""
        self._event(DagsterEventType.RUN_CANCELED, at, message, JobCanceledData(None), level=logging.ERROR)

    def _event(
        self,
        kind: DagsterEventType,
        at: datetime,
        message: str,
        data: Any = None,
        step: str | None = None,
        level: int = logging.INFO,
    ) -> None:
        event = DagsterEvent(
            event_type_value=kind.value,
            job_name=self._run.job_name,
            node_handle=NodeHandle(step, None) if step else None,
            step_kind_value="COMPUTE" if step else None,
            event_specific_data=data,
            message=message,
        )
        if _key(kind.value, step, message, at.timestamp()) not in self._known:
            self._instance.report_dagster_event(
                event, run_id=self._run.run_id, log_level=level, timestamp=at.timestamp()
            )

    def _write(self, kind: str, entry: EventLogEntry, text: str) -> None:
        if _key(kind, entry.step_key, text, entry.timestamp) not in self._known:
            self._instance.handle_new_event(entry)


def _key(kind: str, step: str | None, text: str, timestamp: float) -> _Key:
    return kind, step, text, round(timestamp * 1000)


def _words(entry: EventLogEntry) -> str:
    event = entry.dagster_event
    return entry.user_message if event is None else (event.message or "")


def report_planned(
    instance: dg.DagsterInstance, run: dg.DagsterRun, key: dg.AssetKey, partition: str
) -> None:
    """Say that a run without partitions of its own is at work on one: it then shows as in progress, or as failed."""
    event = DagsterEvent.build_asset_materialization_planned_event(
        run.job_name, "", AssetMaterializationPlannedData(key, partition=partition)
    )
    instance.report_dagster_event(event, run_id=run.run_id, log_level=logging.DEBUG)


def newest_materialization(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str
) -> AssetCheckEvaluationTargetMaterializationData:
    """Return the pointer without which Dagster shows a partition's checks as missing."""
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    (record,) = instance.fetch_materializations(wanted, limit=1).records
    return AssetCheckEvaluationTargetMaterializationData(
        run_id=record.run_id, storage_id=record.storage_id, timestamp=record.timestamp
    )


def check_evaluation(
    key: dg.AssetKey,
    partition: str,
    answer: dg.AssetCheckResult,
    target: AssetCheckEvaluationTargetMaterializationData,
) -> AssetCheckEvaluation:
    """Return what a check said of a partition, tied to the materialization that it looked at."""
    assert answer.check_name is not None
    return AssetCheckEvaluation(
        asset_key=key,
        check_name=answer.check_name,
        passed=answer.passed,
        metadata=answer.metadata,
        severity=answer.severity,
        description=answer.description,
        partition=partition,
        target_materialization_data=target,
    )
