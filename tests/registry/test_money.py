"""Credits on both databases: no way to get more than was granted, none to keep what was not paid for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy.orm import Session

from tests.support.lock_order import unwatched
from tests.support.registry import Clock, add_prompt, add_tune, make_ready, prompt_request, render_settings
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.recipe import PromptRequest
from tunes_dagster.registry import Campaign, Prompt, Registry, Tune, Use
from tunes_dagster.registry.date_plans import DatePlan, Planned
from tunes_dagster.registry.ledger import post, reserve, reserve_many

PRICE = 2_000


def wealthy(registry: Registry, available: int = 1_000_000) -> Registry:
    """Give Ann credits that do not expire."""
    registry.accounts.add("ann")
    registry.ledger.open_wallet("ann", plan="house", requests_per_minute=60)
    registry.ledger.adjust("ann", available)
    return registry


def books(registry: Registry, account: str = "ann") -> tuple[int, int]:
    """Return what can be spent and what is held, having seen that the ledger agrees."""
    wallet, postings = registry.ledger.wallet(account), registry.ledger.books(account)
    assert sum(postings.values()) == 0
    assert (wallet.available, wallet.reserved) == (postings.get("account", 0), postings.get("reserved", 0))
    assert min(wallet.available, wallet.reserved, wallet.grant_left) >= 0
    return wallet.available, wallet.reserved


def plan(registry: Registry, name: str, monthly: int) -> int:
    """Move Ann to a plan and return what she can spend."""
    registry.ledger.open_wallet(
        "ann", plan=name, requests_per_minute=60, monthly_grant=monthly, sign_up_grant=7
    )
    return books(registry)[0]


def test_changing_plans_brings_a_month_no_more_than_its_best_plan(registry: Registry, clock: Clock) -> None:
    registry.accounts.add("ann")
    assert plan(registry, "pro", 600) == 607
    for name, monthly in (("free", 0), ("pro", 600), ("starter", 150), ("pro", 600), ("pro", 600)):
        assert plan(registry, name, monthly) == 607, name
    assert [plan(registry, *one) for one in (("scale", 2500), ("free", 0), ("scale", 2500))] == [2507] * 3
    clock.forward(31 * 86_400)
    assert books(registry)[0] == 2507  # the new month's grant in place of the old one's
    assert plan(registry, "free", 0) == 2507 and plan(registry, "scale", 2500) == 2507
    clock.forward(31 * 86_400)
    assert plan(registry, "free", 0) == 2507  # the month began on the old plan
    clock.forward(31 * 86_400)
    assert books(registry)[0] == 7


def test_changing_plans_mints_nothing_through_what_is_held(registry: Registry) -> None:
    registry.accounts.add("ann")
    plan(registry, "pro", 600)
    tune = held(registry, price=600)
    plan(registry, "free", 0)
    registry.work.cancel_tune(tune.id)
    assert plan(registry, "pro", 600) == 607


def test_two_first_openers_make_one_wallet(registry: Registry) -> None:
    registry.accounts.add("ann")
    with ThreadPoolExecutor(6) as pool:
        seen = list(pool.map(lambda _: plan(registry, "free", 100), range(6)))
    assert set(seen) == {107}


@pytest.mark.parametrize("amount", [10**16, -(10**16), 2**63])
def test_amounts_that_no_column_holds_are_refused(registry: Registry, amount: int) -> None:
    wealthy(registry)
    with pytest.raises(Failure) as refused:
        registry.ledger.adjust("ann", amount)
    assert refused.value.code == FailureCode.INVALID_REQUEST and books(registry) == (1_000_000, 0)


def test_a_price_below_zero_or_of_parts_adds_nothing(registry: Registry) -> None:
    wealthy(registry)
    now = registry.now()
    tries: list[Callable[[Session], Any]] = [
        lambda session: reserve(session, "ann", "tune_x", -5, now),
        lambda session: reserve_many(session, "ann", {"a": 10, "b": -5}, now, ""),
        lambda session: post(
            session, registry.ledger.wallet("ann"), "adjust", {"account": 0.5, "grants": -0.5}, now
        ),  # type: ignore[dict-item]
    ]
    for attempt in tries:
        with pytest.raises(ValueError), registry.writing() as session:
            attempt(session)
    assert books(registry) == (1_000_000, 0)


def held(registry: Registry, price: int = 100_000, **changes: Any) -> Tune:
    """Accept a tune of Ann's at a price."""
    tune = add_tune(registry, account_id="ann", **changes)
    with registry.writing() as session:
        reserve(session, "ann", tune.id, price, registry.now())
    return tune


# Campaign dates that name tunes which end while the date is planned


def _campaign(registry: Registry) -> Campaign:
    return registry.campaigns.put(
        "looks",
        account_id="ann",
        cron="0 7 * * 1",
        timezone="UTC",
        starts="2026-03-02",
        file="x",
        version="v",
    )


def _planned(tune: Tune, number: int, *named: str) -> Planned:
    request = PromptRequest(text="a photo", tune=tune.id, settings=render_settings(seed=number))
    return Planned(
        line=number,
        recipe_hash=f"hash {tune.id} {number}",
        variables={},
        request=request,
        base_id="tiny-sdxl",
        base="sdxl",
        tune_id=tune.id,
        weights={},
        price=PRICE,
        tags=tuple(Use(one, "lora", one, 1.0) for one in named),
    )


def _end(registry: Registry, tune: Tune, how: str) -> None:
    if how == "deleted":
        registry.work.delete_tune(tune.id)
    elif how == "cancelled":
        registry.work.cancel_tune(tune.id)
    else:
        work = registry.work.claim("prepare", tune.id, "run")
        registry.work.fail(work.id, "run", Failure(FailureCode.TOO_FEW_PICTURES, "None."))


@pytest.mark.parametrize("how", ["failed", "cancelled", "deleted"])
@pytest.mark.parametrize("in_text", [False, True])
def test_a_date_never_waits_for_a_tune_that_ended_while_it_was_drawn(
    registry: Registry, how: str, in_text: bool
) -> None:
    wealthy(registry)
    lost, good = held(registry, 0, title="lost"), held(registry, 0, title="good")
    make_ready(registry, good)
    planned = [_planned(good, 1, *([lost.id] if in_text else [])), _planned(good if in_text else lost, 2)]
    _end(registry, lost, how)
    with pytest.raises(Failure, match="lost") as refused:
        registry.dates.plan(_campaign(registry), "2026-03-09", DatePlan(prompts=planned))
    assert refused.value.code == FailureCode.CONFLICT
    assert registry.prompts.rows() == [] and books(registry) == (1_000_000, 0)


@pytest.mark.parametrize("how", ["failed", "cancelled", "deleted"])
def test_dates_planned_while_their_tunes_end_all_come_to_an_end(registry: Registry, how: str) -> None:
    """Planners and ends of tunes start together, 12 times; on PostgreSQL each order happens."""
    wealthy(registry)
    campaign = _campaign(registry)
    tunes = [held(registry, 0) for _ in range(12)]
    for number, tune in enumerate(tunes):
        both = threading.Barrier(2)

        def plan_it(both: threading.Barrier = both, tune: Tune = tune, number: int = number) -> None:
            both.wait(10)
            try:
                registry.dates.plan(
                    campaign, f"date {number}", DatePlan(prompts=[_planned(tune, n) for n in range(5)])
                )
            except Failure as failure:
                assert failure.code == FailureCode.CONFLICT

        def end_it(both: threading.Barrier = both, tune: Tune = tune) -> None:
            both.wait(10)
            _end(registry, tune, how)

        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(plan_it), pool.submit(end_it)]:
                done.result()
    left = [one.status for one in registry.prompts.rows(limit=1000) if one.status in ("waiting", "queued")]
    assert left == [] and books(registry) == (1_000_000, 0)


def test_prompts_that_an_earlier_version_left_waiting_follow_their_tune(registry: Registry) -> None:
    wealthy(registry)
    rows = {}
    for how in ("failed", "cancelled", "deleted", "ready", "open"):
        tune = held(registry, 0, title=how)
        prompt = waiting(registry, tune)
        rows[how] = prompt.id
        if how == "ready":
            make_ready(registry, tune)
        elif how != "open":
            _end(registry, tune, how)
    with unwatched(), registry.writing() as session:  # as a date was planned while they ended
        for id in rows.values():
            row = session.query(Prompt).filter(Prompt.id == id).one()
            row.status, row.done_at, row.queued_at = "waiting", None, None
    assert registry.work.end_stranded() == 4 and registry.work.end_stranded() == 0
    assert {how: registry.prompts.get(id).status for how, id in rows.items()} == {
        "failed": "failed",
        "cancelled": "cancelled",
        "deleted": "cancelled",
        "ready": "queued",
        "open": "waiting",
    }


def waiting(registry: Registry, tune: Tune, **changes: Any) -> Prompt:
    """Accept a prompt of Ann's on a tune, at its price."""
    asked = prompt_request(**changes)
    price = PRICE * asked.settings.num_images
    return add_prompt(registry, asked, tune_id=tune.id, account_id="ann", price=price)


# What a tune or prompt owes that its caller gave up


def _run_to(registry: Registry, tune: Tune, status: str, step: int = 0) -> None:
    """Play the pipeline until a tune has a status; of a training of 100 steps so many are done."""
    order = {
        "prepare": ("queued", "preparing"),
        "train": ("prepared", "training"),
        "finish": ("trained", "finishing"),
    }
    for kind, (before, during) in order.items():
        if status == before:
            return
        work = registry.work.claim(kind, tune.id, "run")
        if status == during:
            if kind == "train":
                registry.work.progress(work.id, "run", phase="training", step=step, total=100)
            return
        registry.work.finish(work.id, "run", result={"weights_key": "w"} if kind == "train" else None)


@pytest.mark.parametrize(
    ("status", "step", "charged"),
    [
        ("awaiting_images", 0, 0),
        ("queued", 0, 0),
        ("preparing", 0, 0),
        ("prepared", 0, 0),
        ("training", 0, 0),
        ("training", 37, 37_000),
        ("training", 100, 100_000),
        ("trained", 0, 100_000),
        ("finishing", 0, 100_000),
    ],
)
@pytest.mark.parametrize("how", ["cancelled", "deleted"])
def test_what_was_computed_for_a_tune_is_paid_when_its_caller_gives_it_up(
    registry: Registry, status: str, step: int, charged: int, how: str
) -> None:
    wealthy(registry)
    tune = held(registry, status="awaiting_images" if status == "awaiting_images" else "queued")
    if status != "awaiting_images":
        _run_to(registry, tune, status, step)
    prompt = waiting(registry, tune, num_images=4)
    if how == "deleted":
        registry.work.delete_tune(tune.id, by_caller=True)
    else:
        registry.work.cancel_tune(tune.id, by_caller=True)
    paid = 1_000_000 - charged
    assert books(registry)[0] in (
        paid,
        paid - 4 * PRICE,
    )  # a run that holds the tune lets its prompts go later
    for work in registry.work.of(tune.id):
        if work.state == "running":  # and finishes although it was asked to stop
            registry.work.finish(work.id, "run")
    assert registry.tunes.get(tune.id).status == how and registry.prompts.get(prompt.id).status == "cancelled"
    assert books(registry) == (paid, 0) and registry.ledger.books("ann").get("revenue", 0) == charged


def test_a_lost_attempt_does_not_make_giving_up_cheaper(registry: Registry, clock: Clock) -> None:
    wealthy(registry)
    tune = held(registry)
    _run_to(registry, tune, "training", 80)
    (work,) = registry.work.of(tune.id, "train")
    registry.work.requeue_lost(work.id, "Gone.")
    assert registry.tunes.get(tune.id).step == 0
    registry.work.cancel_tune(tune.id, by_caller=True)
    assert books(registry) == (920_000, 0)


def test_whoever_cancelled_cannot_have_it_kept_for_what_was_settled(registry: Registry) -> None:
    wealthy(registry)
    tune = held(registry)
    _run_to(registry, tune, "training", 10)
    registry.work.cancel_tune(tune.id, by_caller=True)
    assert registry.work.cancel_tune(tune.id, keep=True, by_caller=True).cancel == "cancel"
    (work,) = registry.work.of(tune.id, "train")
    registry.work.finish(work.id, "run")
    assert registry.tunes.get(tune.id).status == "cancelled" and books(registry) == (990_000, 0)


def test_stopping_to_keep_costs_the_whole_price_and_only_once(registry: Registry) -> None:
    wealthy(registry)
    tune = held(registry)
    _run_to(registry, tune, "training", 10)
    registry.work.cancel_tune(tune.id, keep=True, by_caller=True)
    (work,) = registry.work.of(tune.id, "train")
    registry.work.finish(work.id, "run")
    for kind in ("finish",):
        registry.work.finish(registry.work.claim(kind, tune.id, "run").id, "run")
    assert registry.tunes.get(tune.id).status == "ready" and books(registry) == (900_000, 0)
    registry.work.delete_tune(tune.id, by_caller=True)
    assert books(registry) == (900_000, 0)


@pytest.mark.parametrize("status", ["training", "trained", "finishing"])
def test_what_the_operator_stops_or_what_fails_costs_nothing(registry: Registry, status: str) -> None:
    wealthy(registry)
    stopped, failed = held(registry), held(registry)
    for tune in (stopped, failed):
        _run_to(registry, tune, status, 90)
    registry.work.cancel_tune(stopped.id)
    if status == "trained":
        registry.work.claim("finish", failed.id, "run")
    (work,) = (one for one in registry.work.of(failed.id) if one.state == "running")
    registry.work.fail(work.id, "run", Failure(FailureCode.WEIGHTS_UNUSABLE, "Not finite."))
    assert registry.tunes.get(failed.id).status == "failed" and books(registry) == (1_000_000, 0)


@pytest.mark.parametrize(("by_caller", "charged"), [(True, 3_000), (False, 0)])
def test_a_prompt_given_up_while_it_is_rendered_owes_what_was_rendered(
    registry: Registry, by_caller: bool, charged: int
) -> None:
    wealthy(registry)
    tune = make_ready(registry, held(registry, 0))
    gone, stays = waiting(registry, tune, num_images=2), waiting(registry, tune, num_images=2)
    (batch,) = registry.groups.make_batches(wait_seconds=0)
    work = registry.work.claim("render", batch.id, "run")
    registry.work.progress(work.id, "run", phase="rendering", step=3, total=4)
    registry.work.cancel_prompt(gone.id, by_caller=by_caller)
    for prompt in (gone, stays):
        registry.prompts.done(prompt.id, work.id, "run", ["a.png", "b.png"])
    registry.work.finish(work.id, "run")
    registry.work.cancel_prompt(gone.id, by_caller=by_caller)
    assert registry.prompts.get(gone.id).images == []
    assert books(registry) == (1_000_000 - charged - 2 * PRICE, 0)


# One number that says how far a tune is


def test_progress_never_falls_and_ends_at_a_hundred(registry: Registry, clock: Clock) -> None:
    tune = add_tune(registry)
    seen = [registry.tunes.get(tune.id).progress]

    def look() -> None:
        seen.append(registry.tunes.get(tune.id).progress)

    phases = {
        "prepare": ["fetching", "checking", "checking", "captioning"],
        "train": ["loading", "encoding", "encoding", "training", "packaging", "evaluating", "evaluating"],
        "finish": ["evaluating", "evaluating", "packaging"],
    }
    for kind, names in phases.items():
        for attempt in (1, 2):
            work = registry.work.claim(kind, tune.id, f"run {attempt}")
            for name in names:
                for step in (0, 5, 10):
                    clock.forward(3)
                    registry.work.progress(work.id, f"run {attempt}", phase=name, step=step, total=10)
                    look()
            if attempt == 1:
                registry.work.requeue_lost(work.id, "Gone.")
                look()
        registry.work.finish(work.id, "run 2")
        look()
    assert seen == sorted(seen) and seen[0] == 0 and seen[-2] < 100 and seen[-1] == 100
    assert len(set(seen)) > 15, "it moves"


def test_progress_is_weighed_by_what_phases_took_here(registry: Registry, clock: Clock) -> None:
    def make(seconds: dict[str, float]) -> list[float]:
        tune, seen = add_tune(registry), []
        for kind, phase in (("prepare", "fetching"), ("train", "training"), ("finish", "evaluating")):
            work = registry.work.claim(kind, tune.id, "run")
            registry.work.progress(work.id, "run", phase=phase)
            clock.forward(seconds[phase])
            seen.append(registry.tunes.get(tune.id).progress)
            registry.work.finish(work.id, "run", result={"steps": 300})
        return seen

    usual = make({"fetching": 100, "training": 10, "evaluating": 10})
    clock.forward(120)
    after = make({"fetching": 100, "training": 10, "evaluating": 10})
    assert usual[1] < 20 and after[1] > 60, "fetching takes longest here"


def test_a_batch_shows_how_far_it_is_and_does_not_fall_back(registry: Registry) -> None:
    tune = make_ready(registry, add_tune(registry))
    add_prompt(registry, prompt_request(), base_id="tiny-sdxl", tune_id=tune.id)
    (batch,) = registry.groups.make_batches(wait_seconds=0)
    seen = []
    for attempt in ("a", "b"):
        work = registry.work.claim("render", batch.id, attempt)
        for phase, step in (("loading", 0), ("rendering", 1), ("rendering", 3)):
            registry.work.progress(work.id, attempt, phase=phase, step=step, total=4)
            seen.append(registry.groups.batch(batch.id).progress)
        if attempt == "a":
            registry.work.requeue_lost(work.id, "Gone.")
    registry.work.finish(work.id, "b")
    seen.append(registry.groups.batch(batch.id).progress)
    assert seen == sorted(seen) and 0 < seen[1] < seen[2] < 100 == seen[-1]
