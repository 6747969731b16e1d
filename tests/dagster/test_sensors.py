"""The sensors, called directly: what they request, and what they do about lost and cancelled runs."""

from __future__ import annotations

import shutil
from datetime import timedelta

import dagster as dg
import pytest
from sqlalchemy import text

from tests.support.houses import draw_pictures
from tests.support.lock_order import unwatched
from tunes_dagster.assets.installation import find_stranded
from tunes_dagster.assets.names import GPU_POOL
from tunes_dagster.core import clock
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.definitions import build_defs
from tunes_dagster.pipeline import sensors
from tunes_dagster.pipeline.launches import RUN_KEY_TAG
from tunes_dagster.resources import NotifierResource, default_resources, installed
from tunes_dagster.service import drops, submit


@pytest.fixture
def house(paper_house):
    """Nothing is trained here."""
    return paper_house


@pytest.fixture
def rows():
    return installed(default_resources())


def look(sensor, house, cursor: str | None = None, **resources) -> dg.SensorResult:
    with dg.build_sensor_context(instance=house.instance, cursor=cursor, resources=resources) as context:
        return sensor(context)


def move(house, tune_id: str, kind: str) -> None:
    """Let a run do one piece of work of a tune."""
    work = house.registry.work.claim(kind, tune_id, f"run-{kind}", origin="cli")
    house.registry.work.finish(work.id, f"run-{kind}", result={})


def test_a_queued_tune_gets_its_partition_and_one_run(house, rows):
    tune = house.submit()
    result = look(sensors.queued_tunes, house, installation=rows)
    (request,) = result.run_requests
    (added,) = result.dynamic_partitions_requests
    assert request.job_name == "prepare_tune" and request.partition_key == tune.id
    assert list(added.partition_keys) == [tune.id] and added.partitions_def_name == "tunes"
    assert request.tags["tunes/tune"] == tune.id and request.tags["tunes/number"] == str(tune.number)
    (work,) = house.registry.work.of(tune.id, "prepare")
    assert request.run_key == work.run_key and work.state == "submitted"
    assert look(sensors.queued_tunes, house, installation=rows).skip_reason is not None


def test_a_known_partition_is_not_added_again_and_does_not_stop_the_run(house, rows):
    tune = house.submit()
    house.instance.add_dynamic_partitions("tunes", [tune.id])
    result = look(sensors.queued_tunes, house, installation=rows)
    assert len(result.run_requests) == 1 and not result.dynamic_partitions_requests


def test_at_most_25_runs_are_requested_per_tick(house, rows):
    for _ in range(27):
        house.submit()
    assert len(look(sensors.queued_tunes, house, installation=rows).run_requests) == 25
    assert len(look(sensors.queued_tunes, house, installation=rows).run_requests) == 2


def test_prepared_tunes_share_a_run_and_trained_ones_are_finished(house, rows):
    tunes = [house.submit("bob"), house.submit("ann")]
    for tune in tunes:
        move(house, tune.id, "prepare")
    (request,) = look(sensors.prepared_tunes, house, installation=rows).run_requests
    assert request.job_name == "train_cohort" and request.partition_key is None
    cohort_id = request.run_config["ops"]["train"]["config"]["cohort_id"]
    assert {w.subject_id for w in house.registry.groups.members(cohort_id)} == {t.id for t in tunes}
    for work in house.registry.work.claim_cohort(cohort_id, "run-train"):
        house.registry.work.finish(work.id, "run-train", result={"weights_key": "k"})
    found = look(sensors.trained_tunes, house, installation=rows).run_requests
    assert {r.partition_key for r in found} == {t.id for t in tunes}


def test_queued_prompts_become_a_batch_with_a_partition(house, rows):
    tune = house.submit(prompts=[{"text": "a photo of ohwx mug"}, {"text": "ohwx mug at night"}])
    for kind in ("prepare", "train", "finish"):
        move(house, tune.id, kind)
    result = look(sensors.queued_prompts, house, installation=rows)
    (request,) = result.run_requests
    (added,) = result.dynamic_partitions_requests
    assert request.job_name == "render_batch" and list(added.partition_keys) == [request.partition_key]
    assert len(house.registry.prompts.rows(batch_id=request.partition_key)) == 2


def test_a_dropped_folder_is_taken_in_once(house, rows):
    parts = {"installation": rows}
    inbox = house.home / "inbox"
    draw_pictures(inbox / "bob", 3)
    (inbox / "bob" / "tune.yaml").write_text("name: mug\ntoken: zkqj\n")
    draw_pictures(inbox / "ann", 2)
    (inbox / "ann" / "tune.yaml").write_text("name: mug\nrank: 8\n")
    seen = look(sensors.new_datasets, house, **parts)
    said = seen.skip_reason.skip_message
    assert "Taken in: tune_" in said and "1 cannot be used" in said and "bob" not in said
    assert any("rank" in drop.message for drop in house.registry.drops.rows().values())
    *_, answer = seen.asset_events
    assert not answer.passed and str(inbox) not in str(answer)
    again = look(sensors.new_datasets, house, cursor=seen.cursor, **parts)
    assert again.skip_reason.skip_message == "Nothing new." and not again.asset_events
    shutil.rmtree(inbox / "ann")
    (answer,) = look(sensors.new_datasets, house, cursor=seen.cursor, **parts).asset_events
    assert answer.passed
    (tune,) = house.registry.tunes.rows()
    assert tune.token == "zkqj" and tune.origin == "drop" and tune.status == "queued"


def test_what_nobody_will_ever_move_is_found(house, rows):
    fine, idle, gone = house.submit("fine"), house.submit("idle"), house.submit("gone")
    works = {tune.id: house.registry.work.of(tune.id, "prepare")[0] for tune in (fine, idle, gone)}
    house.registry.work.claim("prepare", gone.id, "a run that is gone", origin="cli")
    with unwatched(), house.registry.engine.begin() as rows_:
        rows_.execute(text("DELETE FROM work WHERE id = :id"), {"id": works[idle.id].id})
        rows_.execute(text("UPDATE tunes SET updated_at = '2020-01-01 00:00:00.000000'"))
        rows_.execute(
            text("UPDATE work SET heartbeat_at = '2020-01-01 00:00:00.000000' WHERE state = 'running'")
        )
    house.instance.add_dynamic_partitions("tunes", [fine.id, "nobody"])
    found = find_stranded(house.instance, house.registry)
    assert (found.tunes, found.work, found.keys) == ([idle.id], [works[gone.id].id], ["nobody"])
    job = build_defs(campaigns=[]).resolve_job_def("look_around")
    ended = job.execute_in_process(instance=house.instance)
    answers = {one.check_name: one for one in ended.get_asset_check_evaluations()}
    assert ended.success and answers["everything_is_usable"].passed
    assert not answers["nothing_is_stranded"].passed
    assert "1 tunes, 1 work, 1 keys" in answers["nothing_is_stranded"].description


def test_a_drop_is_taken_in_once_the_store_is_back(house, rows, monkeypatch):
    draw_pictures(house.home / "inbox" / "bob", 3)
    (house.home / "inbox" / "bob" / "tune.yaml").write_text("name: mug\ntoken: zkqj\n")
    away = Failure(FailureCode.STORE_UNAVAILABLE, "The store cannot be reached.")

    def refuse(*_args, **_more):
        raise away

    with monkeypatch.context() as patched, pytest.raises(Failure):
        patched.setattr(submit, "submit_tune", refuse)
        drops.take_in_drops(rows.open(works=False))
    assert house.registry.drops.rows() == {}
    ((_, said),) = drops.take_in_drops(rows.open(works=False))
    assert "bob: taken in" in said


def submit_run(house, run_key: str, status: dg.DagsterRunStatus) -> str:
    from dagster._core.test_utils import create_run_for_test

    return create_run_for_test(
        house.instance, job_name="prepare_tune", status=status, tags={RUN_KEY_TAG: run_key}
    ).run_id


def stuck(house, rows) -> str:
    return look(sensors.stuck_work, house, installation=rows).skip_message


def test_work_whose_run_died_is_given_back(house, rows):
    tune = house.submit()
    (request,) = look(sensors.queued_tunes, house, installation=rows).run_requests
    run_id = submit_run(house, request.run_key, dg.DagsterRunStatus.STARTED)
    house.registry.work.claim("prepare", tune.id, run_id, run_key=request.run_key)
    assert stuck(house, rows) == "All is well."
    house.instance.report_run_failed(house.instance.get_run_by_id(run_id))
    assert "1 attempts were lost" in stuck(house, rows)
    (work,) = house.registry.work.of(tune.id, "prepare")
    assert work.state == "queued"
    (again,) = look(sensors.queued_tunes, house, installation=rows).run_requests
    assert again.run_key != request.run_key


def test_a_run_that_waits_in_the_queue_is_left_alone(house, rows):
    house.submit()
    (request,) = look(sensors.queued_tunes, house, installation=rows).run_requests
    submit_run(house, request.run_key, dg.DagsterRunStatus.STARTING)
    assert stuck(house, rows) == "All is well."


def test_a_run_cancelled_in_the_queue_ends_its_tune_as_cancelled(house, rows):
    tune = house.submit()
    (request,) = look(sensors.queued_tunes, house, installation=rows).run_requests
    submit_run(house, request.run_key, dg.DagsterRunStatus.CANCELED)
    assert "1 cancelled" in stuck(house, rows)
    assert house.status(tune.id) == "cancelled"


def test_a_silent_run_is_given_up_and_marked_as_failed(house, rows, monkeypatch):
    tune = house.submit()
    (request,) = look(sensors.queued_tunes, house, installation=rows).run_requests
    run_id = submit_run(house, request.run_key, dg.DagsterRunStatus.STARTED)
    work = house.registry.work.claim("prepare", tune.id, run_id, run_key=request.run_key)
    later = clock.now() + timedelta(hours=1)
    monkeypatch.setattr(clock, "now", lambda: later)
    assert "1 attempts were lost" in stuck(house, rows)
    assert house.registry.work.get(work.id).state == "queued"
    assert house.instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.FAILURE


def test_a_run_whose_work_ended_but_that_never_did_gives_its_slot_back(house, rows, monkeypatch):
    tune = house.submit()
    (request,) = look(sensors.queued_tunes, house, installation=rows).run_requests
    run_id = submit_run(house, request.run_key, dg.DagsterRunStatus.STARTED)
    work = house.registry.work.claim("prepare", tune.id, run_id, run_key=request.run_key)
    slots = house.instance.event_log_storage
    slots.set_concurrency_slots(GPU_POOL, 1)
    assert slots.claim_concurrency_slot(GPU_POOL, run_id, "train").is_claimed
    later = clock.now() + timedelta(seconds=40)
    monkeypatch.setattr(clock, "now", lambda: later)
    assert (
        stuck(house, rows) == "All is well."
        and house.instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.STARTED
    )

    house.registry.work.finish(work.id, run_id)
    for minutes, status in ((4, dg.DagsterRunStatus.STARTED), (6, dg.DagsterRunStatus.FAILURE)):
        moment = later + timedelta(minutes=minutes)
        monkeypatch.setattr(clock, "now", lambda moment=moment: moment)
        stuck(house, rows)
        assert house.instance.get_run_by_id(run_id).status == status


def test_due_callbacks_reports_what_it_did(house, rows):
    found = look(sensors.due_callbacks, house, installation=rows, notifier=NotifierResource())
    assert found.skip_message.startswith("0 delivered")


def test_a_run_that_takes_too_long_is_ended_unless_it_holds_other_work(house, rows, monkeypatch):
    """Two tunes train in one run; the first one's time ends, then the second one's."""
    ended = []
    monkeypatch.setattr(
        type(house.instance.run_launcher), "terminate", lambda self, run_id: ended.append(run_id)
    )
    first, second = house.submit("ann"), house.submit("bob")
    for tune in (first, second):
        move(house, tune.id, "prepare")
    run_id = submit_run(house, "cohort_1", dg.DagsterRunStatus.STARTED)
    now = clock.now()

    def later(seconds: float, *alive: str) -> str:
        monkeypatch.setattr(clock, "now", lambda: now + timedelta(seconds=seconds))
        for work_id in alive:
            house.registry.work.heartbeat(work_id, run_id)
        return stuck(house, rows)

    one = house.registry.work.claim("train", first.id, run_id)
    monkeypatch.setattr(clock, "now", lambda: now + timedelta(seconds=1000))
    two = house.registry.work.claim("train", second.id, run_id)
    longest = house.settings.longest("train")
    assert later(longest - 10, one.id, two.id) == "All is well."
    assert "1 attempts were lost" in later(longest + 10, one.id, two.id)
    assert house.instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.STARTED and not ended
    assert "1 attempts were lost" in later(longest + 1010, two.id)
    assert house.instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.FAILURE and ended == [run_id]


def test_a_run_whose_work_has_ended_does_not_go_on_for_ever(house, rows, monkeypatch):
    """It holds no slot of a pool; nothing else would notice."""
    tune = house.submit()
    run_id = submit_run(house, "work_1:1", dg.DagsterRunStatus.STARTED)
    work = house.registry.work.claim("prepare", tune.id, run_id)
    house.registry.work.finish(work.id, run_id)
    assert stuck(house, rows) == "All is well."
    assert house.instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.STARTED
    now = clock.now() + timedelta(seconds=6 * house.settings.lost_after_seconds)
    monkeypatch.setattr(clock, "now", lambda: now)
    stuck(house, rows)
    assert house.instance.get_run_by_id(run_id).status == dg.DagsterRunStatus.FAILURE
