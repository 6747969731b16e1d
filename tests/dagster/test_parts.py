"""The parts between Dagster and the library: device leases, reporters, Launchpad fields, housekeeping, launches."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import dagster as dg
import pytest

from tunes_dagster.assets.display import sparkline
from tunes_dagster.assets.housekeeping import forget_tunes, prune_cache, prune_partitions, prune_runs
from tunes_dagster.assets.launchpad import filled_in, merged, mirror
from tunes_dagster.core import clock
from tunes_dagster.core.failures import Cancelled, Failure, FailureCode
from tunes_dagster.core.progress import Phase, Silent
from tunes_dagster.core.recipe import TrainingOptions
from tunes_dagster.pipeline.inprocess import daemon_is_alive
from tunes_dagster.resources.compute import ComputeResource
from tunes_dagster.sessions.hardware import find_devices
from tunes_dagster.sessions.reporting import Member, RunLog


class Log:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, line: str) -> None:
        self.lines.append(line)


class Impatient(Silent):
    """Gives up while it waits."""

    def check_cancelled(self) -> None:
        raise Cancelled()


def test_a_device_is_leased_to_one_at_a_time(paper_house):
    compute = ComputeResource(device="cpu")
    with compute.lease(Silent(), paper_house.settings, holder="run-1") as device:
        assert device.name == "cpu" and device.dtype == "float32" and device.memory_gb > 0
        with pytest.raises(Cancelled), ComputeResource(device="cpu").lease(Impatient(), paper_house.settings):
            raise AssertionError("leased twice")
        (lock,) = (paper_house.home / "locks").iterdir()
        assert lock.read_text() == "run-1"
    with compute.lease(Impatient(), paper_house.settings) as device:
        assert device.name == "cpu"


def test_a_device_that_is_not_there_is_refused_by_name():
    with pytest.raises(Failure, match="cuda:7") as refused:
        find_devices("cuda:7")
    assert "TUNES_DEVICE" in refused.value.remedy


def test_the_run_log_has_a_line_every_five_seconds_with_the_time_left():
    seconds = iter(range(10_000))
    now = {"t": 0.0}
    log = Log()
    report = RunLog(log, "bob", clock=lambda: now["t"])  # type: ignore[arg-type]
    report.phase(Phase.TRAINING, "100 steps")
    for step in range(1, 101):
        now["t"] = float(next(seconds))
        report.step(step, 100, loss=0.5)
    assert log.lines[0] == "bob: training: 100 steps"
    assert log.lines[1] == "bob: training 6/100, 1 min 34 s left (loss=0.5)"
    assert log.lines[-1] == "bob: training 100/100 (loss=0.5)"
    assert 19 <= len(log.lines) <= 23


def test_progress_reaches_the_row_and_a_cancel_comes_back(paper_house):
    rows = paper_house.registry
    tune = paper_house.submit()
    work = rows.work.claim("prepare", tune.id, "run-1", origin="cli")
    member = Member(rows, work.id, "run-1")
    member.phase(Phase.FETCHING, "Fetching.")
    member.step(3, 10)
    member.beat(interval=60)
    row = rows.tunes.get(tune.id)
    assert (row.phase, row.message, row.step, row.total_steps) == ("fetching", "Fetching.", 3, 10)
    member.check_cancelled()
    rows.work.cancel_tune(tune.id)
    member.beat(interval=0)
    with pytest.raises(Cancelled):
        member.check_cancelled()


def test_a_late_writer_hears_that_the_row_is_not_its_own(paper_house):
    rows = paper_house.registry
    work = rows.work.claim("prepare", paper_house.submit().id, "run-1", origin="cli")
    member = Member(rows, work.id, "run-1")
    rows.work.requeue_lost(work.id, "It was silent.")
    member.beat(interval=0)
    with pytest.raises(Failure) as refused:
        member.check_cancelled()
    assert refused.value.code == FailureCode.CONFLICT


def test_the_launchpad_mirrors_a_model_with_its_texts():
    config = mirror(TrainingOptions, "TestConfig")
    assert "Rank of the adapter." in str(config.model_fields["rank"].description)
    assert "cosine" in str(config.model_fields["lr_schedule"].description)
    assert "at least 4, at most 128" in str(config.model_fields["rank"].description)
    assert filled_in(config(rank=8, learning_rate=None, lr_schedule="cosine")) == {
        "rank": 8,
        "lr_schedule": "cosine",
    }
    assert merged(TrainingOptions(), {"rank": 8}).rank == 8
    with pytest.raises(Failure, match="rank"):
        merged(TrainingOptions(), {"rank": 3})


def test_a_sparkline_is_short_enough_to_be_shown_in_place():
    import base64

    for values in ([0.5], [0.1] * 7, [1 / (i + 1) for i in range(2000)]):
        text = sparkline(values, "loss").value
        assert len(text) < 1000
        svg = base64.b64decode(text.split("base64,")[1].rstrip(")")).decode()
        assert svg.startswith("<svg") and "nan" not in svg


def old_run(
    instance: dg.DagsterInstance, status: dg.DagsterRunStatus, job: str, asset: str | None = None
) -> str:
    from dagster._core.test_utils import create_run_for_test

    run = create_run_for_test(instance, job_name=job, status=status)
    if asset:
        event = dg.DagsterEvent(
            event_type_value="ASSET_MATERIALIZATION",
            job_name=job,
            step_key="x",
            event_specific_data=dg._core.events.StepMaterializationData(dg.AssetMaterialization(asset)),
        )
        instance.report_dagster_event(event, run.run_id)
    return run.run_id


def test_old_runs_go_unless_they_made_an_asset(paper_house):
    instance = paper_house.instance
    failed = old_run(instance, dg.DagsterRunStatus.FAILURE, "prepare_tune")
    cohort = old_run(instance, dg.DagsterRunStatus.FAILURE, "train_cohort", asset="lora")
    service = old_run(instance, dg.DagsterRunStatus.SUCCESS, "finish_tune")
    prepared = old_run(instance, dg.DagsterRunStatus.SUCCESS, "prepare_tune", asset="source_images")
    assert prune_runs(instance, 1, 1) == 0
    assert prune_runs(instance, 0, 0) == 2
    left = {run.run_id for run in instance.get_runs()}
    assert left == {cohort, prepared} and failed not in left and service not in left


def test_partitions_of_deleted_tunes_and_old_cache_files_go(paper_house):
    kept, gone = paper_house.submit("ann"), paper_house.submit("bob")
    paper_house.instance.add_dynamic_partitions("tunes", [kept.id, gone.id])
    paper_house.registry.work.delete_tune(gone.id)
    assert prune_partitions(paper_house.instance, paper_house.registry) == 1
    assert paper_house.instance.get_dynamic_partitions("tunes") == [kept.id]

    store = paper_house.store
    store.write_text("cache/old.txt", "x" * 1000)
    store.write_text("cache/new.txt", "x")
    long_ago = (clock.now() - timedelta(days=40)).timestamp()
    os.utime(str(store.path("cache/old.txt")), (long_ago, long_ago))
    freed = prune_cache(store, 30)
    assert freed.count == 1 and freed.megabytes == pytest.approx(0.001)
    assert list(store.list("cache")) == ["cache/new.txt"]


def test_a_daemon_is_alive_while_its_heartbeat_is_fresh(paper_house):
    from dagster._daemon.types import DaemonHeartbeat

    assert not daemon_is_alive(paper_house.instance)
    for age, alive in ((5, True), (120, False), (-3600, False)):  # the last: the clock was set back since
        paper_house.instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - age, "SENSOR", "id", None))
        assert daemon_is_alive(paper_house.instance) is alive


def test_dagster_forgets_the_runs_of_a_deleted_tune(paper_house):
    @dg.job
    def nothing():
        pass

    house = paper_house
    gone, other = house.submit("gone"), house.submit("other")
    house.instance.add_dynamic_partitions("tunes", [gone.id, other.id])
    for tune in (gone, other):
        nothing.execute_in_process(instance=house.instance, tags={"tunes/tune": tune.id})
    forgotten = forget_tunes(house.instance, house.registry, [gone.id])
    assert (forgotten.runs, forgotten.kept) == (1, [])
    assert [run.tags["tunes/tune"] for run in house.instance.get_runs()] == [other.id]
    assert house.instance.get_dynamic_partitions("tunes") == [other.id]


def test_dagster_forgets_its_history_and_what_an_api_deleted(paper_house):
    from tests.support.registry import add_tune
    from tunes_dagster.assets.housekeeping import forget_deleted, forget_history
    from tunes_dagster.pipeline.definitions import build_defs

    instance, registry = paper_house.instance, paper_house.registry
    job = build_defs(campaigns=[]).resolve_job_def("housekeeping")
    gone = add_tune(registry)
    instance.add_dynamic_partitions("tunes", [gone.id])
    mine = instance.create_run_for_job(job, tags={"tunes/tune": gone.id})
    other = instance.create_run_for_job(job)
    for run in (mine, other):
        instance.report_run_failed(run)
    assert forget_deleted(instance, registry) == 0
    registry.work.delete_tune(gone.id)
    assert forget_deleted(instance, registry) == 1
    assert [run.run_id for run in instance.get_runs()] == [other.run_id]
    assert not instance.has_dynamic_partition("tunes", gone.id)
    waiting = instance.create_run_for_job(job)
    assert forget_history(instance) == 1
    assert [run.run_id for run in instance.get_runs()] == [waiting.run_id], "what has not ended stays"
