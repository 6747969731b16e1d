"""One owner of attempts: races, late writers, crashes, retries, what a person does in between."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.registry import Clock, add_tune, make_ready, prompt_request, run_stage
from tunes_dagster.core.failures import Cancelled, Failure, FailureCode
from tunes_dagster.registry import Registry, Work


def submitted(registry: Registry, kind: str = "prepare") -> Work:
    (queued,) = registry.work.queued(kind)
    (work,) = registry.work.submit([queued.id])
    return work


def refused(call: Callable[[], Any], code: FailureCode = FailureCode.CONFLICT) -> Failure:
    with pytest.raises(Failure) as error:
        call()
    assert error.value.code == code
    return error.value


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """Run calls from threads that start together; exceptions are results."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> Any:
        barrier.wait()
        try:
            return call()
        except Failure as failure:
            return failure

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def test_two_ticks_win_each_row_once(registry: Registry) -> None:
    for _ in range(6):
        add_tune(registry)
    ids = [work.id for work in registry.work.queued("prepare")]
    won = at_once([lambda: registry.work.submit(ids)] * 4)
    assert sorted(work.id for group in won for work in group) == sorted(ids)


def test_two_claimers_one_owner(registry: Registry) -> None:
    tune = add_tune(registry)
    answers = at_once([lambda i=i: registry.work.claim("prepare", tune.id, f"run-{i}") for i in range(4)])
    (owner,) = [answer for answer in answers if isinstance(answer, Work)]
    losers = [answer for answer in answers if isinstance(answer, Failure)]
    assert len(losers) == 3
    assert all(f"run {owner.run_id}" in loser.message.replace("by run", "run") for loser in losers)
    assert (owner.attempt, owner.tries) == (1, 1)


def test_two_claimers_of_work_that_is_not_open_yet(registry: Registry) -> None:
    tune = add_tune(registry, status="awaiting_images")
    answers = at_once([lambda i=i: registry.work.claim("prepare", tune.id, f"run-{i}") for i in range(4)])
    (owner,) = [answer for answer in answers if isinstance(answer, Work)]
    assert owner.origin == "ui" and len(registry.work.of(tune.id)) == 1


def test_later_assets_of_the_same_run_get_the_same_row(registry: Registry) -> None:
    tune = add_tune(registry)
    work = submitted(registry)
    first = registry.work.claim("prepare", tune.id, "run", run_key=work.run_key)
    again = registry.work.claim("prepare", tune.id, "run", run_key=work.run_key)
    assert (again.id, again.attempt, again.tries) == (first.id, 1, 1)


def test_a_late_writer_is_refused(registry: Registry, clock: Clock) -> None:
    tune = add_tune(registry)
    work = submitted(registry)
    registry.work.claim("prepare", tune.id, "old", run_key=work.run_key)
    registry.work.requeue_lost(work.id, "The machine went away.")
    clock.forward(10)
    newer = submitted(registry)
    registry.work.claim("prepare", tune.id, "new", run_key=newer.run_key)
    late: list[Callable[[], Any]] = [
        lambda: registry.work.heartbeat(work.id, "old"),
        lambda: registry.work.progress(work.id, "old", phase="fetching", step=9),
        lambda: registry.work.finish(work.id, "old", result={"stopped": True}),
        lambda: registry.work.fail(work.id, "old", RuntimeError("stale")),
        lambda: registry.tunes.set_recipe(work.id, "old", {}),
        lambda: registry.work.claim("prepare", tune.id, "old", run_key=work.run_key),
    ]
    for call in late:
        assert "new" in refused(call).message
    assert registry.tunes.get(tune.id).step == 0 and registry.tunes.get(tune.id).result == {}
    assert registry.work.requeue_lost(work.id, "stale", run_id="old") is None
    registry.work.finish(work.id, "new")
    assert registry.tunes.get(tune.id).status == "prepared"


def test_a_launch_whose_row_was_requeued_is_refused(registry: Registry, clock: Clock) -> None:
    """Dagster may create the run of a broken tick a day later."""
    tune = add_tune(registry)
    old = submitted(registry)
    registry.work.requeue_lost(old.id, "No run came of it.")
    refused(lambda: registry.work.claim("prepare", tune.id, "late", run_key=old.run_key))
    clock.forward(10)
    new = submitted(registry)
    assert (new.run_key, new.tries) == (f"{old.id}:2", 0)
    refused(lambda: registry.work.claim("prepare", tune.id, "late", run_key=old.run_key))
    assert registry.work.claim("prepare", tune.id, "in-time", run_key=new.run_key).tries == 1


def test_a_person_takes_a_submitted_row_over(registry: Registry) -> None:
    tune = add_tune(registry)
    work = submitted(registry)
    taken = registry.work.claim("prepare", tune.id, "ui-run")
    assert taken.attempt == 2 and taken.run_key is None and taken.origin == "cli"
    refused(lambda: registry.work.claim("prepare", tune.id, "sensor-run", run_key=work.run_key))
    registry.work.finish(taken.id, "ui-run")
    assert len(registry.work.queued("train")) == 1


def test_retries_with_backoff_then_fails(registry: Registry, clock: Clock) -> None:
    tune = add_tune(registry)
    gone = Failure(FailureCode.SOURCE_UNREACHABLE, "The host is away.", "Wait.")
    waits = []
    for attempt in (1, 2, 3):
        work = registry.work.claim("prepare", tune.id, f"run-{attempt}")
        assert work.attempt == attempt
        after = registry.work.fail(work.id, f"run-{attempt}", gone)
        if attempt < 3:
            waits.append((after.available_at - clock()).total_seconds())
            assert after.state == "queued" and registry.work.queued("prepare") == []
            row = registry.tunes.get(tune.id)
            assert row.status == "queued" and "Trying again" in row.message
            clock.forward(waits[-1])
            assert len(registry.work.queued("prepare")) == 1
    assert waits == [5.0, 30.0]
    failed = registry.tunes.get(tune.id)
    assert (failed.status, failed.failure_code) == ("failed", "source_unreachable")
    assert [c.event for c in registry.outbox.rows()] == ["tune.failed"]
    assert registry.outbox.rows()[0].body["data"]["failure"]["remedy"] == "Wait."


def test_a_process_that_was_asked_to_stop_gives_its_work_back_uncounted(registry: Registry) -> None:
    tune = add_tune(registry)
    for attempt in range(1, 6):
        work = registry.work.claim("prepare", tune.id, f"run-{attempt}")
        assert (work.attempt, work.tries) == (attempt, 1)
        registry.work.give_back(work.id, f"run-{attempt}", "The process was asked to stop.")
        assert len(registry.work.queued("prepare")) == 1, "at once"
        refused(lambda: registry.work.give_back(work.id, "run", "again"))  # noqa: B023
    work = registry.work.claim("prepare", tune.id, "run")
    registry.work.cancel_tune(tune.id)
    assert registry.work.give_back(work.id, "run", "Stopping.").state == "cancelled"
    assert registry.tunes.get(tune.id).status == "cancelled"


def test_what_is_the_callers_doing_is_not_retried(registry: Registry) -> None:
    tune = add_tune(registry)
    work = registry.work.claim("prepare", tune.id, "run")
    registry.work.fail(work.id, "run", Failure(FailureCode.ARCHIVE_REFUSED, "A zip bomb.", "Send pictures."))
    assert registry.tunes.get(tune.id).status == "failed"
    assert registry.work.get(work.id).state == "failed"


def test_a_person_revives_a_failed_tune(registry: Registry) -> None:
    tune = add_tune(registry)
    work = registry.work.claim("prepare", tune.id, "run")
    registry.work.fail(work.id, "run", Failure(FailureCode.TOO_FEW_PICTURES, "One.", "More."))
    again = registry.work.claim("prepare", tune.id, "ui-run", origin="ui")
    assert again.id == work.id and again.attempt == 2 and again.origin == "ui"
    row = registry.tunes.get(tune.id)
    assert row.status == "preparing" and row.failure_code is None
    registry.work.finish(work.id, "ui-run")
    run_stage(registry, "train", tune.id)
    run_stage(registry, "finish", tune.id)
    assert registry.tunes.get(tune.id).status == "ready"
    assert [c.event for c in registry.outbox.rows()] == ["tune.failed"], "a person's attempt tells nobody"


def test_an_exception_is_an_internal_failure(registry: Registry) -> None:
    tune = add_tune(registry)
    work = registry.work.claim("prepare", tune.id, "run")
    after = registry.work.fail(work.id, "run", ZeroDivisionError("1/0"))
    assert (after.state, after.failure_code) == ("queued", "internal")
    assert "ZeroDivisionError: 1/0" in (after.failure_detail or "") and "Zero" not in (
        after.failure_message or ""
    )


def test_cancel_while_queued_is_at_once(registry: Registry) -> None:
    tune = add_tune(registry)
    assert registry.work.cancel_tune(tune.id).status == "cancelled"
    assert registry.work.queued("prepare") == []
    assert [c.event for c in registry.outbox.rows()] == ["tune.cancelled"]
    assert registry.work.cancel_tune(tune.id).status == "cancelled", "asking twice is fine"


def test_cancel_while_submitted_stops_the_run_at_its_claim(registry: Registry) -> None:
    tune = add_tune(registry)
    work = submitted(registry)
    registry.work.cancel_tune(tune.id)
    with pytest.raises(Cancelled):
        registry.work.claim("prepare", tune.id, "run", run_key=work.run_key)


def test_cancel_while_running_goes_through_the_flag(registry: Registry) -> None:
    tune = add_tune(registry)
    run_stage(registry, "prepare", tune.id)
    work = registry.work.claim("train", tune.id, "run")
    assert registry.work.heartbeat(work.id, "run") == ""
    assert registry.work.cancel_tune(tune.id).status == "training"
    assert registry.work.heartbeat(work.id, "run") == "cancel"
    assert registry.work.progress(work.id, "run", phase="training", step=3, total=9) == "cancel"
    registry.work.fail(work.id, "run", Cancelled())
    assert registry.tunes.get(tune.id).status == "cancelled"
    assert registry.work.get(work.id).state == "cancelled"
    refused(lambda: registry.work.heartbeat(work.id, "run"))


def test_a_run_that_ends_well_after_cancel_is_cancelled_all_the_same(registry: Registry) -> None:
    tune = add_tune(registry)
    work = registry.work.claim("prepare", tune.id, "run")
    registry.work.cancel_tune(tune.id)
    assert registry.work.finish(work.id, "run").state == "cancelled"
    assert registry.tunes.get(tune.id).status == "cancelled" and registry.work.queued("train") == []


def test_a_lost_run_of_a_cancelled_tune_is_not_tried_again(registry: Registry) -> None:
    tune = add_tune(registry)
    work = registry.work.claim("prepare", tune.id, "run")
    registry.work.cancel_tune(tune.id)
    after = registry.work.requeue_lost(work.id, "The run ended.")
    assert after is not None and after.state == "cancelled"
    assert registry.tunes.get(tune.id).status == "cancelled"


def test_stop_and_keep_ends_ready_with_what_was_learned(registry: Registry) -> None:
    tune = add_tune(registry)
    run_stage(registry, "prepare", tune.id)
    work = registry.work.claim("train", tune.id, "run")
    registry.work.cancel_tune(tune.id, keep=True)
    assert registry.work.heartbeat(work.id, "run") == "keep"
    registry.work.finish(work.id, "run", result={"steps": 120})
    finish = registry.work.claim("finish", tune.id, "run-2")
    assert registry.work.heartbeat(finish.id, "run-2") == "", "the flag is for training only"
    registry.work.finish(finish.id, "run-2")
    done = registry.tunes.get(tune.id)
    assert (done.status, done.cancel, done.result["steps"]) == ("ready", "keep", 120)


def test_keep_before_training_has_nothing_to_keep(registry: Registry) -> None:
    tune = add_tune(registry)
    run_stage(registry, "prepare", tune.id)
    assert registry.work.cancel_tune(tune.id, keep=True).status == "cancelled"


def test_keep_between_attempts_lets_the_next_one_export_the_checkpoint(registry: Registry) -> None:
    tune = add_tune(registry)
    run_stage(registry, "prepare", tune.id)
    work = registry.work.claim("train", tune.id, "run")
    registry.work.requeue_lost(work.id, "The run ended.")
    assert registry.work.cancel_tune(tune.id, keep=True).status == "prepared"
    registry.work.claim("train", tune.id, "run-2")
    assert registry.work.heartbeat(work.id, "run-2") == "keep"


def test_nothing_is_left_to_cancel_on_a_ready_tune(registry: Registry) -> None:
    tune = make_ready(registry, add_tune(registry))
    refused(lambda: registry.work.cancel_tune(tune.id))


@pytest.mark.parametrize("end", ["stopped", "finished"])
def test_what_is_done_again_of_a_ready_tune_is_cancelled_and_it_stays_ready(
    registry: Registry, end: str
) -> None:
    tune = make_ready(registry, add_tune(registry))
    work = registry.work.claim("train", tune.id, "ui-run", origin="ui")
    refused(lambda: registry.work.cancel_tune(tune.id, by_caller=True))
    assert registry.work.cancel_tune(tune.id).status == "ready"
    assert registry.work.heartbeat(work.id, "ui-run") == "cancel"
    if end == "stopped":
        registry.work.fail(work.id, "ui-run", Cancelled())
    else:
        registry.work.finish(work.id, "ui-run", continue_=True)
    after = registry.tunes.get(tune.id)
    assert (after.status, after.cancel, after.failure_code) == ("ready", "", None)
    refused(lambda: registry.work.cancel_tune(tune.id))  # now there is nothing left
    registry.work.claim("train", tune.id, "ui-run-2", origin="ui")


def test_delete_stops_what_runs_and_stays_deleted(registry: Registry) -> None:
    tune = add_tune(registry)
    work = registry.work.claim("prepare", tune.id, "run")
    registry.work.delete_tune(tune.id)
    assert registry.work.heartbeat(work.id, "run") == "cancel"
    registry.work.fail(work.id, "run", Cancelled())
    assert registry.tunes.get(tune.id).status == "deleted"
    refused(lambda: registry.work.claim("prepare", tune.id, "other"), FailureCode.UNKNOWN_TUNE)
    assert registry.outbox.rows() == []


def test_keep_after_an_orderly_stop_still_has_the_checkpoint(registry: Registry) -> None:
    tune = add_tune(registry)
    run_stage(registry, "prepare", tune.id)
    work = registry.work.claim("train", tune.id, "run")
    registry.work.give_back(work.id, "run", "The process was asked to stop.")
    assert registry.work.cancel_tune(tune.id, keep=True).status == "prepared"


def test_a_person_cannot_redo_a_step_under_a_running_one(registry: Registry) -> None:
    tune = add_tune(registry)
    assert "prepare" in refused(lambda: registry.work.claim("train", tune.id, "ui-run")).message
    run_stage(registry, "prepare", tune.id)
    train = registry.work.claim("train", tune.id, "run")
    assert "run run" in refused(lambda: registry.work.claim("prepare", tune.id, "ui-run")).message
    registry.work.requeue_lost(train.id, "The run ended.")
    again = registry.work.claim("prepare", tune.id, "ui-run")
    assert registry.work.get(train.id).state == "cancelled", "it waits for the new preparation"
    registry.work.finish(again.id, "ui-run")
    assert registry.work.get(train.id).state == "queued"


def test_deleting_a_ready_tune_cancels_its_queued_prompts(registry: Registry) -> None:
    tune = make_ready(registry, add_tune(registry, prompts=[prompt_request()]))
    registry.work.delete_tune(tune.id)
    assert [p.status for p in registry.prompts.rows(tune_id=tune.id)] == ["cancelled"]


def test_a_tune_that_was_asked_for_in_the_ui_owes_its_callback(registry: Registry) -> None:
    tune = make_ready(registry, add_tune(registry, origin="ui"))
    assert [c.event for c in registry.outbox.rows(subject_id=tune.id)] == ["tune.ready"]


def test_work_that_was_done_since_is_not_done_again_by_a_run_that_failed_before(registry: Registry) -> None:
    tune = add_tune(registry)
    work = registry.work.claim("prepare", tune.id, "run")
    registry.work.fail(work.id, "run", Failure(FailureCode.TOO_FEW_PICTURES, "One.", "More."))
    again = registry.work.claim_again("prepare", tune.id, "again", ["run"])
    assert (again.state, again.attempt, again.origin) == ("running", 2, "ui")
    registry.work.finish(work.id, "again")
    before = registry.tunes.get(tune.id)
    with pytest.raises(Failure, match="is done already, by run again"):
        registry.work.claim_again("prepare", tune.id, "third", ["run"])
    assert (
        registry.work.get(work.id).run_id == "again" and registry.tunes.get(tune.id).status == before.status
    )
    # The run that did it failed after its row was written: Dagster has nothing of it.
    assert registry.work.claim_again("prepare", tune.id, "third", ["again"]).attempt == 3
