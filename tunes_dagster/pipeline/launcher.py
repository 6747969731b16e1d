"""The run launcher of `dagster.yaml`: runs of device work are bound to rows and start nothing, all others go on.

Without sessions (`TUNES_SESSIONS`), and for all work that needs no device, everything is left to the launcher that it
wraps. It is loaded by every process that opens the instance, the web server included, so nothing heavy is imported
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import dagster as dg
from dagster import DagsterRun

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.settings import Settings, get_settings
from tunes_dagster.core.work import MAKING, ON_DEVICE, WorkKind
from tunes_dagster.pipeline.dagster_private import (
    CheckRunHealthResult,
    ConfigurableClassData,
    Launcher,
    LaunchRunContext,
    ResumeRunContext,
    WorkerStatus,
    is_asset_job,
    launcher_of,
)

if TYPE_CHECKING:
    from tunes_dagster.registry import DeviceRun, Registry, Work

DEVICE_RUN_TAG = "tunes/device_run"

# Jobs that only an installation without sessions asks for; the key of such a run is the id of a cohort.
_COHORTS = tuple(kind.job for kind in MAKING)


def device_kinds(run: DagsterRun) -> list[WorkKind]:
    """Return the kinds of device work that a run is about, in their order; none when it does anything else too.

    It is known by what the run selects: what a person starts in the UI, or executes again, has no tags of ours.
    """
    if told := [kind for kind in ON_DEVICE if kind.told_by == run.job_name]:
        return told
    if not is_asset_job(run.job_name) or not run.asset_selection or run.asset_check_selection:
        return []
    names = {key.to_user_string() for key in run.asset_selection}
    if run.step_keys_to_execute is not None:  # executed again from a failure
        names &= set(run.step_keys_to_execute)
    found = [kind for kind in ON_DEVICE if kind.asset in names]
    return found if names == {kind.asset for kind in found} else []


def changes_in(run: DagsterRun, kind: WorkKind) -> dict[str, Any]:
    """Return what was filled in in the Launchpad for the step of a kind of work."""
    ops = (run.run_config or {}).get("ops") or {}
    chosen = ops.get(kind.asset) if isinstance(ops, Mapping) else None
    filled = (chosen or {}).get("config") or {}
    return {name: value for name, value in filled.items() if value is not None}


class DeviceRunLauncher(Launcher):
    """Binds runs of device work to the rows that a session works on; wraps another launcher for everything else.

    Args:
        wrapped: `{module: …, class: …, config: …}` of the launcher for all other runs; Dagster's default one unless
            given.
        inst_data: Dagster's.
    """

    def __init__(
        self, wrapped: Mapping[str, Any] | None = None, inst_data: ConfigurableClassData | None = None
    ) -> None:
        super().__init__(inst_data)
        chosen = wrapped or {}
        self._wrapped = launcher_of(chosen, _yaml(chosen.get("config")))

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        """What `dagster.yaml` may say under `run_launcher: config`."""
        launcher = {
            "module": dg.Field(str),
            "class": dg.Field(str),
            "config": dg.Field(dg.Permissive(), is_required=False),
        }
        return {"wrapped": dg.Field(launcher, is_required=False)}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        """As Dagster asks."""
        return cls(inst_data=inst_data, **config_value)

    def register_instance(self, instance: dg.DagsterInstance) -> None:
        """Be told whose launcher this is, and tell the wrapped one."""
        super().register_instance(instance)
        self._wrapped.register_instance(instance)

    @cached_property
    def _settings(self) -> Settings:
        return get_settings()

    @cached_property
    def _registry(self) -> Registry:
        from tunes_dagster.registry import open_registry

        return open_registry(self._settings)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Bind a run of device work; leave all others to the wrapped launcher."""
        if not self._bound(context.dagster_run):
            self._wrapped.launch_run(context)

    def _bound(self, run: DagsterRun) -> bool:
        if not self._settings.uses_sessions:
            return False
        if self._given_back(run):
            return True
        kinds = device_kinds(run)
        partition = run.tags.get("dagster/partition")
        if not kinds or not partition:
            return False
        asked_for = run.tags.get(DEVICE_RUN_TAG)
        if asked_for and run.parent_run_id is None:
            self._bind(run, asked_for)
            return True
        if not self._registry.sessions.any_alive(self._settings.lost_after_seconds):
            return False  # the run's own process does it, and has the device meanwhile
        self._hand_over(run, kinds, partition)
        return True

    def _given_back(self, run: DagsterRun) -> bool:
        """Give the tunes of a cohort back whose run was asked for before there were sessions: one will train them.

        A process of its own would wait for the device until the session has nothing to do any more.
        """
        if run.job_name not in _COHORTS or run.parent_run_id is not None:
            return False
        from tunes_dagster.pipeline.launches import RUN_KEY_TAG

        if not (cohort_id := run.tags.get(RUN_KEY_TAG)):
            return False
        for work in self._registry.work.claim_cohort(cohort_id, run.run_id):
            self._registry.work.give_back(work.id, run.run_id, "A session goes on with it.")
        self._instance.report_run_canceled(run, "A session trains its tunes, each with a run of its own.")
        return True

    def _bind(self, run: DagsterRun, device_run_id: str) -> None:
        """Let a run tell of the attempt that it was requested for; the rest of the story is the teller's."""
        from tunes_dagster.pipeline.journal import RunJournal

        runs = self._registry.device_runs
        row = runs.get(device_run_id)
        if row is None or row.began_at is None or not runs.bind(device_run_id, run.run_id, told="run"):
            self.instance.report_run_canceled(run, "Another run tells of this attempt.")
            return
        RunJournal(self.instance, run).started(row.began_at)

    def _hand_over(self, run: DagsterRun, kinds: list[WorkKind], partition: str) -> None:
        from tunes_dagster.pipeline.journal import RunJournal

        # Dagster gives up runs that have not begun after minutes; a session may be busy for longer.
        RunJournal(self.instance, run).started(self._registry.now())
        first, *rest = kinds
        try:
            again = run.parent_run_id is not None
            self._registry.device_runs.hand_over(
                first, partition, run.run_id, changes_in(run, first), rest=again
            )
            for kind in rest:
                self._registry.device_runs.expect(kind, partition, run.run_id, changes_in(run, kind))
        except Failure as failure:
            if failure.code == FailureCode.STORE_UNAVAILABLE:
                raise
            self.instance.report_run_failed(run, f"{failure.message} {failure.remedy}".strip())
            return
        self.instance.report_engine_event("It was handed to the session that holds the device.", run)

    def _attempts(self, run_id: str) -> list[DeviceRun]:
        """Return the attempts that a run without a process tells of."""
        rows = self._registry.device_runs.of_run(run_id) if self._settings.uses_sessions else []
        return [row for row in rows if row.told != "process"]

    def terminate(self, run_id: str) -> bool:
        """Ask for the work of a run to be cancelled; its end is told when it has ended."""
        if not self._attempts(run_id):
            return self._wrapped.terminate(run_id)
        works = self._registry.device_runs.works_of_run(run_id)
        run = self.instance.get_run_by_id(run_id)
        if run is None or run.is_finished or not works:
            return False
        self.instance.report_run_canceling(run)
        from tunes_dagster.pipeline.launches import cancel_subject

        for work in works:
            cancel_subject(self._registry, work)
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Rows say whether their work lives; runs of which the wrapped launcher knows nothing count as alive."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Return how a run is: for device work, what the heartbeat of its row says."""
        rows = self._attempts(run.run_id)
        if not rows:
            if self._wrapped.supports_check_run_worker_health:
                return self._wrapped.check_run_worker_health(run)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        silent = [
            work.id for work in self._registry.device_runs.works_of_run(run.run_id) if self._is_silent(work)
        ]
        if silent:
            return CheckRunHealthResult(WorkerStatus.FAILED, f"No heartbeat of {', '.join(silent)}.")
        return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=rows[0].session_id)

    def _is_silent(self, work: Work) -> bool:
        """Whether work was silent for so long that the sensor that gives it to others should have done so."""
        if work.state != "running" or work.heartbeat_at is None:
            return False
        patience = timedelta(seconds=3 * self._settings.lost_after_seconds)
        return self._registry.now() - work.heartbeat_at > patience

    def get_run_worker_debug_info(
        self, run: DagsterRun, include_container_logs: bool | None = True
    ) -> str | None:
        """Return what helps to find out why a run does not go on."""
        if rows := self._attempts(run.run_id):
            sessions = sorted({row.session_id for row in rows if row.session_id})
            return f"Its work is done by {', '.join(sessions) or 'no session yet'}; see `tunes devices`."
        return self._wrapped.get_run_worker_debug_info(run, include_container_logs)

    @property
    def supports_resume_run(self) -> bool:
        """As the wrapped launcher."""
        return self._wrapped.supports_resume_run

    def resume_run(self, context: ResumeRunContext) -> None:
        """Leave it to the wrapped launcher; device work is resumed by the registry."""
        if not self._attempts(context.dagster_run.run_id):
            self._wrapped.resume_run(context)

    def join(self, timeout: int = 30) -> None:
        """Wait for the runs of the wrapped launcher."""
        self._wrapped.join(timeout)

    def dispose(self) -> None:
        """Let go of everything."""
        self._wrapped.dispose()
        if "_registry" in self.__dict__:
            self._registry.close()


def _yaml(config: Mapping[str, Any] | None) -> str:
    import yaml

    return yaml.safe_dump(dict(config or {}))
