"""Runs that no process executes: bound to a session's attempts, told from its rows, read back as the UI reads them."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg
import pytest
from dagster import DagsterRunStatus as Status

from tests.support.paper_sessions import CHECKS
from tests.support.told_places import told
from tunes_dagster.assets.housekeeping import forget_tunes
from tunes_dagster.assets.versions import version_of_card, version_of_renders
from tunes_dagster.core import clock
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import PromptRequest
from tunes_dagster.pipeline import device_runs
from tunes_dagster.pipeline.telling import Teller
from tunes_dagster.service import submit
from tunes_dagster.service.installation import Installation


def test_a_run_tells_of_an_attempt_from_its_start_to_its_end(place):
    tune = place.prepared()
    work = place.session.begin("train", tune.id)
    (run_id,) = place.requested()
    assert place.requested() == [] and place.status(run_id) == Status.STARTED
    place.session.journal.line(work, "training 3/12")
    told(place)
    assert place.status(run_id) == Status.STARTED
    place.session.finish(work)
    told(place)
    assert place.status(run_id) == Status.SUCCESS
    events = [one for one in place.kinds(run_id) if one != "ENGINE_EVENT"]
    assert events[-9:] == [
        "PIPELINE_START",
        "STEP_START",
        "training 3/12",
        "ASSET_MATERIALIZATION",
        *["ASSET_CHECK_EVALUATION"] * 3,
        "STEP_SUCCESS",
        "PIPELINE_SUCCESS",
    ]
    before = place.kinds(run_id)
    told(place)
    assert place.kinds(run_id) == before
    record = place.instance.get_run_record_by_id(run_id)
    (row,) = place.registry.device_runs.of_run(run_id)
    assert record.start_time == pytest.approx(row.began_at.timestamp())
    assert record.end_time == pytest.approx(row.ended_at.timestamp())


def test_work_that_is_done_before_dagster_hears_of_it_is_told_with_its_real_times(place, monkeypatch):
    tune = place.prepared()
    place.session.finish(place.session.begin("train", tune.id))
    began = clock.now()
    monkeypatch.setattr(clock, "now", lambda: began + timedelta(hours=1))
    (run_id,) = place.requested()
    told(place)
    record = place.instance.get_run_record_by_id(run_id)
    assert place.status(run_id) == Status.SUCCESS and record.end_time < began.timestamp() + 60
    (made,) = place.instance.fetch_materializations(dg.AssetKey("lora"), limit=5).records
    assert made.partition_key == tune.id and made.timestamp == pytest.approx(record.end_time)
    assert made.asset_materialization.metadata["steps"].value == 12
    result = place.registry.tunes.get(tune.id).made
    assert made.asset_materialization.tags["dagster/data_version"] == result.weights_recipe_hash


@pytest.mark.parametrize("died", ["before its end", "after its row", "while telling"])
def test_what_a_session_or_a_teller_did_not_come_to_say_is_said_by_the_next(place, died, monkeypatch):
    tune = place.prepared()
    work = place.session.begin("train", tune.id)
    (run_id,) = place.requested()
    told(place)
    if died == "before its end":
        place.registry.work.requeue_lost(work.id, "It was killed.")
        told(place)
        assert place.status(run_id) == Status.FAILURE
        assert "STEP_FAILURE" in place.kinds(run_id)
        again = place.session.begin("train", tune.id)
        assert again.attempt == 2 and len(place.requested()) == 1
        return
    if died == "after its row":
        place.registry.work.finish(
            work.id, place.session.name, result={"steps": 12, "checks": {CHECKS[0]: True}}
        )
    else:
        place.session.finish(work)
        write = type(place.instance).report_dagster_event
        calls = []

        def dies(self, *args, **kwargs):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            write(self, *args, **kwargs)

        monkeypatch.setattr(type(place.instance), "report_dagster_event", dies)
        with pytest.raises(KeyboardInterrupt):
            place.teller.tell()
        monkeypatch.setattr(type(place.instance), "report_dagster_event", write)
        assert (
            Teller(place.instance, place.installation).tell().runs == 1
        )  # it is being told, for all one knows
        assert place.status(run_id) == Status.STARTED
        now = clock.now()
        monkeypatch.setattr(clock, "now", lambda: now + timedelta(minutes=2))
    Teller(place.instance, place.installation).tell()
    events = place.kinds(run_id)
    assert place.status(run_id) == Status.SUCCESS
    assert events.count("ASSET_MATERIALIZATION") == events.count("PIPELINE_SUCCESS") == 1
    assert events.count("ASSET_CHECK_EVALUATION") == (1 if died == "after its row" else 3)


def test_failures_and_cancels_end_the_run_of_their_own_tune_only(place):
    tunes = [place.prepared(f"t{number}") for number in range(3)]
    works = [place.session.begin("train", tune.id) for tune in tunes]
    runs = place.requested()
    told(place)
    place.session.fail(works[0], Failure(FailureCode.DIVERGED, "Ann's pictures diverged."))
    assert place.instance.run_launcher.terminate(runs[1]) and place.session.obey(works[1])
    place.session.finish(works[2])
    told(place)
    assert [place.status(one) for one in runs] == [Status.FAILURE, Status.CANCELED, Status.SUCCESS]
    words = " ".join(map(str, place.instance.all_logs(runs[0])))
    assert "diverged" in words and "Ann" not in words
    assert place.house.status(tunes[1].id) == "cancelled"


def test_a_run_cancelled_in_the_queue_cancels_its_work(place, monkeypatch):
    tune = place.prepared()
    work = place.session.begin("train", tune.id)
    (row,) = place.registry.device_runs.requests_due()
    request = device_runs.request_for_attempt(row)
    tags = {**request.tags, "dagster/run_key": request.run_key}
    place.instance.add_dynamic_partitions("tunes", [tune.id])
    run = place.instance.get_run_by_id(place.created(request.job_name, tune.id, tags))
    now = clock.now()
    for seconds in (100, 200, 300):  # a daemon that is slow or was down asks for no second run
        monkeypatch.setattr(clock, "now", lambda seconds=seconds: now + timedelta(seconds=seconds))
        assert device_runs.heed_cancelled_runs(place.instance, place.registry) == 0
        assert not place.registry.device_runs.requests_due()
    place.instance.report_run_canceled(run)
    assert device_runs.heed_cancelled_runs(place.instance, place.registry) == 1
    assert place.session.obey(work)
    told(place)
    assert place.status(run.run_id) == Status.CANCELED


def test_many_small_batches_share_runs_and_few_do_not(place, monkeypatch):
    monkeypatch.setattr("tunes_dagster.registry.device_runs.OWN_RUNS", 3)
    tune = place.prepared()
    place.session.finish(place.session.begin("train", tune.id))
    finished = place.session.begin("finish", tune.id)
    place.session.finish(
        finished, {"report_card": {"likeness": 0.6, "base_likeness": 0.2, "verdict": "good"}}
    )
    for number in range(8):
        submit.submit_prompt(
            Installation(place.house.settings, registry=place.registry, catalog=place.installation.catalog),
            PromptRequest(text=f"a secret wish {number}", tune=tune.id),
        )
        place.registry.groups.make_batches(wait_seconds=0)
    batches = [work.subject_id for work in place.registry.work.queued("render")]
    assert len(batches) == 8
    for batch in batches:
        place.session.finish(place.session.begin("render", batch))
    runs = place.requested()
    assert len(runs) == 2 + 3
    assert place.requested() == []
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now + timedelta(seconds=31))
    (shared,) = place.requested()
    told(place)
    assert {place.status(one) for one in [*runs, shared]} == {Status.SUCCESS}
    (made,) = place.instance.fetch_materializations(
        dg.AssetRecordsFilter(dg.AssetKey("renders"), asset_partitions=[batches[3]]), limit=2
    ).records
    assert made.asset_materialization.metadata["prompts"].value == 5
    shared_version = made.asset_materialization.tags["dagster/data_version"]
    assert "secret" not in " ".join(str(e) for one in [*runs, shared] for e in place.instance.all_logs(one))
    evaluated = place.instance.fetch_materializations(dg.AssetKey("report_card"), limit=1).records
    assert evaluated[0].asset_materialization.metadata["likeness"].value == 0.6
    card = place.registry.tunes.get(tune.id).made.report_card
    version = evaluated[0].asset_materialization.tags["dagster/data_version"]
    assert version == version_of_card(card.model_copy(update={"seconds": 9.0, "page_key": "another"}))
    assert version != version_of_card(card.model_copy(update={"likeness": 0.5}))
    in_it = [p for one in batches[3:] for p in place.registry.prompts.rows(batch_id=one)]
    assert len(in_it) == 5 and shared_version == version_of_renders(in_it) != version_of_renders(in_it[:4])


def test_what_is_deleted_leaves_nothing_in_dagster(place):
    kept, gone = place.prepared("ann"), place.prepared("bob")
    for tune in (kept, gone):
        place.session.finish(place.session.begin("train", tune.id))
    runs = place.requested()
    told(place)
    place.registry.work.delete_tune(gone.id)
    forget_tunes(place.instance, place.registry, [gone.id])
    records = place.instance.fetch_materializations(dg.AssetKey("lora"), limit=5).records
    assert [one.partition_key for one in records] == [kept.id]
    assert place.instance.get_run_by_id(runs[1]) is None and place.status(runs[0]) == Status.SUCCESS
    assert not place.registry.device_runs.of_run(runs[1])


def test_a_run_that_somebody_deleted_is_told_no_more(place):
    tune = place.prepared()
    work = place.session.begin("train", tune.id)
    (run_id,) = place.requested()
    place.instance.delete_run(run_id)
    place.session.finish(work)
    told(place)
    assert place.teller.tell().runs == 0 and not place.instance.all_logs(run_id)
