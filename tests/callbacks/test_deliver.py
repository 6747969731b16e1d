"""Delivery against a real HTTP server that fails, hangs, redirects, refuses, drips, and dies."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from tests.support.registry import Clock, add_tune, around, make_ready
from tunes_dagster.callbacks import replay
from tunes_dagster.callbacks.deliver import DeliveryReport, deliver_due
from tunes_dagster.core.failures import Failure
from tunes_dagster.registry import Callback, Registry, Retries

SECRET = "whsec_" + "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0"
Answer = Callable[[BaseHTTPRequestHandler, int], None]


def answer(code: int, body: bytes = b"ok", **headers: str) -> Answer:
    def write(handler: BaseHTTPRequestHandler, _number: int) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return write


def first(count: int, before: Answer, after: Answer) -> Answer:
    """Answer one way for the first requests and another way from then on."""
    return lambda handler, number: (before if number <= count else after)(handler, number)


class Receiver:
    """A caller's server: a path per behaviour; remembers what it got."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.stop = threading.Event()
        self.lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with receiver.lock:
                    receiver.got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                    number = sum(1 for path, _headers, _body in receiver.got if path == self.path)
                receiver.answers[self.path](self, number)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: object) -> None:
                pass  # clients that give up are what these tests are about

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()

    def url(self, path: str, behaviour: Answer) -> str:
        self.answers[path] = behaviour
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def count(self, path: str) -> int:
        return sum(1 for got, _headers, _body in self.got if got == path)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.stop.set()
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(tmp_path: Path, clock: Clock) -> Iterator[Registry]:
    opened = Registry(
        f"sqlite:///{tmp_path}/registry.db", now=clock, retries=Retries(callback_backoff=(5.0, 30.0, 120.0))
    )
    yield opened
    opened.close()


def owed(registry: Registry, url: str) -> Callback:
    tune = make_ready(registry, add_tune(registry, callback_url=url))
    (callback,) = registry.outbox.rows(subject_id=tune.id)
    return callback


def deliver(registry: Registry, **options: float) -> DeliveryReport:
    return deliver_due(around(registry), allow_hosts=["127.0.0.1"], **options)  # type: ignore[arg-type]


def test_delivered_once_with_a_log(registry: Registry, receiver: Receiver, clock: Clock) -> None:
    callback = owed(registry, receiver.url("/ok", answer(202, b"thanks" * 200)))
    assert deliver(registry).delivered == 1
    clock.forward(100_000)
    assert deliver(registry) == DeliveryReport(), "never again after a recorded 2xx"
    ((_path, headers, body),) = receiver.got
    assert json.loads(body) == callback.body and json.loads(body)["type"] == "tune.ready"
    assert headers["webhook-id"] == callback.id and "webhook-signature" not in headers
    (delivery,) = registry.outbox.deliveries(callback.id)
    assert (delivery.attempt, delivery.status_code, delivery.error) == (1, 202, None)
    assert delivery.response_head == ("thanks" * 200)[:500] and delivery.finished_at is not None
    with pytest.raises(Failure):
        replay(registry, callback.id)
    replay(registry, callback.id, force=True)
    assert deliver(registry).delivered == 1 and receiver.count("/ok") == 2


def test_fails_twice_then_arrives(registry: Registry, receiver: Receiver, clock: Clock) -> None:
    callback = owed(registry, receiver.url("/flaky", first(2, answer(500, b"oops"), answer(200))))
    assert deliver(registry).failed == 1
    assert deliver(registry) == DeliveryReport(), "not before its time"
    clock.forward(5)
    assert deliver(registry).failed == 1
    clock.forward(29)
    assert deliver(registry) == DeliveryReport()
    clock.forward(1)
    assert deliver(registry).delivered == 1
    deliveries = registry.outbox.deliveries(callback.id)
    assert [(d.attempt, d.status_code, d.response_head) for d in deliveries] == [
        (1, 500, "oops"),
        (2, 500, "oops"),
        (3, 200, "ok"),
    ]
    assert len({headers["webhook-id"] for _path, headers, _body in receiver.got}) == 1


def test_given_up_into_the_dead_list_and_replayed(
    registry: Registry, receiver: Receiver, clock: Clock
) -> None:
    callback = owed(registry, receiver.url("/no", first(4, answer(401, b"who are you"), answer(204))))
    for _ in range(4):
        deliver(registry)
        clock.forward(1000)
    (dead,) = registry.outbox.rows("dead")
    assert dead.id == callback.id and dead.attempts == 4 and dead.next_attempt_at is None
    assert "401" in (registry.outbox.deliveries(callback.id)[-1].error or "")
    assert deliver(registry) == DeliveryReport()
    replay(registry, callback.id)
    assert deliver(registry).delivered == 1
    assert [d.attempt for d in registry.outbox.deliveries(callback.id)] == [1, 2, 3, 4, 5]


def test_redirects_are_not_followed(registry: Registry, receiver: Receiver) -> None:
    target = receiver.url("/ok", answer(200))
    callback = owed(registry, receiver.url("/moved", answer(302, Location=target)))
    assert deliver(registry).failed == 1
    assert receiver.count("/ok") == 0
    assert "redirect" in (registry.outbox.deliveries(callback.id)[0].error or "").lower()


def test_gone_is_final_and_retry_after_is_obeyed(
    registry: Registry, receiver: Receiver, clock: Clock
) -> None:
    gone = owed(registry, receiver.url("/gone", answer(410)))
    busy = owed(registry, receiver.url("/busy", answer(503, Retry_After="77")))
    deliver(registry)
    assert registry.outbox.get(gone.id).state == "dead"
    wait = registry.outbox.get(busy.id).next_attempt_at
    assert wait is not None and (wait - clock()).total_seconds() == 77


def test_a_private_address_is_refused_for_good(registry: Registry, receiver: Receiver) -> None:
    callback = owed(registry, receiver.url("/inside", answer(200)))
    report = deliver_due(around(registry))
    assert report.dead == 1 and receiver.got == []
    assert "loopback" in (registry.outbox.deliveries(callback.id)[0].error or "")


def test_signed_when_the_account_has_a_secret(registry: Registry, receiver: Receiver, clock: Clock) -> None:
    clock.moment = datetime.now(UTC)  # receivers refuse what was signed long ago
    registry.accounts.set_callback_options("local", secret=SECRET)
    owed(registry, receiver.url("/signed", answer(200)))
    deliver(registry)
    ((_path, headers, body),) = receiver.got
    assert Webhook(SECRET).verify(body, headers)["type"] == "tune.ready"
    with pytest.raises(Failure):
        registry.accounts.set_callback_options("local", secret="whsec_not base64!")


def test_while_keys_rotate_both_secrets_are_good_and_the_one_before_is_not(
    registry: Registry, receiver: Receiver, clock: Clock
) -> None:
    clock.moment = datetime.now(UTC)
    older, newer = ("whsec_" + letters * 8 for letters in ("b2xk", "bmV3"))
    for secret in (SECRET, older, newer):
        registry.accounts.set_callback_options("local", secret=secret)
    owed(registry, receiver.url("/rotated", answer(200)))
    deliver(registry)
    ((_path, headers, body),) = receiver.got
    Webhook(newer).verify(body, headers)
    Webhook(older).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body, headers)


def test_a_receiver_that_hangs_delays_nobody(registry: Registry, receiver: Receiver) -> None:
    def hang(_handler: BaseHTTPRequestHandler, _number: int) -> None:
        receiver.stop.wait(20)

    slow = receiver.url("/hang", hang).replace("127.0.0.1", "localhost")
    hanging = [owed(registry, slow) for _ in range(6)]
    quick = [owed(registry, receiver.url(f"/quick{i}", answer(200))) for i in range(6)]
    start = time.monotonic()
    report = deliver_due(
        around(registry), allow_hosts=["127.0.0.1", "localhost"], budget_seconds=5, timeout_seconds=1
    )
    assert time.monotonic() - start < 4
    assert (report.delivered, report.failed, report.left) == (6, 4, 2)
    assert all(registry.outbox.get(callback.id).state == "delivered" for callback in quick)
    states = [registry.outbox.get(callback.id) for callback in hanging]
    assert sorted(row.attempts for row in states) == [0, 0, 1, 1, 1, 1]
    assert all(row.lease_id is None for row in states)


def test_a_receiver_that_drips_is_cut_off_with_the_budget(registry: Registry, receiver: Receiver) -> None:
    def drip(handler: BaseHTTPRequestHandler, _number: int) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not receiver.stop.wait(0.2):
            handler.wfile.write(b"X-More: x\r\n")

    callback = owed(registry, receiver.url("/drip", drip))
    start = time.monotonic()
    assert deliver(registry, budget_seconds=1, timeout_seconds=1).failed == 1
    assert time.monotonic() - start < 4
    (delivery,) = registry.outbox.deliveries(callback.id)
    assert delivery.finished_at is not None and "time" in (delivery.error or "")


def test_many_go_out_at_once(registry: Registry, receiver: Receiver) -> None:
    def slow(handler: BaseHTTPRequestHandler, number: int) -> None:
        time.sleep(0.3)
        answer(200)(handler, number)

    url = receiver.url("/slow", slow)
    for i in range(8):  # four at a time and host
        owed(registry, url.replace("127.0.0.1", ("127.0.0.1", "localhost")[i % 2]))
    start = time.monotonic()
    report = deliver_due(around(registry), allow_hosts=["127.0.0.1", "localhost"])
    assert report.delivered == 8 and time.monotonic() - start < 8 * 0.3


def test_two_senders_send_each_callback_once(registry: Registry, receiver: Receiver) -> None:
    for i in range(8):
        owed(registry, receiver.url(f"/once{i}", answer(200)))
    threads = [threading.Thread(target=deliver, args=(registry,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [receiver.count(f"/once{i}") for i in range(8)] == [1] * 8
    assert len(registry.outbox.rows("delivered")) == 8


@pytest.mark.parametrize(("choice", "state", "sent"), [("resend", "delivered", 1), ("hold", "held", 0)])
def test_a_sender_that_died_between_recording_and_hearing(
    registry: Registry, receiver: Receiver, clock: Clock, choice: str, state: str, sent: int
) -> None:
    registry.accounts.set_callback_options("local", unknown=choice)
    callback = owed(registry, receiver.url("/ok", answer(200)))
    lease, _urls = registry.outbox.lease(60)
    assert registry.outbox.begin_delivery(callback.id, lease) is not None
    assert deliver(registry) == DeliveryReport(), "its lease still runs"
    clock.forward(61)
    report = deliver(registry)
    assert (report.delivered, report.held) == (sent, 1 - sent)
    assert registry.outbox.get(callback.id).state == state and receiver.count("/ok") == sent
    assert "not known" in (registry.outbox.deliveries(callback.id)[0].error or "")
    if choice == "hold":
        replay(registry, callback.id)
        assert deliver(registry).delivered == 1


def test_late_news_of_success_counts(registry: Registry, clock: Clock) -> None:
    callback = owed(registry, "http://caller.test/x")
    lease, _urls = registry.outbox.lease(60)
    sending = registry.outbox.begin_delivery(callback.id, lease)
    assert sending is not None
    registry.outbox.end_delivery(sending.delivery_id, error="No complete answer.")
    registry.outbox.end_delivery(sending.delivery_id, status_code=200)
    assert registry.outbox.get(callback.id).state == "delivered"
