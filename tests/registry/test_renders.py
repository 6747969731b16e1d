"""Prompts: batches by shape, fairness, one prompt's end, cancel, a render run that dies half way."""

from __future__ import annotations

import pytest

from tests.support.registry import Clock, add_prompt, add_tune, make_ready, prompt_request
from tunes_dagster.assets.renders import wanted_prompts
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.settings import Settings
from tunes_dagster.pipeline.launches import request_for
from tunes_dagster.registry import Batch, Prompt, Registry, Work, groups
from tunes_dagster.service import decide
from tunes_dagster.service.installation import Installation

HOOK = "http://caller.test/p"


def add(registry: Registry, account: str = "local", base_id: str = "tiny-sdxl", **settings: object) -> Prompt:
    return add_prompt(
        registry, prompt_request(callback_url=HOOK, **settings), base_id=base_id, account_id=account
    )


def batch_of(registry: Registry, clock: Clock, count: int = 3) -> tuple[Batch, list[Prompt], Work]:
    prompts = [add(registry) for _ in range(count)]
    clock.forward(5)
    (batch,) = registry.groups.make_batches()
    return batch, prompts, registry.work.claim("render", batch.id, "run")


def test_batches_share_base_and_shape(registry: Registry, clock: Clock) -> None:
    add(registry), add(registry, seed=9), add(registry, steps=5), add(registry, base_id="sdxl1")
    assert registry.groups.make_batches(wait_seconds=2) == [], "they wait for company first"
    clock.forward(2)
    batches = registry.groups.make_batches(wait_seconds=2)
    assert sorted(len(registry.prompts.rows(batch_id=batch.id)) for batch in batches) == [1, 1, 2]
    assert registry.groups.make_batches(wait_seconds=0) == []
    assert len(registry.work.queued("render")) == 3


def test_a_full_batch_does_not_wait(registry: Registry) -> None:
    for _ in range(5):
        add(registry)
    (batch,) = registry.groups.make_batches(wait_seconds=60, max_prompts=4)
    assert len(registry.prompts.rows(batch_id=batch.id)) == 4


def test_accounts_take_turns(registry: Registry, clock: Clock) -> None:
    registry.accounts.add("big"), registry.accounts.add("small")
    for _ in range(6):
        add(registry, "big")
    late = add(registry, "small")
    clock.forward(5)
    first, _second = registry.groups.make_batches(max_prompts=4)
    assert late.id in [prompt.id for prompt in registry.prompts.rows(batch_id=first.id)]


def test_a_campaign_of_any_size_does_not_hold_up_a_single_prompt(registry: Registry, clock: Clock) -> None:
    settings = Settings(batch_wait_seconds=0, max_batch_prompts=4)
    for seed in range(60):
        add_prompt(registry, prompt_request(seed=seed), base_id="tiny-sdxl", origin="campaign")
    waiting = [
        launch
        for _ in range(3)
        for launch in decide.render_launches(Installation(settings, registry=registry))
    ]
    assert len(waiting) == decide.WAITING_CAMPAIGN_RUNS, "the rest stays where it can be overtaken"
    assert all(request_for(launch).tags["dagster/priority"] == "0" for launch in waiting)
    clock.forward(60)
    single = add(registry, steps=5)
    (launch,) = decide.render_launches(Installation(settings, registry=registry))
    assert [p.id for p in registry.prompts.rows(batch_id=launch.partition)] == [single.id]
    assert request_for(launch).tags["dagster/priority"] == "3", "it overtakes what waits in Dagster's queue"
    same_shape = add(registry)
    (launch,) = decide.render_launches(Installation(settings, registry=registry))
    members = registry.prompts.rows(batch_id=launch.partition)
    assert same_shape.id in [p.id for p in members] and len(members) == 4, "and campaigns fill its batch up"
    work = registry.work.claim("render", waiting[0].partition, "run")
    registry.work.finish(work.id, "run")
    assert len(decide.render_launches(Installation(settings, registry=registry))) == 1, (
        "one campaign run ended, the next one comes"
    )


def test_whoever_queued_much_hides_nobody(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "LOOK_AHEAD", 10), monkeypatch.setattr(groups, "LANE_AHEAD", 6)
    registry.accounts.add("big"), registry.accounts.add("small")
    for _ in range(30):
        add(registry, "big")
    late = add(registry, "small", steps=5)
    batches = registry.groups.make_batches(wait_seconds=0, max_prompts=4)
    assert late.id in [p.id for batch in batches for p in registry.prompts.rows(batch_id=batch.id)]


def test_a_batch_is_limited_by_its_pictures(registry: Registry) -> None:
    for _ in range(4):
        add(registry, num_images=8)
    add(registry, num_images=40)
    batches = registry.groups.make_batches(wait_seconds=0, max_pictures=lambda base_id, shape: 16)
    assert sorted(len(registry.prompts.rows(batch_id=batch.id)) for batch in batches) == [1, 2, 2]


def test_done_and_failed_prompts_each_owe_a_callback(registry: Registry, clock: Clock) -> None:
    batch, (one, two, three), work = batch_of(registry, clock)
    assert {p.status for p in registry.prompts.rows(batch_id=batch.id)} == {"rendering"}
    registry.prompts.done(one.id, work.id, "run", ["batches/x/1/a.png"], {"seeds": [2]})
    blocked = Failure(FailureCode.BLOCKED, "Not allowed.", "Ask for something else.")
    registry.prompts.failed(two.id, work.id, "run", blocked)
    registry.work.finish(work.id, "run", result={"pictures": 1})
    rows = {p.id: p for p in registry.prompts.rows(batch_id=batch.id)}
    assert [rows[p.id].status for p in (one, two, three)] == ["done", "blocked", "failed"]
    assert rows[one.id].images == ["batches/x/1/a.png"] and rows[three.id].failure_code == "render_failed"
    assert sorted(c.event for c in registry.outbox.rows()) == [
        "prompt.done",
        "prompt.failed",
        "prompt.failed",
    ]
    after = registry.groups.batch(batch.id)
    assert after is not None and after.status == "done" and after.made.pictures == 1


def test_a_died_render_run_repeats_only_what_is_missing(registry: Registry, clock: Clock) -> None:
    batch, (one, two, _three), work = batch_of(registry, clock)
    registry.prompts.done(one.id, work.id, "run", ["a.png"])
    registry.work.requeue_lost(work.id, "Run ended.")
    with pytest.raises(Failure):
        registry.prompts.done(two.id, work.id, "run", ["late.png"])
    again = registry.work.claim("render", batch.id, "run-2")
    statuses = {p.id: p.status for p in registry.prompts.rows(batch_id=batch.id)}
    assert sorted(statuses.values()) == ["done", "rendering", "rendering"] and again.attempt == 2
    assert registry.groups.make_batches(wait_seconds=0) == [], "they keep their batch"


def test_a_batch_that_cannot_be_rendered_fails_its_prompts(registry: Registry, clock: Clock) -> None:
    batch, _prompts, work = batch_of(registry, clock)
    registry.work.fail(work.id, "run", Failure(FailureCode.OUT_OF_MEMORY, "Too large.", "Ask for less."))
    assert {p.failure_code for p in registry.prompts.rows(batch_id=batch.id)} == {"out_of_memory"}
    assert len(registry.outbox.rows()) == 3


def test_cancelled_prompts(registry: Registry, clock: Clock) -> None:
    queued = add(registry)
    assert registry.work.cancel_prompt(queued.id).status == "cancelled"
    batch, prompts, work = batch_of(registry, clock, 2)
    registry.work.cancel_prompt(prompts[0].id)
    assert registry.work.heartbeat(work.id, "run") == ""
    assert registry.prompts.done(prompts[0].id, work.id, "run", ["a.png"]).status == "cancelled"
    registry.work.cancel_prompt(prompts[1].id)
    assert registry.work.heartbeat(work.id, "run") == "cancel", "nobody is left to render for"
    with pytest.raises(Failure):
        registry.prompts.done(queued.id, work.id, "run", [])


def test_cancelling_all_prompts_of_a_queued_batch_cancels_it(registry: Registry, clock: Clock) -> None:
    prompt = add(registry)
    clock.forward(5)
    (batch,) = registry.groups.make_batches()
    registry.work.cancel_prompt(prompt.id)
    assert registry.work.queued("render") == []
    after = registry.groups.batch(batch.id)
    assert after is not None and after.status == "cancelled"


def test_prompts_wait_for_their_tune_and_go_with_it(registry: Registry, clock: Clock) -> None:
    tune = add_tune(registry, prompts=[prompt_request()])
    later = add_prompt(registry, prompt_request(), base_id="tiny-sdxl", tune_id=tune.id)
    assert later.status == "waiting" and registry.groups.make_batches(wait_seconds=0) == []
    make_ready(registry, tune)
    (batch,) = registry.groups.make_batches(wait_seconds=0)
    assert len(registry.prompts.rows(batch_id=batch.id)) == 2


def test_prompts_of_a_cancelled_tune_are_cancelled(registry: Registry) -> None:
    tune = add_tune(registry, prompts=[prompt_request(callback_url=HOOK)])
    registry.work.cancel_tune(tune.id)
    assert [p.status for p in registry.prompts.rows(tune_id=tune.id)] == ["cancelled"]
    assert {c.event for c in registry.outbox.rows()} == {"tune.cancelled", "prompt.cancelled"}


def test_a_person_renders_a_batch_again(registry: Registry, clock: Clock) -> None:
    batch, prompts, work = batch_of(registry, clock, 1)
    registry.prompts.done(prompts[0].id, work.id, "run", ["1/a.png"])
    registry.work.finish(work.id, "run")
    again = registry.work.claim("render", batch.id, "ui-run", origin="ui")
    registry.prompts.done(prompts[0].id, again.id, "ui-run", ["2/a.png"])
    registry.work.finish(again.id, "ui-run")
    assert registry.prompts.get(prompts[0].id).images == ["2/a.png"]
    assert len(registry.outbox.rows()) == 1


def test_a_run_that_is_executed_again_renders_what_it_left_undone(registry: Registry, clock: Clock) -> None:
    batch, (done, failed, gone), work = batch_of(registry, clock)
    registry.prompts.done(done.id, work.id, "run", ["1/a.png"])
    registry.prompts.failed(failed.id, work.id, "run", Failure(FailureCode.RENDER_FAILED, "Grey.", "Again."))
    registry.work.cancel_prompt(gone.id)
    registry.work.finish(work.id, "run")
    again = registry.work.claim_again("render", batch.id, "again", ["run"])
    assert [one.id for one in wanted_prompts(registry, batch, again, anew=False)] == [failed.id]
    assert {one.id for one in wanted_prompts(registry, batch, again)} == {done.id, failed.id}
    assert registry.work.claim_again("render", batch.id, "again", []).attempt == again.attempt
    registry.prompts.done(failed.id, again.id, "again", ["2/a.png"])
    registry.work.finish(again.id, "again")
    with pytest.raises(Failure, match="is done already, by run again") as refused:
        registry.work.claim_again("render", batch.id, "third", ["run"])
    assert refused.value.code == FailureCode.CONFLICT and "renders" in refused.value.remedy
