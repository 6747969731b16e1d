"""What the sensors launch, and what they give up."""

from __future__ import annotations

from tests.support.registry import Clock, add_prompt, add_tune, make_ready, prompt_request, run_stage
from tunes_dagster.core.settings import Settings
from tunes_dagster.registry import Registry
from tunes_dagster.service import decide
from tunes_dagster.service.installation import Installation

SETTINGS = Settings(cohort_wait_seconds=2, max_cohort=3, batch_wait_seconds=2, max_batch_prompts=8)


def prepared(registry: Registry, **changes: object) -> str:
    tune = add_tune(registry, **changes)
    run_stage(registry, "prepare", tune.id)
    return tune.id


def test_prepare_launches_the_longest_waiting_first(registry: Registry, clock: Clock) -> None:
    tunes = []
    for _ in range(3):
        tunes.append(add_tune(registry))
        clock.forward(1)
    launches = decide.prepare_launches(registry, limit=2)
    assert [launch.partition for launch in launches] == [tunes[0].id, tunes[1].id]
    first = launches[0]
    assert first.run_key == f"{first.work_id}:1" and first.tags["tunes/tune"] == tunes[0].id
    assert {type(tag) for tag in first.tags.values()} == {str}, "Dagster keeps no others"
    assert [launch.partition for launch in decide.prepare_launches(registry)] == [tunes[2].id]
    assert decide.prepare_launches(registry) == []


def test_cohorts_by_base_full_or_after_a_wait(registry: Registry, clock: Clock) -> None:
    tiny = [prepared(registry) for _ in range(4)]
    other = prepared(registry, base_id="sdxl1")
    (full,) = decide.cohort_launches(Installation(SETTINGS, registry=registry))
    assert full.run_key == full.cohort_id and full.tags["tunes/tunes"] == "3"
    assert {type(tag) for tag in full.tags.values()} == {str}, "Dagster keeps no others"
    clock.forward(2)
    rest = decide.cohort_launches(Installation(SETTINGS, registry=registry))
    assert {launch.tags["tunes/base"] for launch in rest} == {"tiny-sdxl", "sdxl1"}
    assert {launch.tags["tunes/tune"] for launch in rest} == {tiny[3], other}
    members = registry.work.claim_cohort(full.cohort_id or "", "run")
    assert {work.subject_id for work in members} == set(tiny[:3])
    assert len(registry.work.claim_cohort(full.cohort_id or "", "run")) == 3, "claiming again is fine"
    assert registry.work.claim_cohort(full.cohort_id or "", "other-run") == []


def test_members_leave_a_cohort_before_and_while_it_runs(registry: Registry, clock: Clock) -> None:
    tunes = [prepared(registry) for _ in range(3)]
    (launch,) = decide.cohort_launches(Installation(SETTINGS, registry=registry))
    cohort = launch.cohort_id or ""
    registry.work.cancel_tune(tunes[0])
    members = registry.work.claim_cohort(cohort, "run")
    assert {work.subject_id for work in members} == set(tunes[1:])
    first, second = members
    registry.work.finish(first.id, "run")
    registry.work.fail(second.id, "run", RuntimeError("nan"))
    clock.forward(10)
    (again,) = decide.cohort_launches(Installation(SETTINGS, registry=registry))
    assert again.cohort_id != cohort
    (member,) = registry.work.claim_cohort(again.cohort_id or "", "run-2")
    assert member.subject_id == second.subject_id and member.attempt == 2


def test_what_finds_no_gpu_waits_in_the_registry_and_finds_company(registry: Registry, clock: Clock) -> None:
    for _ in range(decide.WAITING_RUNS["render"] + 3):
        add_prompt(registry, prompt_request(), base_id="tiny-sdxl")
        clock.forward(3)
        decide.render_launches(Installation(SETTINGS, registry=registry))
    assert registry.work.count_waiting_runs("render") == decide.WAITING_RUNS["render"]
    first = registry.work.active()[0]
    registry.work.claim("render", first.subject_id, "run", run_key=first.run_key)
    (launch,) = decide.render_launches(Installation(SETTINGS, registry=registry))
    assert len(registry.prompts.rows(batch_id=launch.partition)) == 3
    for _ in range(decide.WAITING_RUNS["train"] * SETTINGS.max_cohort + 1):
        prepared(registry)
    clock.forward(3)
    assert (
        len(decide.cohort_launches(Installation(SETTINGS, registry=registry))) == decide.WAITING_RUNS["train"]
    )
    assert decide.cohort_launches(Installation(SETTINGS, registry=registry)) == []


def test_finish_and_render_launches(registry: Registry, clock: Clock) -> None:
    tune = add_tune(registry, prompts=[prompt_request(), prompt_request()])
    run_stage(registry, "prepare", tune.id)
    run_stage(registry, "train", tune.id)
    (finish,) = decide.finish_launches(registry)
    work = registry.work.claim("finish", tune.id, "run", run_key=finish.run_key)
    registry.work.finish(work.id, "run")
    assert decide.render_launches(Installation(SETTINGS, registry=registry)) == []
    clock.forward(2)
    (render,) = decide.render_launches(Installation(SETTINGS, registry=registry))
    assert render.partition == render.tags["tunes/batch"]
    assert len(registry.prompts.rows(batch_id=render.partition)) == 2


def stuck(registry: Registry, clock: Clock, answer: bool | None) -> list[decide.Stuck]:
    return decide.find_stuck(registry, clock(), lambda _name: answer, decide.Patience(lost_after_seconds=60))


def test_a_tick_that_died_after_submitting(registry: Registry, clock: Clock) -> None:
    tune = add_tune(registry)
    decide.prepare_launches(registry)
    clock.forward(60)
    assert stuck(registry, clock, None) == [], "the tick may still be at it"
    clock.forward(61)
    assert stuck(registry, clock, True) == [], "its run waits in Dagster's queue"
    (one,) = stuck(registry, clock, None)
    assert one.work.state == "queued" and "No run came" in one.reason
    clock.forward(10)
    (launch,) = decide.prepare_launches(registry)
    assert launch.run_key.endswith(":2") and launch.partition == tune.id


def test_a_run_that_died_before_it_claimed(registry: Registry, clock: Clock) -> None:
    add_tune(registry)
    (launch,) = decide.prepare_launches(registry)
    asked = []
    decide.find_stuck(registry, clock(), lambda name: asked.append(name) or False)
    assert asked == [launch.run_key]
    (work,) = registry.work.of(launch.partition or "")
    assert work.state == "queued" and work.tries == 0


def test_a_killed_run_is_noticed_at_once_and_a_silent_one_in_time(registry: Registry, clock: Clock) -> None:
    tune = add_tune(registry)
    registry.work.claim("prepare", tune.id, "run")
    assert stuck(registry, clock, True) == []
    (one,) = stuck(registry, clock, False)
    assert one.work.state == "queued" and "ended" in one.reason
    work = registry.work.claim("prepare", tune.id, "run-2")
    clock.forward(50)
    registry.work.heartbeat(work.id, "run-2")
    clock.forward(50)
    assert stuck(registry, clock, None) == []
    clock.forward(11)
    (one,) = stuck(registry, clock, True)
    assert "silent for 1 min 1 s" in one.reason
    assert [row.id for row in registry.work.stuck(clock(), 60)] == []


def test_work_that_keeps_dying_fails_with_the_reason(registry: Registry, clock: Clock) -> None:
    tune = add_tune(registry)
    for attempt in range(3):
        registry.work.claim("prepare", tune.id, f"run-{attempt}")
        (one,) = stuck(registry, clock, False)
        clock.forward(300)
    assert one.work.state != "queued"
    row = registry.tunes.get(tune.id)
    assert (row.status, row.failure_code) == ("failed", "run_lost") and "run-2" in (row.failure_message or "")


def test_launches_that_never_come_to_anything_fail_in_the_end(registry: Registry, clock: Clock) -> None:
    tune = add_tune(registry)
    rounds = 0
    while registry.tunes.get(tune.id).status == "queued":
        rounds += 1
        clock.forward(500)
        assert len(decide.prepare_launches(registry)) == 1
        assert len(stuck(registry, clock, False)) == 1
    assert rounds == 10 and registry.tunes.get(tune.id).failure_code == "run_lost"


def test_a_row_that_moved_since_it_was_looked_at_is_left_alone(registry: Registry, clock: Clock) -> None:
    tune = add_tune(registry)
    work = registry.work.claim("prepare", tune.id, "run")
    (seen,) = registry.work.active()
    clock.forward(100)
    registry.work.heartbeat(work.id, "run")
    assert registry.work.requeue_lost(work.id, "silent", seen=seen) is None
    assert registry.work.get(work.id).state == "running"


def test_a_dead_ui_run_on_a_ready_tune_disturbs_nothing(registry: Registry, clock: Clock) -> None:
    tune = make_ready(registry, add_tune(registry))
    work = registry.work.claim("train", tune.id, "ui-run", origin="ui")
    (one,) = stuck(registry, clock, False)
    assert one.work.state != "queued" and registry.work.get(work.id).state == "failed"
    assert registry.tunes.get(tune.id).status == "ready"


def test_work_that_takes_too_long_is_given_up_however_alive_it_is(registry: Registry, clock: Clock) -> None:
    """By its kind: what prepares has an hour, what trains beside it has a day."""
    slow, other = add_tune(registry), prepared(registry)
    work = registry.work.claim("prepare", slow.id, "run")
    registry.work.claim("train", other, "run-2")
    hours = {"prepare": 3600.0, "train": 86_400.0}
    patience = decide.Patience(lost_after_seconds=10**6, longest=hours.__getitem__)

    def given_up() -> list[decide.Stuck]:
        for _ in range(2):
            registry.work.heartbeat(work.id, "run")
            clock.forward(1)
        return decide.find_stuck(registry, clock(), lambda _name: True, patience)

    clock.forward(3590)
    assert given_up() == []
    clock.forward(10)
    (one,) = given_up()
    assert one.work.subject_id == slow.id and one.work.state == "queued" and one.run_id == "run"
    assert "prepare took longer than" in one.reason and "TUNES_LONGEST_PREPARE_SECONDS" in one.reason
    for number in range(2, SETTINGS.max_attempts + 1):
        clock.forward(200)
        work = registry.work.claim("prepare", slow.id, f"run-{number}")
        clock.forward(3601)
        (one,) = decide.find_stuck(registry, clock(), lambda _name: True, patience)
    assert one.work.state == "failed" and one.work.failure_code == "timed_out"


def test_a_part_of_the_dataset_leaves_the_rest_in_the_queue(registry: Registry) -> None:
    tune = add_tune(registry)
    work = registry.work.claim("prepare", tune.id, "ui-run", origin="ui")
    for _ in range(2):  # the answer to the first may have been lost
        after = registry.work.finish(work.id, "ui-run", result={"pictures": {}}, continue_=False, whole=False)
        assert (after.state, registry.tunes.get(tune.id).status) == ("queued", "queued")
    (launch,) = decide.prepare_launches(registry)
    assert (launch.partition, registry.audit.faults()) == (tune.id, [])
    make_ready(registry, tune)
    run_stage(registry, "prepare", tune.id, continue_=False, whole=False)
    assert registry.tunes.get(tune.id).status == "ready" and not decide.prepare_launches(registry)


def test_a_tune_whose_next_work_nobody_opened_goes_on_once_its_run_is_over(
    registry: Registry, clock: Clock
) -> None:
    tune = add_tune(registry)
    run_stage(registry, "prepare", tune.id, "ui-run", continue_=False)  # it meant to train in the same run
    clock.forward(61)
    asked: list[str] = []
    decide.find_stuck(registry, clock(), lambda name: asked.append(name) or True)
    assert asked == ["ui-run"] and not registry.work.queued("train")
    assert stuck(registry, clock, False) == []
    (work,) = registry.work.queued("train")
    assert work.subject_id == tune.id and registry.audit.faults() == []
