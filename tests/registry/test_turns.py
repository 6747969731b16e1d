"""Leases of callbacks: accounts take turns, whatever lies there of one of them."""

from __future__ import annotations

from tests.support.registry import Clock
from tunes_dagster.registry import Registry
from tunes_dagster.registry.outbox import Sample


def test_a_lease_is_shared_by_accounts(registry: Registry, clock: Clock) -> None:
    for account in ("mallory", "ann", "bob"):
        registry.accounts.add(account)
    for number in range(30):
        registry.outbox.add("mallory", Sample(url=f"http://m.example/{number}", body={}))
    clock.forward(60)
    for account in ("ann", "bob"):
        for number in range(3):
            registry.outbox.add(account, Sample(url=f"http://{account}.example/{number}", body={}))
    _lease, first = registry.outbox.lease(60, limit=9)
    assert sorted(one.account_id for one in first.values()) == ["ann"] * 3 + ["bob"] * 3 + ["mallory"] * 3
    assert [one.url[-1] for one in list(first.values())] == list("000111222")
    _lease, second = registry.outbox.lease(60, limit=9)
    assert {one.account_id for one in second.values()} == {"mallory"} and len(second) == 9
    assert not set(first) & set(second)
    clock.forward(61)
    assert len(registry.outbox.lease(60)[1]) == 36 and registry.outbox.lease(60)[1] == {}
