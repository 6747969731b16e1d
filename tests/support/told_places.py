"""An installation with sessions on, on paper, and what Dagster's daemon and its people do in it, step by step."""

from __future__ import annotations

import dagster as dg
from dagster import DagsterRunStatus as Status

from tests.support.paper_sessions import PaperSession
from tunes_dagster.definitions import build_defs
from tunes_dagster.pipeline import device_runs
from tunes_dagster.pipeline.dagster_private import origin
from tunes_dagster.pipeline.inprocess import WORKSPACE
from tunes_dagster.pipeline.telling import Teller
from tunes_dagster.service.installation import Installation

DEFS = build_defs(campaigns=[])


class Place:
    """An installation with sessions on, and what the daemon does in it, step by step."""

    def __init__(self, house, instance: dg.DagsterInstance) -> None:
        self.house, self.instance, self.registry = house, instance, house.registry
        self.installation = Installation(house.settings)
        self.session = PaperSession(house.registry)
        self.teller = Teller(instance, self.installation)
        self.defs = DEFS

    def prepared(self, title: str = "bob"):
        """Return a tune that waits to be trained."""
        tune = self.house.submit(title)
        work = self.registry.work.claim("prepare", tune.id, "run-prepare", origin="cli")
        self.registry.work.finish(work.id, "run-prepare", result={})
        return tune

    def requested(self) -> list[str]:
        """Do what the daemon does with what is requested now; returns the runs."""
        due = self.registry.device_runs.requests_due()
        asked = device_runs.requests(self.instance, due)
        for one in asked.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(one.partitions_def_name, list(one.partition_keys))
        made = []
        for request in asked.run_requests or []:
            tags = {**request.tags, "dagster/run_key": request.run_key}
            made.append(self.created(request.job_name, request.partition_key, tags))
        for run_id in made:
            self.instance.launch_run(run_id, None)
        return made

    def created(self, job_name: str, partition: str, tags=None, assets=None, config=None) -> str:
        """Create a run as the daemon, or the UI, does."""
        job = self.defs.resolve_job_def(job_name)
        if assets:
            job = job.get_subset(asset_selection={dg.AssetKey(name) for name in assets})
        run = self.instance.create_run_for_job(
            job_def=job,
            run_config=config,
            tags={"dagster/partition": partition, **(tags or {})},
            remote_job_origin=origin(job_name, WORKSPACE),
            asset_selection=frozenset(dg.AssetKey(name) for name in assets) if assets else None,
        )
        return run.run_id

    def by_hand(self, assets: list[str], partition: str, config=None) -> str:
        """Materialize some assets of a partition as a person does in the UI; returns the run."""
        run_id = self.created("__ASSET_JOB", partition, None, assets, config)
        self.instance.launch_run(run_id, None)
        return run_id

    def status(self, run_id: str) -> Status:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status

    def kinds(self, run_id: str) -> list[str]:
        """Return the events of a run, in order."""
        logs = self.instance.all_logs(run_id)
        return [one.dagster_event.event_type_value if one.dagster_event else one.user_message for one in logs]


def told(place: Place) -> None:
    """Tell all that there is to tell."""
    assert place.teller.tell().left == 0
