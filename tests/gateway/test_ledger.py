"""Credits: held while work is open, charged once, never negative, never twice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.registry import Clock, add_prompt, add_tune, make_ready, prompt_request
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.registry import Registry


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(tmp_path: Path, clock: Clock) -> Registry:
    opened = Registry(f"sqlite:///{tmp_path}/registry.db", now=clock)
    opened.accounts.add("ann")
    opened.ledger.open_wallet(
        "ann", plan="free", requests_per_minute=20, monthly_grant=0, sign_up_grant=100_000
    )
    return opened


def _accept(registry: Registry, price: int, **changes: object):
    return add_tune(registry, account_id="ann", **changes) if price < 0 else _add(registry, price, **changes)


def _add(registry: Registry, price: int, **changes: object):
    from tunes_dagster.core.ids import new_id
    from tunes_dagster.core.recipe import TuneRequest
    from tunes_dagster.registry.tunes import NewTune

    request = TuneRequest.model_validate({"name": "dog", **changes})
    new = NewTune(
        request=request,
        id=new_id("tune"),
        base_id="tiny-sdxl",
        recipe={},
        account_id="ann",
        origin="api",
        price=price,
    )
    return registry.tunes.accept(new).tune


def _consistent(registry: Registry) -> tuple[int, int]:
    wallet, books = registry.ledger.wallet("ann"), registry.ledger.books("ann")
    assert sum(books.values()) == 0
    assert wallet.available == books.get("account", 0) and wallet.reserved == books.get("reserved", 0)
    assert wallet.available >= 0 and wallet.reserved >= 0
    return wallet.available, wallet.reserved


def test_a_tune_that_becomes_ready_is_charged_and_a_failed_one_is_not(registry: Registry) -> None:
    good, bad = _accept(registry, 40_000), _accept(registry, 40_000)
    assert _consistent(registry) == (20_000, 80_000)
    make_ready(registry, good)
    work = registry.work.claim("prepare", bad.id, "run")
    registry.work.fail(work.id, "run", Failure(FailureCode.TOO_FEW_PICTURES, "None."))
    assert _consistent(registry) == (60_000, 0)
    assert registry.ledger.books("ann")["revenue"] == 40_000


def test_cancel_and_delete_return_what_was_held(registry: Registry) -> None:
    one, two = _accept(registry, 10_000), _accept(registry, 10_000)
    registry.work.cancel_tune(one.id)
    registry.work.delete_tune(two.id)
    registry.work.delete_tune(one.id)
    assert _consistent(registry) == (100_000, 0)


def test_pictures_that_are_missing_are_not_charged(registry: Registry) -> None:
    prompt = add_prompt(
        registry, prompt_request(num_images=4), base_id="tiny-sdxl", account_id="ann", price=8_000
    )
    (batch,) = registry.groups.make_batches(wait_seconds=0)
    work = registry.work.claim("render", batch.id, "run")
    registry.prompts.done(prompt.id, work.id, "run", ["a.png", "b.png"])
    assert _consistent(registry) == (96_000, 0)


def test_never_negative_under_a_hundred_at_once(registry: Registry) -> None:
    def one(_: int) -> bool:
        try:
            _accept(registry, 3_000)
        except Failure as failure:
            assert failure.code == FailureCode.OUT_OF_CREDITS
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        accepted = sum(pool.map(one, range(100)))
    assert accepted == 33 and _consistent(registry) == (1_000, 99_000)
    assert len(registry.tunes.rows(account_id="ann", limit=200)) == 33  # what is refused leaves no row


def test_monthly_grants_do_not_roll_over_also_not_through_a_reservation(
    registry: Registry, clock: Clock
) -> None:
    registry.ledger.open_wallet("ann", plan="pro", requests_per_minute=60, monthly_grant=50_000)
    assert _consistent(registry) == (150_000, 0)
    held = _accept(registry, 60_000)  # 50,000 of the grant, 10,000 of the rest
    clock.forward(40 * 86_400)
    assert _consistent(registry) == (140_000, 60_000)
    registry.work.cancel_tune(held.id)
    assert _consistent(registry) == (150_000, 0)  # last month's 50,000 are gone
    clock.forward(31 * 86_400)
    assert _consistent(registry) == (150_000, 0)


def test_adjusting_never_goes_below_zero(registry: Registry) -> None:
    registry.ledger.adjust("ann", 5)
    with pytest.raises(Failure) as error:
        registry.ledger.adjust("ann", -200_000)
    assert error.value.code == FailureCode.OUT_OF_CREDITS
    assert [(e.kind, n) for e, n in registry.ledger.entries("ann")] == [("adjust", 5), ("grant", 100_000)]
