"""One account's callbacks against everybody else's: rows that cannot be sent, and receivers that never answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.attack.servers import serving, silent
from tests.attack.test_urls import ODD
from tests.support.registry import Clock, around
from tunes_dagster.callbacks.deliver import WORKERS, deliver_due
from tunes_dagster.core.urls import origin_of
from tunes_dagster.intake.guard import Guard, guarded_client
from tunes_dagster.registry import Registry
from tunes_dagster.registry.outbox import Sample


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry(f"sqlite:///{tmp_path}/registry.db", now=Clock())
    for account in ("mallory", "ann", "bob"):
        opened.accounts.add(account)
    yield opened
    opened.close()


def answering(connection: socket.socket, _closing: threading.Event) -> None:
    got = connection.recv(65_536)
    assert got.startswith((b"POST", b"GET"))
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def storable(url: str) -> str:
    return url.encode("utf-8", "replace").decode().replace("\x00", "?")


def states(registry: Registry, account: str) -> list[str]:
    return [row.state for row in registry.outbox.of_account(account, limit=1000)]


def test_a_row_that_cannot_be_sent_is_dead_with_a_reason_alone(registry: Registry) -> None:
    """Rows of before there was a check, or written by hand: every odd address there is, in one tick with a good one."""
    urls = [url for url in map(storable, ODD) if not origin_of(url)]
    assert len(urls) > 45
    odd = [registry.outbox.add("mallory", Sample(url=url, body={"a": 1})) for url in urls]
    with serving(answering) as server:
        good = registry.outbox.add("ann", Sample(url=server.url(), body={"a": 1}))
        report = deliver_due(around(registry), allow_hosts=["localhost"])
    assert (report.delivered, report.dead, report.failed, report.left) == (1, len(odd), 0, 0)
    assert registry.outbox.get(good.id).state == "delivered"
    for row in odd:
        (delivery,) = registry.outbox.deliveries(row.id)
        assert registry.outbox.get(row.id).state == "dead" and "The address" in (delivery.error or "")
        assert delivery.finished_at is not None


def test_a_row_that_cannot_be_read_or_written_harms_nobody(registry: Registry) -> None:
    broken = registry.outbox.add("mallory", Sample(url="http://localhost/", body={"a": 1}))
    unknown = registry.outbox.add("mallory", Sample(url="http://localhost/", body={}, form="nobody's"))
    half = registry.outbox.add("mallory", Sample(url="http://localhost/", body={"a": "\ud800"}))
    with registry.writing() as session:
        session.execute(text("UPDATE callbacks SET body = '{' WHERE id = :id"), {"id": broken.id})
    with serving(answering) as server:
        good = registry.outbox.add("ann", Sample(url=server.url(), body={"a": 1}))
        report = deliver_due(around(registry), allow_hosts=["localhost"])
    assert (report.delivered, report.dead) == (1, 1)
    assert registry.outbox.get(good.id).state == "delivered"
    (delivery,) = registry.outbox.deliveries(broken.id)
    assert "could not be read" in (delivery.error or "") and delivery.finished_at is not None
    for row in (unknown, half):
        (delivery,) = registry.outbox.deliveries(row.id)
        assert registry.outbox.get(row.id).state == "pending" and "written" in (delivery.error or "")


def test_an_outcome_that_cannot_be_recorded_ends_no_tick(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("the row is gone")

    registry.outbox.add("ann", Sample(url="http://localhost:1/", body={}))
    monkeypatch.setattr(registry.outbox, "end_delivery", fails)
    assert deliver_due(around(registry), allow_hosts=["localhost"]).delivered == 0


def test_hanging_receivers_hold_nobody_elses_callback(registry: Registry) -> None:
    """Two hundred host names of one account that never answer, all of them due long before the others' callbacks."""
    hanging = [f"h{number}.mallory.example" for number in range(200)]
    names = ["ann.example", "shared.example", *hanging]
    with serving(silent) as black_hole, serving(answering) as server:
        for name in [*hanging, *["shared.example"] * 20]:
            registry.outbox.add("mallory", Sample(url=black_hole.url(host=name), body={}))
        registry.now.forward(60)  # type: ignore[attr-defined]
        mine = [
            registry.outbox.add("ann", Sample(url=server.url(host="ann.example"), body={})).id,
            # The same receiver as one of the others': that it does not answer them says nothing.
            registry.outbox.add("ann", Sample(url=server.url(host="shared.example"), body={})).id,
        ]
        guard = Guard(names, resolver=lambda _host, _port: ["127.0.0.1"])
        with guarded_client(guard, timeout=30, max_connections=WORKERS) as client:
            tick = threading.Thread(
                target=deliver_due, args=(around(registry), client), kwargs={"budget_seconds": 25.0}
            )
            tick.start()
            assert _soon(lambda: all(registry.outbox.get(one).state == "delivered" for one in mine))
            # While the tick still waits for the others, somebody else's becomes due.
            late = registry.outbox.add("bob", Sample(url=server.url(host="ann.example"), body={}))
            assert _soon(lambda: registry.outbox.get(late.id).state == "delivered")
            assert tick.is_alive() and black_hole.connections <= WORKERS // 2
            black_hole.closing.set()
            tick.join()
    assert set(states(registry, "mallory")) == {"pending"}


def _soon(true: object, seconds: float = 20.0) -> bool:
    """Whether something becomes true while the tick goes on."""
    gone = threading.Event()
    for _ in range(round(seconds / 0.05)):
        if true():  # type: ignore[operator]
            return True
        gone.wait(0.05)
    return False
