"""What a receiver answered is recorded once the database is back, and nothing is sent again meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.support.databases import Server, new_database
from tests.support.registry import add_tune, around, make_ready
from tunes_dagster.callbacks import deliver, recording
from tunes_dagster.callbacks.deliver import deliver_due
from tunes_dagster.registry import Account, Registry, Retries, locks
from tunes_dagster.registry.retrying import DatabaseAway


def client(answers: Callable[[int], int]) -> tuple[httpx.Client, list[str]]:
    """Return a client to a receiver that answers as told by the number of the request, and what it got."""
    got: list[str] = []

    def receive(request: httpx.Request) -> httpx.Response:
        got.append(request.headers["webhook-id"])
        return httpx.Response(answers(len(got)), stream=httpx.ByteStream(b"ok"))

    return httpx.Client(transport=httpx.MockTransport(receive)), got


def until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.parametrize(("code", "state"), [(200, "delivered"), (500, "pending")])
def test_an_outcome_outlives_a_database_that_was_killed_while_it_was_sent(
    own_postgres: Server, monkeypatch: pytest.MonkeyPatch, code: int, state: str
) -> None:
    monkeypatch.setattr(deliver, "LEASE_SLACK_SECONDS", -10.0)  # leases end at once
    monkeypatch.setattr(recording, "_SOON_SECONDS", 0.1)
    monkeypatch.setattr(recording, "_GRACE_SECONDS", 8.0)
    registry = Registry(
        new_database(own_postgres.engine), patience=0.2, retries=Retries(callback_backoff=(0.0,))
    )
    make_ready(registry, add_tune(registry))

    def answer(_number: int) -> int:
        own_postgres.kill()
        return code

    http, got = client(answer)
    told = deliver_due(around(registry), http, budget_seconds=10.0, timeout_seconds=1.0)
    assert (told.unrecorded, len(got)) == (1, 1)
    elsewhere = Registry(registry.url + "&application_name=other", migrate=False, patience=0.0)
    with pytest.raises(DatabaseAway):
        deliver_due(around(elsewhere), http)
    assert deliver_due(around(registry), http).unrecorded == 1
    own_postgres.start()
    # Another process asks first, and waits a moment for whoever knows what came of it.
    deliver_due(around(elsewhere), http)
    until(lambda: not recording.unrecorded(registry, 0.0))
    (callback,) = registry.outbox.rows()
    (delivery,) = registry.outbox.deliveries(callback.id)
    assert (callback.state, delivery.status_code, len(got)) == (state, code, 1)
    monkeypatch.setattr(recording, "_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(own_postgres, "kill", lambda: None)
    for one in (registry, elsewhere):
        deliver_due(around(one), http)
        one.close()
    assert len(got) == (1 if state == "delivered" else 2)


def test_news_of_a_2xx_is_not_overwritten_by_a_tick_that_gave_up_waiting(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/registry.db")
    make_ready(registry, add_tune(registry))
    lease, (callback_id,) = registry.outbox.lease(60.0)
    sending = registry.outbox.begin_delivery(callback_id, lease)
    assert sending is not None
    for outcome in ({"status_code": 200}, {"error": "No complete answer within the time of one tick."}):
        registry.outbox.end_delivery(sending.delivery_id, **outcome)  # type: ignore[arg-type]
    (delivery,) = registry.outbox.deliveries(callback_id)
    assert (registry.outbox.get(callback_id).state, delivery.status_code) == ("delivered", 200)
    registry.close()


@pytest.mark.parametrize("hold", [False, True])
def test_an_attempt_that_was_recorded_without_our_hearing_of_it_is_sent_once(
    own_postgres: Server, hold: bool
) -> None:
    registry = Registry(new_database(own_postgres.engine), patience=30.0)
    make_ready(registry, add_tune(registry))
    with registry.writing() as session:
        locks.lock_one(session, Account, Account.id == "local").callback_unknown = (
            "hold" if hold else "resend"
        )
    lease, (callback_id,) = registry.outbox.lease(60.0)
    first = registry.outbox.begin_delivery(callback_id, lease, "dlv_one")
    again = registry.outbox.begin_delivery(callback_id, lease, "dlv_one")
    assert first == again and again is not None and again.attempt == 1
    assert len(registry.outbox.deliveries(callback_id)) == 1
    registry.close()


def test_a_callback_whose_row_cannot_be_had_for_a_moment_is_not_given_up(own_postgres: Server) -> None:
    registry = Registry(new_database(own_postgres.engine), patience=0.1)
    make_ready(registry, add_tune(registry))
    http, got = client(lambda _number: 200)
    begin = registry.outbox.begin_delivery

    def killed_first(*args: str) -> object:
        own_postgres.kill()
        threading.Timer(0.3, own_postgres.start).start()
        registry.outbox.begin_delivery = begin  # type: ignore[method-assign]
        return begin(*args)

    registry.outbox.begin_delivery = killed_first  # type: ignore[method-assign,assignment]
    assert deliver_due(around(registry), http, budget_seconds=1.0).dead == 0
    until(lambda: own_postgres.runs())
    (callback,) = registry.with_patience(30.0).outbox.rows()
    assert (callback.state, got) == ("pending", [])
    registry.close()
