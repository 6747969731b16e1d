"""Cohorts through the real job, in this process: members leave and join, and each is told about by itself."""

from __future__ import annotations

import threading
import time

import dagster as dg
import pytest

from tests.dagster.test_pipeline import checks, drive_until, materialization
from tests.support.registry import Clock, add_tune, run_stage
from tunes_dagster.assets.names import LORA
from tunes_dagster.definitions import build_defs
from tunes_dagster.intake.training_set import TrainingSet
from tunes_dagster.pipeline.inprocess import execute
from tunes_dagster.pipeline.launches import RUN_KEY_TAG
from tunes_dagster.registry import Registry
from tunes_dagster.service import decide
from tunes_dagster.service.installation import Installation


def wait_for(condition, seconds: float = 120) -> None:
    """Wait until a condition holds, or for so long that the test fails by what it looks at."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)


def test_one_is_cancelled_one_kept_one_fails_one_joins_and_one_is_trained(house, monkeypatch):
    from tunes_dagster.training import loop

    monkeypatch.setattr(loop, "SECONDS_BETWEEN_LOOKS", 0.0)
    endless = {"steps": 3000, "checkpoint_every": 3000}
    good, bad = house.submit("good"), house.submit("bad")
    stopped, kept = (house.submit(title, training=endless) for title in ("stopped", "kept"))
    members = [tune.id for tune in (good, bad, stopped, kept)]
    drive_until(house, *members, status=("prepared",))
    (launch,) = decide.cohort_launches(Installation(house.settings, registry=house.registry))
    late = house.submit("late", training={"rank": 8})
    drive_until(house, late.id, status=("prepared",))
    for item in TrainingSet.load(house.store, bad.id).training:
        house.store.write_bytes(item.key, b"not a picture")
    # As if it had ended long ago, before it was asked for again.
    house.instance.delete_dynamic_partition("tunes", good.id)
    seen: dict[str, tuple[int, int | None]] = {}

    def meddle() -> None:
        def row(tune):
            return house.registry.tunes.get(tune.id)

        wait_for(lambda: all(row(tune).phase == "training" and row(tune).step for tune in (stopped, kept)))
        wait_for(lambda: row(late).status == "trained" and row(good).status == "trained")
        seen.update({tune.id: (row(tune).step, row(tune).total_steps) for tune in (stopped, kept)})
        house.registry.work.cancel_tune(stopped.id)
        wait_for(lambda: row(stopped).status == "cancelled")
        assert row(kept).status == "training"
        house.registry.work.cancel_tune(kept.id, keep=True)

    person = threading.Thread(target=meddle)
    person.start()
    assert not execute(build_defs(), house.instance, launch)
    person.join()

    assert house.instance.has_dynamic_partition("tunes", good.id)
    status = {tune.title: house.status(tune.id) for tune in (good, bad, stopped, kept, late)}
    assert status == {
        "good": "trained",
        "bad": "failed",
        "stopped": "cancelled",
        "kept": "trained",
        "late": "trained",
    }
    (run,) = house.instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: launch.run_key}))
    assert run.status == dg.DagsterRunStatus.FAILURE
    # One run did it all, the joiner's part too.
    assert {house.registry.work.of(t, "train")[0].run_id for t in (*members, late.id)} == {run.run_id}
    assert all(0 < step < 3000 and total == 3000 for step, total in seen.values()) and len(seen) == 2
    passed = {"finite_weights": True, "loads_into_fresh_pipeline": True, "differs_from_base": True}
    for tune in (good, kept, late):
        shown = materialization(house, LORA, tune.id)
        result = house.registry.tunes.get(tune.id).result
        assert (
            shown["steps"] == result["steps"]
            and shown["recipe_of_the_weights"] == result["weights_recipe_hash"]
        )
        assert checks(house, LORA, tune.id) == passed
        assert result["stopped"] is (tune is kept)
    assert 0 < house.registry.tunes.get(kept.id).result["steps"] < 3000
    for tune in (bad, stopped):
        assert not house.instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=LORA, asset_partitions=[tune.id]), limit=1
        ).records
        assert not checks(house, LORA, tune.id)
    assert any("/checkpoints/" in key for key in house.store.list(f"tunes/{stopped.id}/lora"))
    drive_until(house, good.id, kept.id, late.id)
    assert {house.status(tune.id) for tune in (good, kept, late)} == {"ready"}


def test_who_may_join_a_cohort(tmp_path):
    clock = Clock()
    rows = Registry(f"sqlite:///{tmp_path}/registry.db", now=clock)

    def prepared(rows: Registry, **changes) -> str:
        tune = add_tune(rows, **changes)
        run_stage(rows, "prepare", tune.id)
        clock.forward(1)
        return tune.id

    first = prepared(rows)
    ((cohort, _),) = rows.groups.make_cohorts(wait_seconds=0)
    rows.work.claim_cohort(cohort.id, "run-1")
    other_base, waiting = prepared(rows, base_id="tiny-flux"), prepared(rows)
    launched = prepared(rows)
    assert rows.work.join_cohort("cohort_unknown", "run-1", 9) == []
    assert rows.work.join_cohort(cohort.id, "run-1", 0) == []
    (joined,) = rows.work.join_cohort(cohort.id, "run-1", 1, [first])
    assert (joined.subject_id, joined.state, joined.attempt) == (waiting, "running", 1)
    assert {work.subject_id for work in rows.work.claim_cohort(cohort.id, "run-1")} == {first, waiting}

    # Launched by itself just now: its run may begin at any moment. After a while it waits for this very run.
    started = [c for c, works in rows.groups.make_cohorts(wait_seconds=0) if works[0].subject_id == launched]
    here = [first, waiting]
    assert rows.work.join_cohort(cohort.id, "run-1", 9, here) == []
    clock.forward(11)
    (taken,) = rows.work.join_cohort(cohort.id, "run-1", 9, here)
    assert (taken.subject_id, taken.attempt, taken.cohort_id) == (launched, 2, cohort.id)
    assert rows.work.claim_cohort(started[0].id, "run-2") == []
    assert rows.work.heartbeat(taken.id, "run-1") == ""
    assert rows.work.of(other_base, "train")[0].cohort_id != cohort.id
    rows.close()


def cohort_job() -> dg.JobDefinition:
    """What a re-execution loads."""
    return build_defs().resolve_job_def("train_cohort")


def from_failure(house, run_id: str) -> dg.DagsterRun:
    """Execute a run again as the button "from failure" does; returns the new run."""
    options = dg.ReexecutionOptions.from_failure(run_id, house.instance)
    again = dg.execute_job(
        dg.reconstructable(cohort_job), house.instance, reexecution_options=options, raise_on_error=False
    )
    return house.instance.get_run_by_id(again.run_id)


def trainings(house, tune) -> tuple[str, int, str | None]:
    (work,) = house.registry.work.of(tune.id, "train")
    return work.state, work.attempt, work.failure_message


def why(house, run: dg.DagsterRun) -> str:
    (event,) = house.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    return event.dagster_event.step_failure_data.user_failure_data.description


@pytest.mark.slow
def test_a_run_that_is_executed_again_does_what_failed_and_is_still_wanted(house):
    good, bad, worse, unwanted = (house.submit(name) for name in ("good", "bad", "worse", "unwanted"))
    members = [tune.id for tune in (good, bad, worse, unwanted)]
    drive_until(house, *members, status=("prepared",))
    (launch,) = decide.cohort_launches(Installation(house.settings, registry=house.registry))
    whole = {}
    for tune in (bad, worse, unwanted):
        for item in TrainingSet.load(house.store, tune.id).training:
            whole[item.key] = house.store.read_bytes(item.key)
            house.store.write_bytes(item.key, b"not a picture")
    assert not execute(build_defs(), house.instance, launch)
    (first,) = house.instance.get_runs(dg.RunsFilter(tags={RUN_KEY_TAG: launch.run_key}))
    drive_until(house, good.id)
    before = house.registry.tunes.get(good.id)
    house.registry.work.delete_tune(unwanted.id)
    for item in TrainingSet.load(house.store, bad.id).training:
        house.store.write_bytes(item.key, whole[item.key])

    second = from_failure(house, first.run_id)
    assert second.status == dg.DagsterRunStatus.FAILURE and second.parent_run_id == first.run_id
    assert trainings(house, good)[:2] == ("done", 1) and trainings(house, bad)[:2] == ("done", 2)
    assert trainings(house, worse)[:2] == ("failed", 2) and trainings(house, unwanted)[:2] == ("failed", 1)
    assert house.registry.tunes.get(good.id).result == before.result and house.status(good.id) == "ready"

    # Again, by the first run and by the second: only what is still broken, as often as somebody tries.
    reasons = {tune.id: trainings(house, tune) for tune in (good, bad, unwanted)}
    assert from_failure(house, first.run_id).status == dg.DagsterRunStatus.FAILURE
    assert trainings(house, worse)[:2] == ("failed", 3)
    for item in TrainingSet.load(house.store, worse.id).training:
        house.store.write_bytes(item.key, whole[item.key])
    assert from_failure(house, second.run_id).status == dg.DagsterRunStatus.SUCCESS
    assert trainings(house, worse)[:2] == ("done", 4)
    assert {tune.id: trainings(house, tune) for tune in (good, bad, unwanted)} == reasons

    # Nothing is left, which is said.
    last = from_failure(house, first.run_id)
    assert last.status == dg.DagsterRunStatus.FAILURE
    assert f"tune {good.number} is trained (ready)" in why(house, last)
    assert f"tune {unwanted.number} was deleted" in why(house, last)
