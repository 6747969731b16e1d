"""Device work that somebody starts in a process while a session has the device: handed to the session, and followed.

`dagster asset materialize` has no launcher, and a run that also prepares has a process of its own: their steps that
need a device wait here, log what the session says, and return what it made.
"""

from __future__ import annotations

from time import sleep
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster import DagsterExecutionInterruptedError

from tunes_dagster.assets.attempt import cancelled_by_person, mark_cancelled, sentences
from tunes_dagster.core.work import WorkKind
from tunes_dagster.pipeline.launcher import DEVICE_RUN_TAG
from tunes_dagster.pipeline.launches import cancel_subject
from tunes_dagster.pipeline.shown import facts_of_failure, shown, why

if TYPE_CHECKING:
    from tunes_dagster.registry import DeviceRun, Registry
    from tunes_dagster.service.installation import Installation

_LOOK_SECONDS = 1.0


def followed(
    context: dg.AssetExecutionContext,
    installation: Installation,
    kind: str,
    subject_id: str,
    changes: dict[str, Any],
) -> dg.MaterializeResult | None:
    """Let the session that is there do the work, and return what it made; None when there is none.

    Args:
        context: Of the asset.
        installation: Its registry holds the work.
        kind: train, finish, render.
        subject_id: Tune or batch.
        changes: What was filled in in the Launchpad.

    Raises:
        dg.Failure: Why the session could not do it.
    """
    registry, settings = installation.registry, installation.settings
    if not settings.uses_sessions:
        return None
    row = _told_of(context.run, registry)
    if row is None:
        if not _handed_over(context.run, registry, kind) and not registry.sessions.any_alive(
            settings.lost_after_seconds
        ):
            return None
        with sentences():
            row = registry.device_runs.hand_over(
                kind,
                subject_id,
                context.run.run_id,
                changes,
                told="process",
                rest=context.run.parent_run_id is not None,
            )
        _expect_rest(context, registry, kind, subject_id)
    context.log.info("The session that holds the device does it; its log follows.")
    row = _follow(context, registry, row)
    row.told = "ended"
    registry.device_runs.told([row])
    return _result(context, installation, row)


def _told_of(run: dg.DagsterRun, registry: Registry) -> DeviceRun | None:
    """Return the attempt that a run was requested to tell of: somebody's `dagster.yaml` has another launcher."""
    if run.parent_run_id is not None or DEVICE_RUN_TAG not in run.tags:
        return None
    device_run_id = run.tags[DEVICE_RUN_TAG]
    if not registry.device_runs.bind(device_run_id, run.run_id, told="process"):
        raise dg.Failure("Another run tells of this attempt.", allow_retries=False)
    return registry.device_runs.get(device_run_id)


def _handed_over(run: dg.DagsterRun, registry: Registry, kind: str) -> bool:
    return any(row.kind == kind for row in registry.device_runs.of_run(run.run_id))


def _expect_rest(context: dg.AssetExecutionContext, registry: Registry, kind: str, subject_id: str) -> None:
    """Note what else of the subject this run will follow: the session goes on with it by itself."""
    names = {key.to_user_string() for key in context.selected_asset_keys}
    rest = WorkKind.FINISH
    if kind == WorkKind.TRAIN and rest.asset in names and not _handed_over(context.run, registry, rest):
        registry.device_runs.expect(rest, subject_id, context.run.run_id, told="process")


def _follow(context: dg.AssetExecutionContext, registry: Registry, row: DeviceRun) -> DeviceRun:
    """Log what is said of an attempt until it has ended, and return it as it is then."""
    said = 0
    try:
        while True:
            registry.device_runs.end_lost()
            now = registry.device_runs.get(row.id)
            if now is None:
                raise dg.Failure("It was deleted while it was done.", allow_retries=False)
            now.said = said
            for line in registry.device_runs.lines_to_tell(now):
                context.log.log(line.level, line.text)
                said = line.id
            if now.state:
                return now
            sleep(_LOOK_SECONDS)
    except DagsterExecutionInterruptedError:
        if cancelled_by_person(context):
            for work in registry.device_runs.works_of_run(context.run.run_id):
                cancel_subject(registry, work)
        raise


def _result(
    context: dg.AssetExecutionContext, installation: Installation, row: DeviceRun
) -> dg.MaterializeResult:
    if row.state == "done":
        made = shown([row], installation)
        return dg.MaterializeResult(
            metadata=made.metadata,
            check_results=made.answers,
            data_version=dg.DataVersion(made.version),
        )
    if row.state in ("cancelled", "returned"):
        mark_cancelled(context, why(row))
    raise dg.Failure(why(row), metadata=facts_of_failure(row), allow_retries=False)
