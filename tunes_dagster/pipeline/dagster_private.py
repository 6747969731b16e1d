"""What is used of Dagster without its promise: the only file that imports a module of it whose name begins with `_`.

`__all__` says what is used, in groups, and which public call is missing for each.
`tests/dagster/test_private_dagster.py` pins it, and `tests/test_private_parts.py` finds it anywhere else.
`dagster.yaml` names its storage of logs by such a path, too, since Dagster's documentation of that file does.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationTargetMaterializationData,
)
from dagster._core.definitions.data_version import DATA_VERSION_IS_USER_PROVIDED_TAG, DATA_VERSION_TAG
from dagster._core.definitions.dependency import NodeHandle
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.events import (
    AssetMaterializationPlannedData,
    DagsterEvent,
    DagsterEventType,
    JobCanceledData,
    JobFailureData,
    RunFailureReason,
    StepMaterializationData,
)
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.execution.plan.objects import (
    ErrorSource,
    StepFailureData,
    StepSuccessData,
    UserFailureData,
)
from dagster._core.launcher.base import (
    CheckRunHealthResult,
    LaunchRunContext,
    ResumeRunContext,
    RunLauncher,
    WorkerStatus,
)
from dagster._core.remote_origin import RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
from dagster._core.storage.event_log.sqlite import SqliteEventLogStorage
from dagster._core.storage.root import LocalArtifactStorage
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from dagster._utils.error import SerializableErrorInfo

__all__ = [
    # The events of a run that no process executes. Public are only those that a step itself may log
    # (`context.log_event`): nothing public begins or ends a run or a step, or says when it happened.
    "AssetMaterializationPlannedData",
    "DagsterEvent",
    "DagsterEventType",
    "ErrorSource",
    "EventLogEntry",
    "JobCanceledData",
    "JobFailureData",
    "NodeHandle",
    "RunFailureReason",
    "SerializableErrorInfo",
    "StepFailureData",
    "StepMaterializationData",
    "StepSuccessData",
    "UserFailureData",
    # The answer of a check about one partition. `dg.AssetCheckResult` is tied to the run's own partition, and
    # `dg.AssetCheckEvaluation` has neither partition nor materialization in what is promised of it.
    "AssetCheckEvaluation",
    "AssetCheckEvaluationTargetMaterializationData",
    # The data version of a materialization that is logged. Public is only `MaterializeResult.data_version`, which is
    # about the run's own partition.
    "DATA_VERSION_IS_USER_PROVIDED_TAG",
    "DATA_VERSION_TAG",
    # What `dagster.yaml` may name: a run launcher and a folder of artifacts. That they may be replaced is documented;
    # the classes that a replacement inherits from, is told things in and answers with are exported by nobody.
    "CheckRunHealthResult",
    "ConfigurableClassData",
    "LaunchRunContext",
    "Launcher",
    "LocalArtifactStorage",
    "ResumeRunContext",
    "RunLauncher",
    "WorkerStatus",
    "launcher_of",
    # Where a run's job is found: `execute_in_process` asks for no origin, and has no argument for one.
    "as_of_the_workspace",
    "origin",
    # How the code server starts the process of a run. It asks for `spawn`, whose children import everything anew.
    "fork_runs",
    # Which runs are of jobs that the UI makes of a selection of assets.
    "is_asset_job",
    # What `DagsterInstance.delete_run` leaves of a run: rows of its checks, which no call deletes, and SQLite's file.
    "AssetCheckExecutionsTable",
    "SqlEventLogStorage",
    "SqliteEventLogStorage",
    # The states of a backfill. `get_backfills` takes them, and `dagster` does not export them.
    "BulkActionStatus",
]

# The jobs that the UI makes of a selection of assets. `IMPLICIT_ASSET_JOB_NAME` and `ANONYMOUS_ASSET_JOB_PREFIX` are
# two constants in modules that move from one release to the next; names of runs in old storages begin like this too.
_ASSET_JOB = "__ASSET_JOB"
_SERVER = "dagster._grpc.server"


def is_asset_job(name: str) -> bool:
    """Whether a job is one that Dagster makes itself of the assets that a person selects."""
    return name.startswith(_ASSET_JOB)


class Launcher(RunLauncher[dg.DagsterInstance], ConfigurableClass):
    """A run launcher that `dagster.yaml` can name.

    Args:
        inst_data: What Dagster was told in `dagster.yaml`.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__()
        self._inst_data = inst_data

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """As Dagster asks."""
        return self._inst_data

    @property
    def instance(self) -> dg.DagsterInstance:
        """Whose launcher this is; Dagster keeps it for its own launchers alone."""
        return self._instance


def launcher_of(chosen: Mapping[str, Any], config: str) -> RunLauncher[Any]:
    """Return the launcher that `dagster.yaml` would have without ours, or the one that is named.

    Args:
        chosen: `{module: …, class: …}`; Dagster's default launcher unless given. `DefaultRunLauncher` is exported by no
            public module.
        config: Its own configuration, as YAML.
    """
    named = ConfigurableClassData(
        chosen.get("module", "dagster._core.launcher"), chosen.get("class", "DefaultRunLauncher"), config
    )
    return named.rehydrate(as_type=RunLauncher)  # type: ignore[type-abstract]


def origin(job_name: str, workspace: Path) -> RemoteJobOrigin:
    """Return where the web server finds a job: without it, timeline and jobs leave a run out."""
    (location,) = WorkspaceFileTarget([str(workspace)]).create_origins()
    return RemoteJobOrigin(RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME), job_name)


def fork_runs(preload: Sequence[str]) -> bool:
    """Have the code server that this process is fork the processes of runs from one that has loaded what they import.

    A run of seconds spends several of them on imports otherwise. The process that is forked from begins with the first
    run and ends with this one, or with `end_forks`.

    Args:
        preload: Modules that open nothing and start no thread when they are imported.

    Returns:
        Whether it does: on Linux, where forking is safe, in a process that is a code server.
    """
    # What a code server forks loads the same modules, and is none.
    forked = multiprocessing.parent_process() is not None
    if sys.platform != "linux" or forked or _SERVER not in sys.modules:
        return False
    from dagster._grpc.server import DagsterApiServer

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))

    def chosen(_server: DagsterApiServer) -> Any:
        return context

    def keep(_server: DagsterApiServer, _asked: Any) -> None:
        """A server asks for `spawn` when it is made; what is forked takes its place."""

    DagsterApiServer._mp_ctx = property(chosen, keep)  # type: ignore[assignment]
    return True


@contextmanager
def as_of_the_workspace(instance: dg.DagsterInstance, job_name: str, workspace: Path) -> Iterator[None]:
    """Give runs that are made meanwhile the origin of those that the daemon starts; `execute_in_process` takes none.

    Args:
        instance: Where they are made.
        job_name: Of which they are runs.
        workspace: The `workspace.yaml` in which web server and daemon find the job.
    """
    create = partial(instance.create_run_for_job, remote_job_origin=origin(job_name, workspace))
    instance.create_run_for_job = create  # type: ignore[method-assign]
    try:
        yield
    finally:
        del instance.create_run_for_job
