"""What is logged for a partition, read back through the GraphQL that the pages of the UI send."""

from collections.abc import Iterator
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster_graphql.cli import execute_query

from tunes_dagster.assets.names import LORA
from tunes_dagster.assets.trained import LORA_CHECKS, log_trained
from tunes_dagster.core.work import WorkKind
from tunes_dagster.definitions import build_defs
from tunes_dagster.pipeline.inprocess import execute, open_instance
from tunes_dagster.pipeline.journal import report_planned
from tunes_dagster.service import decide

CHECKS = """
{ assetNodeOrError(assetKey: {path: ["lora"]}) { ... on AssetNode {
    partitionStats { numMaterialized }
    assetChecksOrError { ... on AssetChecks { checks { name partitionStatuses {
      ... on AssetCheckDefaultPartitionStatuses { succeededPartitions failedPartitions }
    } } } }
} } }
"""


def ask(instance: dg.DagsterInstance, query: str) -> dict:
    """Ask what a page of the UI asks, of the real definitions."""
    target = LoadableTargetOrigin(module_name="tunes_dagster.definitions", attribute="defs")
    origin = InProcessCodeLocationOrigin(target, location_name="tunes")
    with (
        WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget(origin)) as workspace,
        dg.partition_loading_context(dynamic_partitions_store=instance),
    ):
        answer = execute_query(workspace, query)
    assert not answer.get("errors"), answer
    return answer["data"]


def trained(passed: bool) -> dg.MaterializeResult:
    """Return a tune whose checks all say the same."""
    answers = [dg.AssetCheckResult(passed=passed, check_name=one.name, asset_key=LORA) for one in LORA_CHECKS]
    return dg.MaterializeResult(metadata={"steps": 12}, check_results=answers)


@pytest.fixture
def instance(paper_house, monkeypatch) -> Iterator[dg.DagsterInstance]:
    """The instance of an installation, on disk: a workspace wants to share it with others."""
    monkeypatch.setenv("TUNES_DAGSTER_STORAGE", str(paper_house.home / "dagster"))
    with open_instance(paper_house.settings) as opened:
        yield opened


def test_checks_of_tunes_that_a_cohort_trained_show_for_their_partitions(instance):
    instance.add_dynamic_partitions("tunes", ["good", "bad"])

    @dg.op
    def train(context: dg.OpExecutionContext) -> None:
        for name, passed in (("good", False), ("good", True), ("bad", False)):
            log_trained(context, SimpleNamespace(id=name), trained(passed))

    @dg.job
    def cohort() -> None:
        train()

    cohort.execute_in_process(instance=instance)
    node = ask(instance, CHECKS)["assetNodeOrError"]
    assert node["partitionStats"]["numMaterialized"] == 2
    shown = {one["name"]: one["partitionStatuses"] for one in node["assetChecksOrError"]["checks"]}
    both = {"succeededPartitions": ["good"], "failedPartitions": ["bad"]}
    assert shown == {one.name: both for one in LORA_CHECKS}


STATUSES = """
{ assetNodeOrError(assetKey: {path: ["lora"]}) { ... on AssetNode {
    assetPartitionStatuses { ... on DefaultPartitionStatuses {
      materializedPartitions failedPartitions materializingPartitions } }
} } }
"""


def test_a_tune_in_a_cohort_shows_as_in_progress_and_as_failed_when_it_was(instance):
    instance.add_dynamic_partitions("tunes", ["good", "bad", "other"])
    while_it_runs: list[dict] = []

    def statuses() -> dict:
        return ask(instance, STATUSES)["assetNodeOrError"]["assetPartitionStatuses"]

    @dg.op
    def train(context: dg.OpExecutionContext) -> None:
        for name in ("good", "bad"):
            report_planned(context.instance, context.run, LORA, name)
        while_it_runs.append(statuses())
        log_trained(context, SimpleNamespace(id="good"), trained(True))
        raise dg.Failure("bad failed")

    @dg.job
    def cohort() -> None:
        train()

    cohort.execute_in_process(instance=instance, raise_on_error=False)
    assert sorted(while_it_runs[0]["materializingPartitions"]) == ["bad", "good"]
    after = statuses()
    assert (after["materializedPartitions"], after["failedPartitions"]) == (["good"], ["bad"])
    assert after["materializingPartitions"] == []


TIMELINE = """
{ repositoriesOrError { ... on RepositoryConnection { nodes { pipelines {
    name runs(limit: 5) { runId repositoryOrigin { repositoryName repositoryLocationName } }
} } } } }
"""


def test_runs_of_the_command_line_stand_in_the_timeline_of_their_job(instance):
    launch = decide.Launch(kind=WorkKind.FINISH, run_key="work_1:1", partition="nobody", work_id="work_1")
    assert not execute(build_defs(), instance, launch)  # there is no such tune; the run says so
    (run,) = instance.get_runs()
    (repository,) = ask(instance, TIMELINE)["repositoriesOrError"]["nodes"]
    shown = {job["name"]: job["runs"] for job in repository["pipelines"]}
    origin = {"repositoryName": "__repository__", "repositoryLocationName": "tunes"}
    assert shown["finish_tune"] == [{"runId": run.run_id, "repositoryOrigin": origin}]
