"""What is used of Dagster without its promise: when one of these fails, look at `pipeline/dagster_private.py`."""

from __future__ import annotations

import inspect

import dagster as dg
import pytest

from tunes_dagster.pipeline import dagster_private
from tunes_dagster.pipeline.dagster_private import (
    AssetCheckEvaluation,
    AssetCheckEvaluationTargetMaterializationData,
    AssetMaterializationPlannedData,
    CheckRunHealthResult,
    ConfigurableClassData,
    DagsterEvent,
    DagsterEventType,
    EventLogEntry,
    JobCanceledData,
    JobFailureData,
    NodeHandle,
    RunFailureReason,
    RunLauncher,
    SerializableErrorInfo,
    StepFailureData,
    StepMaterializationData,
    StepSuccessData,
    UserFailureData,
    WorkerStatus,
)

# Callable → the parameters that are passed, by name or in this order.
USED = {
    dg.DagsterInstance.report_dagster_event: ["self", "dagster_event", "run_id", "log_level", "timestamp"],
    dg.DagsterInstance.handle_new_event: ["self", "event"],
    dg.DagsterInstance.report_run_canceling: ["self", "run"],
    dg.DagsterInstance.report_run_canceled: ["self", "dagster_run", "message"],
    dg.DagsterInstance.report_run_failed: ["self", "dagster_run", "message"],
    dg.DagsterInstance.report_engine_event: ["self", "message", "dagster_run"],
    dg.DagsterInstance.all_logs: ["self", "run_id"],
    dg.DagsterInstance.create_run_for_job: ["self", "remote_job_origin"],
    dg.DagsterInstance.fetch_materializations: ["self", "records_filter", "limit"],
    DagsterEvent.__new__: [
        "event_type_value",
        "job_name",
        "node_handle",
        "step_kind_value",
        "event_specific_data",
        "message",
    ],
    DagsterEvent.build_asset_materialization_planned_event: [
        "job_name",
        "step_key",
        "asset_materialization_planned_data",
    ],
    AssetMaterializationPlannedData.__new__: ["asset_key", "partition"],
    EventLogEntry.__new__: [
        "error_info",
        "level",
        "user_message",
        "run_id",
        "timestamp",
        "step_key",
        "job_name",
        "dagster_event",
    ],
    StepMaterializationData.__new__: ["materialization"],
    StepSuccessData.__new__: ["duration_ms"],
    StepFailureData.__new__: ["error", "user_failure_data", "error_source"],
    UserFailureData.__new__: ["label", "description", "metadata"],
    JobFailureData.__new__: ["error", "failure_reason"],
    JobCanceledData.__new__: ["error"],
    AssetCheckEvaluationTargetMaterializationData: ["run_id", "storage_id", "timestamp"],
    AssetCheckEvaluation: [
        "asset_key",
        "check_name",
        "passed",
        "metadata",
        "severity",
        "description",
        "partition",
        "target_materialization_data",
    ],
    ConfigurableClassData.__new__: ["module_name", "class_name", "config_yaml"],
    NodeHandle.__new__: ["name", "parent"],
    SerializableErrorInfo.__new__: ["message", "stack", "cls_name"],
    CheckRunHealthResult: ["status", "msg", "run_worker_id"],
    RunLauncher.launch_run: ["self", "context"],
    RunLauncher.terminate: ["self", "run_id"],
    RunLauncher.check_run_worker_health: ["self", "run"],
    RunLauncher.register_instance: ["self", "instance"],
}


@pytest.mark.parametrize("used", USED, ids=lambda used: used.__qualname__)
def test_what_is_called_takes_what_is_passed(used):
    takes = list(getattr(used, "_fields", None) or inspect.signature(used).parameters)
    missing = [name for name in USED[used] if name not in takes]
    assert not missing, f"Dagster {dg.__version__}: {used.__qualname__} no longer takes {missing}: {takes}"


def test_the_kinds_of_events_and_answers_are_there():
    events = {
        "RUN_START",
        "RUN_SUCCESS",
        "RUN_FAILURE",
        "RUN_CANCELED",
        "STEP_START",
        "STEP_SUCCESS",
        "STEP_FAILURE",
        "ASSET_MATERIALIZATION",
        "ASSET_CHECK_EVALUATION",
    }
    assert events <= set(DagsterEventType.__members__), f"Dagster {dg.__version__}"
    assert {"RUNNING", "FAILED"} <= set(WorkerStatus.__members__), f"Dagster {dg.__version__}"
    assert "STEP_FAILURE" in RunFailureReason.__members__, f"Dagster {dg.__version__}"


def test_an_event_moves_its_run_at_its_own_time():
    """Status, start and end of a run follow from its events: nothing else ever sets them."""
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(dg.GraphDefinition(name="nothing").to_job())
        for kind, at in ((DagsterEventType.RUN_START, 1000.0), (DagsterEventType.RUN_SUCCESS, 1060.0)):
            event = DagsterEvent(event_type_value=kind.value, job_name="nothing", message="")
            instance.report_dagster_event(event, run_id=run.run_id, timestamp=at)
        record = instance.get_run_record_by_id(run.run_id)
    assert record is not None and record.dagster_run.status == dg.DagsterRunStatus.SUCCESS
    assert (record.start_time, record.end_time) == (1000.0, 1060.0)


def test_checks_are_rows_of_their_run_and_backfills_have_the_states_that_are_asked_for():
    assert {"run_id", "asset_key"} <= set(dagster_private.AssetCheckExecutionsTable.c.keys()), dg.__version__
    states = set(dagster_private.BulkActionStatus.__members__)
    ended = {"COMPLETED", "COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED"}
    assert states == {"REQUESTED", "CANCELING", "FAILING"} | ended, (
        f"Dagster {dg.__version__}: one more is under way?"
    )
    assert "run_id" in inspect.signature(dagster_private.SqliteEventLogStorage.path_for_shard).parameters


def test_everything_that_is_named_is_there():
    assert not [name for name in dagster_private.__all__ if not hasattr(dagster_private, name)]


def test_the_default_launcher_is_where_it_was_and_tells_whose_it_is():
    launcher = dagster_private.launcher_of({}, "{}")
    assert type(launcher).__name__ == "DefaultRunLauncher", f"Dagster {dg.__version__}"
    with dg.DagsterInstance.ephemeral() as instance:
        launcher.register_instance(instance)
        own = getattr(launcher, "_instance", None)
        assert own is instance, f"Dagster {dg.__version__}: `RunLauncher._instance` is gone"


def test_a_run_of_selected_assets_is_known_by_the_name_of_its_job():
    @dg.asset
    def something() -> None: ...

    (job,) = dg.Definitions(assets=[something]).get_repository_def().get_all_jobs()
    assert dagster_private.is_asset_job(job.name), f"Dagster {dg.__version__} calls it {job.name!r} now"
    assert not dagster_private.is_asset_job("train_tune")


def test_a_run_is_made_at_the_place_of_its_job(tmp_path):
    workspace = tmp_path / "workspace.yaml"
    workspace.write_text("load_from:\n  - python_module: tunes_dagster.definitions\n")
    job = dg.GraphDefinition(name="nothing").to_job()
    with dg.DagsterInstance.ephemeral() as instance:
        with dagster_private.as_of_the_workspace(instance, "nothing", workspace):
            inside = instance.create_run_for_job(job)
        outside = instance.create_run_for_job(job)
    assert inside.remote_job_origin is not None and outside.remote_job_origin is None
    assert inside.remote_job_origin.job_name == "nothing"
    assert inside.remote_job_origin.repository_origin.repository_name == "__repository__"
