"""Locks: nobody waits in a circle, and what would is seen before it happens."""

from __future__ import annotations

import ast
import logging
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.orm import Session

import tunes_dagster.registry
from tests.support.databases import new_database
from tests.support.lock_order import LockOrderBroken
from tests.support.registry import add_prompt, add_tune, prompt_request, run_stage
from tunes_dagster.core.failures import Cancelled, Failure, FailureCode
from tunes_dagster.core.ids import new_id
from tunes_dagster.registry import Batch, Prompt, Registry, Retries, Tune, Work
from tunes_dagster.registry.accepting import Acceptance, Seen
from tunes_dagster.registry.api_tables import ApiGroup
from tunes_dagster.registry.engine import Part
from tunes_dagster.registry.ledger import lock_wallet
from tunes_dagster.registry.locks import GUARDED, ORDER, lock, lock_each, lock_one
from tunes_dagster.registry.prompts import NewPrompt
from tunes_dagster.registry.tables import Table

TENANTS = ("anna", "bert")


# What the watch sees


def test_every_table_has_a_place_or_is_only_added_to() -> None:
    tables = {mapper.class_ for mapper in Table.registry.mappers}
    assert {one.__name__ for one in tables - set(ORDER) - set(GUARDED)} == {"Restore", "Secret"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda s: (lock_wallet(s, "anna"), lock(s, Prompt)), "Prompt .* is locked after Wallet"),
        (lambda s: [lock(s, Tune, Tune.number == n) for n in (2, 1)], "Tune .*1.* is locked after Tune"),
        (lambda s: s.scalars(select(Tune).with_for_update()).all(), "registry.locks.lock"),
        (lambda s: s.execute(update(Tune).values(title="")), "2 rows of Tune change at once"),
        (lambda s: setattr(s.get_one(Tune, 1), "title", "new") or s.flush(), "changes and was not locked"),
        (lambda s: s.delete(s.get_one(Tune, 1)) or s.flush(), "changes and was not locked"),
    ],
)
def test_the_watch_sees_what_could_deadlock(
    registry: Registry, wrong: Callable[[Session], Any], said: str
) -> None:
    open_accounts(registry)
    for tenant in TENANTS:
        tune = add_tune(registry, account_id=tenant)
        add_prompt(registry, prompt_request(), base_id="tiny-sdxl", tune_id=tune.id, account_id=tenant)
    with pytest.raises(LockOrderBroken, match=said), registry.writing() as session:
        wrong(session)


def test_the_watch_lets_the_right_order_pass(registry: Registry) -> None:
    open_accounts(registry)
    tunes = [add_tune(registry, account_id="anna") for _ in range(3)]
    with registry.writing() as session:
        lock_each(session, Tune, Tune.id, [tune.id for tune in reversed(tunes)])
        lock_one(session, Tune, Tune.id == tunes[0].id)
        assert lock(session, Work) and lock_wallet(session, "anna")
        session.execute(update(Tune).values(title="locked already"))


def test_every_function_of_the_registry_writes_in_one_transaction() -> None:
    """What deadlocked is run again from its start: each function that writes is, and holds one transaction."""
    folder = Path(tunes_dagster.registry.__file__).parent
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef):
                calls = [one for one in ast.walk(node) if ast.unparse(one) == "self.writing()"]
                assert len(calls) <= 1, f"{file.name}: {node.name} writes in {len(calls)} transactions"
                known = [ast.unparse(one) for one in node.decorator_list]
                assert not calls or not node.name.startswith("_") or "retried" in known, node.name
                loops = [one for one in ast.walk(node) if isinstance(one, ast.For | ast.While)]
                assert not any(call in list(ast.walk(loop)) for loop in loops for call in calls), node.name


# What PostgreSQL says


@pytest.fixture
def database(postgres: Engine) -> str:
    return new_database(postgres)


@pytest.fixture
def pair(database: str) -> Iterator[tuple[Registry, Registry]]:
    """Two processes' registries over one PostgreSQL database."""
    first = Registry(database, retries=Retries(retry_backoff=(0.0,)))
    second = Registry(database, retries=Retries(retry_backoff=(0.0,)))
    open_accounts(first)
    yield first, second
    first.close()
    second.close()


@pytest.fixture
def no_retry(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails when any transaction had to be run again: a deadlock that is retried is still one."""
    with caplog.at_level(logging.WARNING, "tunes.registry"):
        yield
        assert [
            record.getMessage() for record in caplog.records if "tried again" in record.getMessage()
        ] == []


def open_accounts(registry: Registry) -> None:
    for tenant in TENANTS:
        registry.accounts.add(tenant)
        registry.ledger.open_wallet(tenant, plan="free", requests_per_minute=60, sign_up_grant=10_000_000)


def paid_prompt(registry: Registry, tenant: str, tune_id: str | None = None, group: str = "") -> Prompt:
    new = NewPrompt(request=prompt_request(), base_id="tiny-sdxl", tune_id=tune_id, price=1_000)
    seen = Acceptance(seen=[Seen(dialect="astria", group_id=group or None)])
    return registry.prompts.accept([new], seen, account_id=tenant).prompts[0]


def paid_tune(registry: Registry, tenant: str) -> Tune:
    return add_tune(registry, account_id=tenant, origin="api", price=1_000, callback_url=None)


def together(*calls: Callable[[], Any]) -> None:
    """Run calls that begin at the same moment; what they raise is raised here, but for a row that is lost."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            call()
        except Failure as failure:
            if failure.code not in (FailureCode.CONFLICT, FailureCode.CANCELLED):
                raise

    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(run, call) for call in calls]:
            future.result()


def new_group(registry: Registry, tenant: str) -> str:
    """Add a group of prompts as accepting a pack does, and return its id."""
    with registry.writing() as session:
        row = ApiGroup(
            id=new_id("group"),
            account_id=tenant,
            dialect="astria",
            callback_url="http://caller.test/all",
            created_at=registry.now(),
        )
        session.add(row)
    return row.id


def mixed_batch(registry: Registry, order: tuple[str, ...], groups: list[str]) -> tuple[Batch, Work]:
    for tenant in order * 3:
        paid_prompt(registry, tenant, group=groups[TENANTS.index(tenant)])
    (batch,) = registry.groups.make_batches(wait_seconds=0.0)
    return batch, registry.work.claim("render", batch.id, f"run-{batch.id}", origin="cli")


@pytest.mark.usefixtures("no_retry")
def test_two_failing_batches_of_two_tenants(pair: tuple[Registry, Registry]) -> None:
    for _ in range(10):
        groups = [new_group(pair[0], tenant) for tenant in TENANTS]
        works = [
            mixed_batch(pair[0], order, some)
            for order, some in ((TENANTS, groups), (TENANTS[::-1], groups[::-1][::-1]))
        ]
        together(
            *(
                lambda registry=registry, batch=batch, work=work: registry.work.fail(
                    work.id, f"run-{batch.id}", Failure(FailureCode.RENDER_FAILED, "no")
                )
                for registry, (batch, work) in zip(pair, works, strict=True)
            )
        )
        assert {pair[0].groups.batch(batch.id).status for batch, _ in works} == {"failed"}  # type: ignore[union-attr]
    assert all(pair[0].ledger.wallet(tenant).reserved == 0 for tenant in TENANTS)


@pytest.mark.usefixtures("no_retry")
@pytest.mark.parametrize("end", ["ready", "failed", "cancelled"])
def test_prompts_are_cancelled_while_their_tune_ends(pair: tuple[Registry, Registry], end: str) -> None:
    for _ in range(8):
        tune = paid_tune(pair[0], "anna")
        prompts = [paid_prompt(pair[0], "anna", tune.id) for _ in range(4)]
        for kind in ("prepare", "train"):
            run_stage(pair[0], kind, tune.id)
        work = pair[0].work.claim("finish", tune.id, "run")
        ends: dict[str, Callable[[], Any]] = {
            "ready": lambda work=work: pair[0].work.finish(work.id, "run"),
            "failed": lambda work=work: pair[0].work.fail(
                work.id, "run", Failure(FailureCode.DIVERGED, "no")
            ),
            "cancelled": lambda tune=tune: pair[0].work.delete_tune(tune.id),
        }
        cancels = [lambda one=one: pair[1].work.cancel_prompt(one.id) for one in reversed(prompts)]
        together(ends[end], *cancels)
        if end == "cancelled":
            pair[0].work.fail(work.id, "run", Cancelled())
        assert {pair[0].prompts.get(one.id).status for one in prompts} <= {"cancelled", "failed"}
    assert all(pair[0].ledger.wallet(tenant).reserved == 0 for tenant in TENANTS)


@pytest.mark.usefixtures("no_retry")
def test_a_cohort_is_claimed_while_another_takes_newcomers(pair: tuple[Registry, Registry]) -> None:
    for round_ in range(8):
        tunes = [add_tune(pair[0]) for _ in range(6)]
        for tune in random.Random(round_).sample(tunes, len(tunes)):
            run_stage(pair[0], "prepare", tune.id)
        (claimed,) = pair[0].groups.make_cohorts(wait_seconds=0.0)
        other = cohort_of_nobody(pair[0])
        together(
            lambda cohort=claimed[0].id, run=f"claims-{round_}": pair[0].work.claim_cohort(cohort, run),
            lambda run=f"joins-{round_}", other=other: pair[1].work.join_cohort(
                other, run, 8, patience_seconds=-1.0
            ),
        )
        works = [pair[0].work.of(tune.id, "train")[0] for tune in tunes]
        assert {work.state for work in works} == {"running"}
        for work in works:
            pair[0].work.finish(work.id, work.run_id or "")


def cohort_of_nobody(registry: Registry) -> str:
    """Return a cohort of the same base that has no members."""
    tune = add_tune(registry)
    run_stage(registry, "prepare", tune.id)
    ((cohort, (work,)),) = registry.groups.make_cohorts(wait_seconds=0.0)
    registry.work.claim_cohort(cohort.id, "gone")
    registry.work.finish(work.id, "gone")
    return cohort.id


def test_what_meets_in_a_deadlock_is_run_again(pair: tuple[Registry, Registry]) -> None:
    """The order is broken on purpose, with plain SQL."""
    first, second = (add_tune(pair[0], account_id=tenant) for tenant in TENANTS)
    met = threading.Barrier(2)

    changes = text("UPDATE tunes SET phase = 'x' WHERE id = :id")
    tries: list[str] = []

    class Crossing(Part):
        def cross(self, own: Tune, other: Tune) -> None:
            with self.writing() as session:
                session.execute(changes, {"id": own.id})
                tries.append(own.id)
                if tries.count(own.id) == 1:
                    met.wait(timeout=10)
                session.execute(changes, {"id": other.id})

    together(lambda: Crossing(pair[0]).cross(first, second), lambda: Crossing(pair[1]).cross(second, first))
    assert len(tries) == 3 and {pair[0].tunes.get(tune.id).phase for tune in (first, second)} == {"x"}
