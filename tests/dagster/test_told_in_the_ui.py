"""Twenty pieces of work of a session, read back through the GraphQL that the pages of Dagster's UI send."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster_graphql.cli import execute_query

from tests.support.paper_sessions import CHECKS
from tests.support.told_places import Place
from tunes_dagster.assets.housekeeping import forget_tunes
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import PromptRequest
from tunes_dagster.core.settings import get_settings
from tunes_dagster.pipeline.inprocess import open_instance
from tunes_dagster.service.installation import Installation
from tunes_dagster.service.submit import submit_prompt

RUNS = """
{ runsOrError { ... on Runs { results { runId status jobName startTime endTime tags { key value }
  assetSelection { path } repositoryOrigin { repositoryName } } } } }
"""
LOG = """
query Log($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events {
  __typename ... on MessageEvent { message stepKey timestamp } } } } }
"""
ASSETS = """
{ assetNodes { assetKey { path }
  assetPartitionStatuses { ... on DefaultPartitionStatuses {
    materializedPartitions failedPartitions unmaterializedPartitions materializingPartitions } }
  assetChecksOrError { ... on AssetChecks { checks { name partitionStatuses {
    ... on AssetCheckDefaultPartitionStatuses { succeededPartitions failedPartitions } } } } } } }
"""
TERMINATE = "mutation Stop($run: String!) { terminateRun(runId: $run) { __typename } }"


class Ui:
    """What a browser asks."""

    def __init__(self, workspace: WorkspaceProcessContext, instance: dg.DagsterInstance) -> None:
        self._workspace, self._instance = workspace, instance

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        with dg.partition_loading_context(dynamic_partitions_store=self._instance):
            answer = execute_query(self._workspace, query, variables=variables)
        assert not answer.get("errors"), answer
        return answer["data"]

    def runs(self) -> dict[str, dict[str, Any]]:
        found = self.ask(RUNS)["runsOrError"]["results"]
        return {{tag["key"]: tag["value"] for tag in run["tags"]}["dagster/partition"]: run for run in found}

    def log(self, run_id: str) -> list[dict[str, Any]]:
        return self.ask(LOG, run=run_id)["logsForRun"]["events"]

    def asset(self, name: str) -> dict[str, Any]:
        return next(one for one in self.ask(ASSETS)["assetNodes"] if one["assetKey"]["path"] == [name])


@pytest.fixture
def place(paper_house, monkeypatch) -> Iterator[Place]:
    monkeypatch.setenv("TUNES_DAGSTER_STORAGE", str(paper_house.home / "dagster"))
    monkeypatch.setenv("TUNES_SESSIONS", "true")
    get_settings.cache_clear()
    paper_house.settings = get_settings()
    with open_instance(paper_house.settings) as instance:
        yield Place(paper_house, instance)


@pytest.fixture
def ui(place) -> Iterator[Ui]:
    target = LoadableTargetOrigin(module_name="tunes_dagster.definitions", attribute="defs")
    origin = InProcessCodeLocationOrigin(target, location_name="tunes")
    with WorkspaceProcessContext(place.instance, InProcessWorkspaceLoadTarget(origin)) as workspace:
        yield Ui(workspace, place.instance)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_pieces_tell_their_story_in_the_ui(place, ui):
    tunes = [place.prepared(f"t{number}") for number in range(12)]
    failed, cancelled, deleted, working, *made = tunes
    works = {tune.id: place.session.begin("train", tune.id) for tune in tunes}
    place.requested()
    place.teller.tell()
    shown = ui.asset("lora")["assetPartitionStatuses"]
    assert sorted(shown["materializingPartitions"]) == sorted(works)

    for tune in (*made, deleted):
        place.session.finish(works[tune.id])
    place.session.fail(works[failed.id], Failure(FailureCode.OUT_OF_MEMORY, "Ann's tune does not fit."))
    stopped = ui.runs()[cancelled.id]["runId"]
    assert ui.ask(TERMINATE, run=stopped)["terminateRun"]["__typename"] == "TerminateRunSuccess"
    assert ui.runs()[cancelled.id]["status"] == "CANCELING"
    assert place.session.obey(works[cancelled.id])
    place.session.journal.line(works[working.id], "training 5/12")
    place.session.finish(place.session.begin("finish", made[0].id), {"report_card": {"verdict": "good"}})
    for number in range(7):
        asked = PromptRequest(text=f"a secret wish {number}", tune=made[0].id)
        submit_prompt(
            Installation(place.house.settings, registry=place.registry, catalog=place.installation.catalog),
            asked,
        )
        place.registry.groups.make_batches(wait_seconds=0)
    batches = [work.subject_id for work in place.registry.work.queued("render")]
    for batch in batches:
        place.session.finish(place.session.begin("render", batch))
    place.requested()
    assert place.teller.tell().left == 0
    place.registry.work.delete_tune(deleted.id)
    forget_tunes(place.instance, place.registry, [deleted.id])

    runs = ui.runs()
    assert len(runs) == 18  # a tune's report card took the place of its training by its partition
    told = {key: run["status"] for key, run in runs.items()}
    assert told.pop(failed.id) == "FAILURE" and told.pop(cancelled.id) == "CANCELED"
    assert told.pop(working.id) == "STARTED" and set(told.values()) == {"SUCCESS"}
    assert all(run["repositoryOrigin"]["repositoryName"] == "__repository__" for run in runs.values())
    assert all(run["startTime"] <= run["endTime"] for run in runs.values() if run["endTime"])
    lora = ui.asset("lora")
    shown = lora["assetPartitionStatuses"]
    assert sorted(shown["materializedPartitions"]) == sorted(tune.id for tune in made)
    assert shown["failedPartitions"] == [failed.id] and shown["materializingPartitions"] == [working.id]
    checks = {one["name"]: one["partitionStatuses"] for one in lora["assetChecksOrError"]["checks"]}
    for name in CHECKS:
        assert sorted(checks[name]["succeededPartitions"]) == sorted(tune.id for tune in made)
    pictures = ui.asset("renders")["assetPartitionStatuses"]
    assert sorted(pictures["materializedPartitions"]) == sorted(batches)

    events = ui.log(runs[failed.id]["runId"])
    assert [one["__typename"] for one in events[-3:]] == [
        "ExecutionStepStartEvent",
        "ExecutionStepFailureEvent",
        "RunFailureEvent",
    ]
    assert "too little memory" in events[-1]["message"]
    assert any(one.get("message") == "training 5/12" for one in ui.log(runs[working.id]["runId"]))
    everything = str([ui.log(run["runId"]) for run in runs.values()]) + str(ui.ask(ASSETS)) + str(runs)
    assert deleted.id not in everything and "secret" not in everything and "Ann" not in everything
