"""Which runs of device work are handed to a session, whoever started them, and which have a process of their own."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg
import pytest
from dagster import DagsterRunStatus as Status
from dagster._core.events import DagsterEvent, DagsterEventType

from tests.support.told_places import DEFS, told
from tunes_dagster.assets import all_assets, following
from tunes_dagster.core import clock
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import PromptRequest
from tunes_dagster.core.settings import get_settings
from tunes_dagster.pipeline import session_sensors
from tunes_dagster.pipeline.launcher import DEVICE_RUN_TAG, device_kinds
from tunes_dagster.pipeline.launches import cancel_what_people_cancelled, run_config
from tunes_dagster.resources import default_resources, installed
from tunes_dagster.service import decide, submit
from tunes_dagster.service.installation import Installation
from tunes_dagster.sessions.batches import wanted_prompts
from tunes_dagster.sessions.journal import Outcome


def test_by_hand_it_is_handed_to_the_session_that_is_there(place):
    busy, tune = place.prepared("ann"), place.prepared("bob")
    place.session.beat()
    place.session.begin("train", busy.id)
    place.instance.add_dynamic_partitions("tunes", [tune.id])
    config = {"ops": {"lora": {"config": {"steps": 5}}}}
    run_id = place.by_hand(["lora", "report_card"], tune.id, config)
    assert place.status(run_id) == Status.STARTED
    (work,) = place.registry.work.of(tune.id, "train")
    assert work.state == "queued" and place.registry.device_runs.changes_of(work) == {"steps": 5}
    mine = place.session.begin("train", tune.id)
    assert place.registry.device_runs.changes_of(mine) == {"steps": 5}
    place.session.finish(mine)
    told(place)
    assert place.status(run_id) == Status.STARTED
    place.session.finish(place.session.begin("finish", tune.id), {"report_card": {}})
    told(place)
    assert place.status(run_id) == Status.SUCCESS
    events = place.kinds(run_id)
    assert events.count("PIPELINE_START") == 1 and events.count("ASSET_MATERIALIZATION") == 2


def test_by_hand_what_is_done_already_is_refused_with_a_reason(place):
    tune = place.prepared()
    place.session.beat()
    place.session.begin("train", tune.id)
    place.instance.add_dynamic_partitions("tunes", [tune.id])
    run_id = place.by_hand(["lora"], tune.id)
    assert place.status(run_id) == Status.FAILURE
    assert "is being done by session_paper" in str(place.instance.all_logs(run_id)[-1])


def test_the_health_of_a_run_is_the_heartbeat_of_its_row(place, monkeypatch):
    tune = place.prepared()
    work = place.session.begin("train", tune.id)
    (run_id,) = place.requested()
    run, launcher = place.instance.get_run_by_id(run_id), place.instance.run_launcher
    assert launcher.check_run_worker_health(run).status.value == "RUNNING"
    now = clock.now() + timedelta(seconds=4 * place.house.settings.lost_after_seconds)
    monkeypatch.setattr(clock, "now", lambda: now)
    assert launcher.check_run_worker_health(run).status.value == "FAILED"
    place.registry.work.heartbeat(work.id, place.session.name)
    assert launcher.check_run_worker_health(run).status.value == "RUNNING"


@pytest.mark.parametrize(
    ("job", "assets", "kinds"),
    [
        ("render_batch", None, ["render"]),
        ("train_tune", None, ["train"]),
        ("__ASSET_JOB", ["report_card", "lora"], ["train", "finish"]),
        ("__ASSET_JOB", ["captions", "lora"], []),
        ("__ASSET_JOB", None, []),
        ("prepare_tune", None, []),
        ("train_cohort", None, []),
    ],
)
def test_device_work_is_known_by_what_a_run_selects(job, assets, kinds):
    selection = frozenset(dg.AssetKey(name) for name in assets) if assets else None
    run = dg.DagsterRun(job_name=job, run_id="r", asset_selection=selection)
    assert device_kinds(run) == kinds


def test_all_other_runs_go_to_the_launcher_that_is_wrapped(place, monkeypatch):
    launched = []
    wrapped = type(place.instance.run_launcher._wrapped)
    monkeypatch.setattr(
        wrapped, "launch_run", lambda _self, context: launched.append(context.dagster_run.run_id)
    )
    tune = place.prepared()
    place.instance.add_dynamic_partitions("tunes", [tune.id])
    nobody = place.by_hand(["lora"], tune.id)  # no session is there
    mixed = place.by_hand(["captions", "lora"], tune.id)
    assert launched == [nobody, mixed]
    monkeypatch.setenv("TUNES_SESSIONS", "false")
    get_settings.cache_clear()
    place.instance.run_launcher.__dict__.pop("_settings", None)
    off = place.created("train_tune", tune.id, {DEVICE_RUN_TAG: "drun_1"})
    place.instance.launch_run(off, None)
    assert launched == [nobody, mixed, off]


def test_a_process_that_wants_the_device_follows_the_session_that_has_it(place, monkeypatch):
    """`dagster asset materialize`, and runs that also prepare."""
    busy, tune = place.prepared("ann"), place.prepared("bob")
    place.session.beat()
    place.session.begin("train", busy.id)
    place.instance.add_dynamic_partitions("tunes", [tune.id])

    def works(_seconds: float) -> None:
        kind = "train" if place.house.status(tune.id) == "prepared" else "finish"
        work = place.session.begin(kind, tune.id)
        place.session.journal.line(work, f"{kind} 3/12")
        place.session.finish(work, {"report_card": {}} if kind == "finish" else {})

    monkeypatch.setattr(following, "sleep", works)
    everything = all_assets(place.house.settings)
    selected = [one for one in everything if one.key.to_user_string() in ("lora", "report_card")]
    ran = dg.materialize(
        [
            *selected,
            *(
                one.to_source_asset()
                for one in everything
                if one not in selected and one.key.path != ["renders"]
            ),
        ],
        selection=selected,
        instance=place.instance,
        partition_key=tune.id,
        resources=DEFS.resources,
        raise_on_error=False,
    )
    assert ran.success and place.house.status(tune.id) == "ready"
    (made,) = place.instance.fetch_materializations(dg.AssetKey("lora"), limit=2).records
    assert made.partition_key == tune.id and made.asset_materialization.metadata["steps"].value == 12
    told(place)
    events = place.kinds(ran.run_id)
    assert events.count("ASSET_MATERIALIZATION") == 2 and events.count("PIPELINE_START") == 1
    assert {"train 3/12", "finish 3/12"} <= {one.rsplit(" - ", 1)[-1] for one in events}


def test_a_session_is_started_when_something_waits_and_none_is_there(place, monkeypatch):
    rows = installed(default_resources())

    def look() -> dg.SensorResult:
        with dg.build_sensor_context(instance=place.instance, resources={"installation": rows}) as context:
            return session_sensors.device_runs(context)

    assert not look().run_requests
    place.prepared()
    assert not look().run_requests  # whoever keeps a session at hand starts it sooner
    later = clock.now() + timedelta(seconds=20)
    monkeypatch.setattr(clock, "now", lambda: later)
    (asked,) = look().run_requests
    run_id = place.created("device_session", "")
    place.instance.report_dagster_event(
        DagsterEvent(DagsterEventType.RUN_START.value, "device_session"), run_id=run_id
    )
    assert not look().run_requests  # it is about to begin
    place.registry.sessions.beat("session_1", "here", "cpu", run_id)
    assert not look().run_requests  # it is there
    now = clock.now()
    monkeypatch.setattr(clock, "now", lambda: now + timedelta(seconds=90))
    assert len(look().run_requests) == 1  # it died
    assert place.status(run_id) == Status.FAILURE and asked.run_key.startswith("session_")


def test_what_a_session_had_goes_on_as_soon_as_dagster_saw_its_process_die(place):
    tune, hosting = place.prepared(), place.created("device_session", "")
    place.registry.sessions.hold(place.session.name, "here", "cpu", hosting)
    work = place.session.begin("train", tune.id)
    session_sensors.give_up_dead(place.instance, place.installation)
    assert place.registry.work.get(work.id).state == "running"
    place.instance.report_run_failed(place.instance.get_run_by_id(hosting))
    session_sensors.give_up_dead(place.instance, place.installation)
    assert place.registry.work.get(work.id).state == "queued"
    assert not place.registry.sessions.any_alive(60)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_further_session_is_started_while_something_waits_and_a_device_is_free(place, monkeypatch, devices):
    monkeypatch.setattr(session_sensors, "_counted", {place.house.settings.device: devices})
    rows = place.registry
    place.prepared()
    later = clock.now() + timedelta(seconds=20)
    monkeypatch.setattr(clock, "now", lambda: later)
    for number in (1, 2):
        hosting = place.created("device_session", "")
        rows.sessions.beat(f"session_{number}", "here", f"cuda:{number}", hosting)
        wanted = session_sensors.session_is_wanted(place.instance, place.installation)
        assert wanted == (number < devices), number
    rows.sessions.beat("session_2", "here", "cuda:2", over=True)
    rows.sessions.beat("keeper_1", "here", "")
    assert not session_sensors.session_is_wanted(place.instance, place.installation), "a keeper sees to them"


@pytest.mark.parametrize("alive", [True, False])
def test_runs_that_were_asked_for_before_there_were_sessions_leave_their_work_to_one(
    place, monkeypatch, alive
):
    launched = []
    wrapped = type(place.instance.run_launcher._wrapped)
    monkeypatch.setattr(
        wrapped, "launch_run", lambda _self, context: launched.append(context.dagster_run.run_id)
    )
    if alive:
        place.session.beat()
    tune = place.prepared()
    (launch,) = decide.cohort_launches(place.installation, limit=1)
    run_id = place.created("train_cohort", "", {"dagster/run_key": launch.run_key}, config=run_config(launch))
    place.instance.launch_run(run_id, None)
    assert not launched and place.status(run_id) == Status.CANCELED
    cancel_what_people_cancelled(place.instance, place.registry)
    (work,) = place.registry.work.of(tune.id, "train")
    assert (work.state, work.tries, place.house.status(tune.id)) == ("queued", 0, "prepared")
    place.session.finish(place.session.begin("train", tune.id))

    (launch,) = decide.finish_launches(place.registry, limit=1)
    run_id = place.created("finish_tune", tune.id, {"dagster/run_key": launch.run_key})
    place.instance.launch_run(run_id, None)
    if not alive:  # its own process claims what it was launched for
        assert launched == [run_id]
        return
    place.session.finish(place.session.begin("finish", tune.id), {"report_card": {}})
    told(place)
    assert (place.house.status(tune.id), place.status(run_id)) == ("ready", Status.SUCCESS)


def rendered(place) -> str:
    """Return a batch of two prompts, one of which failed."""
    tune = place.prepared()
    place.session.finish(place.session.begin("train", tune.id))
    place.session.finish(place.session.begin("finish", tune.id), {"report_card": {}})
    for text in ("one", "two"):
        asked = PromptRequest(text=text, tune=tune.id)
        submit.submit_prompt(
            Installation(place.house.settings, registry=place.registry, catalog=place.installation.catalog),
            asked,
        )
    place.registry.groups.make_batches(wait_seconds=0)
    (queued,) = place.registry.work.queued("render")
    work = place.session.begin("render", queued.subject_id)
    first, second = place.registry.prompts.rows(batch_id=queued.subject_id)
    place.registry.prompts.done(first.id, work.id, place.session.name, ["batches/x/1.png"], {})
    why = Failure(FailureCode.RENDER_FAILED, "It failed.")
    place.registry.prompts.failed(second.id, work.id, place.session.name, why)
    place.registry.work.finish(work.id, place.session.name, result={})
    place.session.journal.ended(work, Outcome("done"))
    place.session.beat()
    return queued.subject_id


def test_a_run_that_is_executed_again_does_what_is_left_and_then_says_that_nothing_is(place):
    batch = rendered(place)
    parent = place.requested()[-1]
    told(place)
    assert place.status(parent) == Status.SUCCESS

    def again() -> str:
        run = place.instance.get_run_by_id(parent)
        made = place.instance.create_run_for_job(
            job_def=place.defs.resolve_job_def(run.job_name),
            tags=run.tags,
            parent_run_id=parent,
            root_run_id=parent,
            remote_job_origin=run.remote_job_origin,
        )
        place.instance.launch_run(made.run_id, None)
        return made.run_id

    run_id = again()
    work = place.session.begin("render", batch)
    wanted = wanted_prompts(
        place.registry,
        place.registry.groups.batch(batch),
        work,
        not place.registry.device_runs.is_rest(work),
    )
    assert [one.text for one in wanted] == ["two"]
    place.session.finish(work)
    told(place)
    assert place.status(run_id) == Status.SUCCESS
    refused = again()
    assert place.status(refused) == Status.FAILURE
    assert "nothing of it is left" in str(place.instance.all_logs(refused)[-1])


def test_a_batch_that_is_rendered_again_by_hand_goes_on_until_it_is_terminated(place):
    batch = rendered(place)
    place.session.finish(place.session.begin("render", batch))
    place.instance.add_dynamic_partitions("render_batches", [batch])
    run_id = place.by_hand(["renders"], batch)
    work = place.session.begin("render", batch)
    assert len(wanted_prompts(place.registry, place.registry.groups.batch(batch), work)) == 2
    assert place.registry.work.heartbeat(work.id, place.session.name) == "", "though no prompt of it is open"
    assert place.instance.run_launcher.terminate(run_id)
    with pytest.raises(Failure):
        place.registry.work.heartbeat(work.id, place.session.name)
    told(place)
    assert place.status(run_id) == Status.CANCELED
    assert {one.status for one in place.registry.prompts.rows(batch_id=batch)} == {"done"}
