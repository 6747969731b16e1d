"""What earlier faults left behind is found, named with what to do, and mended where nobody has to decide."""

from __future__ import annotations

from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from tests.registry.test_money import wealthy
from tests.support.lock_order import unwatched
from tests.support.registry import Clock, add_prompt, add_tune, make_ready, prompt_request, run_stage
from tunes_dagster.registry import Prompt, PromptTune, Registry, Tune, Work
from tunes_dagster.registry.api_tables import ApiObject, Reservation, Wallet
from tunes_dagster.registry.audit import Fault
from tunes_dagster.registry.ledger import lock_wallet, post, reserve
from tunes_dagster.registry.packs import Packs

PRICE = 250_000


def found(registry: Registry) -> dict[str, Fault]:
    """Return what the audit finds, by kind; every remedy says something."""
    faults = registry.audit.faults()
    assert all(fault.says and fault.remedy and "{" not in fault.says + fault.remedy for fault in faults)
    assert len({fault.kind for fault in faults}) == len(faults)
    return {fault.kind: fault for fault in faults}


def plant(registry: Registry, *statements: Any) -> None:
    """Write what the state machine would not."""
    with unwatched(), registry.writing() as session:
        for statement in statements:
            session.execute(statement)


def hold(registry: Registry, subject_id: str, amount: int = PRICE) -> None:
    """Reserve a price as the server does when it accepts something."""
    with registry.writing() as session:
        reserve(session, "ann", subject_id, amount, registry.now())


def own_tune(registry: Registry, **changes: Any) -> Tune:
    return add_tune(registry, account_id="ann", **changes)


def own_prompt(registry: Registry, tune: Tune | None = None, account: str = "ann", **changes: Any) -> Prompt:
    return add_prompt(
        registry,
        prompt_request(**changes),
        base_id="tiny-sdxl",
        tune_id=tune.id if tune else None,
        account_id=account,
    )


def test_a_registry_that_never_went_wrong_has_no_faults(registry: Registry) -> None:
    wealthy(registry, 10_000_000)
    tune = own_tune(registry)
    hold(registry, tune.id)
    own_prompt(registry, make_ready(registry, tune))
    run_stage(registry, "prepare", own_tune(registry).id)
    registry.work.cancel_tune(own_tune(registry).id)
    own_tune(registry, status="awaiting_images")
    assert registry.audit.faults() == []
    assert (registry.mending.mend().queued, registry.mending.mend().settled) == (0, 0)


def test_prompts_with_the_tune_of_another_account(registry: Registry) -> None:
    registry.accounts.add("ann")
    registry.accounts.add("ben")
    tune = make_ready(registry, own_tune(registry))
    prompt, tagged, unclear, operators = (own_prompt(registry, tune) for _ in range(4))
    plant(
        registry,
        update(Prompt).where(Prompt.id.in_((prompt.id, tagged.id))).values(account_id="ben"),
        update(Prompt).where(Prompt.id == tagged.id).values(tune_id=None),
        update(PromptTune).where(PromptTune.prompt_id == tagged.id).values(kind="lora", word="anna"),
        update(PromptTune).where(PromptTune.prompt_id == unclear.id).values(tune_id=None, word="twice"),
        # The operator's own were rendered with all.
        update(Prompt).where(Prompt.id == operators.id).values(account_id="local", status="done"),
    )
    faults = found(registry)
    fault = faults["foreign_tune"]
    assert (fault.account_id, fault.subjects, fault.count) == ("ben", (prompt.id, tagged.id), 2)
    fault = faults["unclear_tune"]
    assert (fault.account_id, fault.subjects, "'twice'" in fault.says) == ("ann", (unclear.id,), True)


def test_packs_with_callbacks_and_prompts_that_took_them(registry: Registry) -> None:
    for account in ("ann", "ben"):
        registry.accounts.add(account)
    rows = [{"id": 1, "class": "woman", "text": "x", "callback": "http://author.test/told"}]
    pack = Packs(registry).add("looks", "Looks", account_id="ann", prompts=rows, public=True)
    Packs(registry).add(
        "clean", "Clean", account_id="ann", prompts=[{"id": 1, "class": "woman", "text": "x"}]
    )
    taken = own_prompt(registry, account="ben", callback_url="http://author.test/told")
    own = own_prompt(registry, account="ben", callback_url="http://ben.test/told")
    with registry.writing() as session:
        for prompt in (taken, own):
            session.add(_seen(prompt, pack.number, registry))
    faults = found(registry)
    assert faults["pack_callback"].subjects == (str(pack.number),)
    assert (faults["callback_of_pack"].account_id, faults["callback_of_pack"].subjects) == (
        "ben",
        (taken.id,),
    )
    # Also once the pack is clean: its author has the same address at prompts of their own.
    own_prompt(registry, account="ann", callback_url="http://author.test/told")
    Packs(registry).add(
        "looks", "Looks", account_id="ann", prompts=[{**rows[0], "callback": None}], public=True
    )
    faults = found(registry)
    assert "pack_callback" not in faults and faults["callback_of_pack"].subjects == (taken.id,)


def _seen(prompt: Prompt, pack: int, registry: Registry) -> ApiObject:
    return ApiObject(
        id=prompt.id,
        account_id=prompt.account_id,
        dialect="astria",
        asked={"pack_id": pack},
        events=[],
        created_at=registry.now(),
    )


def test_prompts_that_wait_for_a_tune_that_has_ended(registry: Registry) -> None:
    wealthy(registry, 10_000_000)
    tune = own_tune(registry)
    prompt = own_prompt(registry, tune)
    hold(registry, prompt.id)
    registry.work.cancel_tune(tune.id)
    plant(registry, update(Prompt).where(Prompt.id == prompt.id).values(status="waiting"))
    assert found(registry)["stranded"].subjects == (prompt.id,)
    registry.work.end_stranded()
    assert registry.audit.faults() == []


def test_credits_that_are_held_for_nothing_are_settled(registry: Registry) -> None:
    wealthy(registry, 10_000_000)
    tunes = {status: own_tune(registry) for status in ("failed", "cancelled", "ready", "queued")}
    for status, tune in tunes.items():
        hold(registry, tune.id)
        if status != "queued":
            done = {"state": "done"}
            plant(
                registry,
                update(Tune).where(Tune.id == tune.id).values(status=status),
                update(Work).where(Work.subject_id == tune.id).values(**done),
            )
    hold(registry, "tune_gone")
    fault = found(registry)["held_for_nothing"]
    held = {tunes["failed"].id, tunes["cancelled"].id, tunes["ready"].id, "tune_gone"}
    assert set(fault.subjects) == held and fault.account_id == "ann"
    assert registry.mending.mend().settled == 4
    wallet = registry.ledger.wallet("ann")
    assert (wallet.available, wallet.reserved) == (10_000_000 - 2 * PRICE, PRICE), "ready pays, queued holds"
    assert registry.audit.faults() == []


def test_what_nobody_works_on_is_queued_again(registry: Registry, clock: Clock) -> None:
    registry.accounts.add("ann")
    prepared, stopped = own_tune(registry), own_tune(registry)
    run_stage(registry, "prepare", prepared.id)
    for tune in (prepared, stopped):
        plant(registry, update(Work).where(Work.subject_id == tune.id).values(state="cancelled"))
    plant(registry, update(Tune).where(Tune.id == stopped.id).values(cancel="cancel"))
    prompts = [own_prompt(registry) for _ in range(30)]
    (batch,) = registry.groups.make_batches(wait_seconds=0)
    plant(
        registry,
        update(Work).where(Work.subject_id == batch.id).values(state="failed"),
        update(Prompt).where(Prompt.batch_id == batch.id).values(status="rendering"),
    )
    fault = found(registry)["nobody_works_on"]
    assert fault.count == 32 and "and 12 more" in fault.says
    assert registry.mending.mend().queued == 32
    assert registry.audit.faults() == [] and registry.mending.mend().queued == 0
    assert [work.subject_id for work in registry.work.queued("train")] == [prepared.id]
    assert registry.tunes.get(stopped.id).status == "cancelled"
    (again,) = registry.groups.make_batches(wait_seconds=0)
    assert {one.id for one in registry.prompts.rows(batch_id=again.id)} == {one.id for one in prompts}


def test_tunes_that_were_given_away_or_charged_wrongly(registry: Registry) -> None:
    wealthy(registry, 10_000_000)
    given, failed, cheap, fair = (own_tune(registry) for _ in range(4))
    for tune in (given, failed, cheap, fair):
        hold(registry, tune.id)
    for tune in (cheap, fair):
        make_ready(registry, tune)
    registry.work.cancel_tune(given.id)
    registry.work.cancel_tune(failed.id)
    plant(
        registry,
        update(Tune).where(Tune.id == given.id).values(result={"weights_key": "w"}),
        update(Tune).where(Tune.id == failed.id).values(status="failed"),
        update(Reservation).where(Reservation.subject_id == failed.id).values(settled=PRICE),
        update(Reservation).where(Reservation.subject_id == cheap.id).values(settled=1),
    )
    faults = found(registry)
    assert faults["given_away"].subjects == (given.id,)
    assert faults["charged_for_nothing"].subjects == (failed.id,)
    assert faults["charged_otherwise"].subjects == (cheap.id,)


def test_prompts_that_were_charged_wrongly(registry: Registry) -> None:
    wealthy(registry, 10_000_000)
    blocked, part, cheap = (own_prompt(registry, num_images=2) for _ in range(3))
    for prompt in (blocked, part, cheap):
        hold(registry, prompt.id, 4)
    (batch,) = registry.groups.make_batches(wait_seconds=0)
    work = registry.work.claim("render", batch.id, "run")
    for prompt in (blocked, part, cheap):
        registry.prompts.done(prompt.id, work.id, "run", ["one.png"])
    registry.work.finish(work.id, "run")
    assert registry.audit.faults() == [], "half of the pictures cost half of the price"
    plant(
        registry,
        update(Prompt).where(Prompt.id == blocked.id).values(status="blocked", images=[]),
        update(Reservation).where(Reservation.subject_id == cheap.id).values(settled=1),
    )
    faults = found(registry)
    assert faults["charged_for_nothing"].subjects == (blocked.id,)
    assert faults["charged_otherwise"].subjects == (cheap.id,)


def test_a_grant_that_was_given_twice_and_books_that_are_wrong(registry: Registry) -> None:
    wealthy(registry, 10_000_000)
    now = registry.now()

    def grant(session: Session) -> None:
        wallet = lock_wallet(session, "ann")
        post(session, wallet, "grant", {"grants": -600, "account": 600}, now, memo="pro")

    with registry.writing() as session:
        grant(session)
    assert registry.audit.faults() == []
    with registry.writing() as session:
        grant(session)
    fault = found(registry)["granted_twice"]
    assert fault.account_id == "ann" and "$0.0006 too much" in fault.says
    plant(registry, update(Wallet).where(Wallet.account_id == "ann").values(reserved=5))
    assert "reserved $5e-06, not $0" in found(registry)["books"].says
