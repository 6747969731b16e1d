"""Delivers the callbacks that are due: concurrently, inside a budget, each attempt recorded before it is sent.

A receiver that hangs costs nobody else: hosts take turns, have few requests in the air each, and one that does
not answer is left alone until the next tick.
"""

from __future__ import annotations

import logging
import string
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from tunes_dagster.callbacks.forms import in_form
from tunes_dagster.callbacks.signing import wire_form
from tunes_dagster.core import clock
from tunes_dagster.core.failures import Failure

if TYPE_CHECKING:
    import httpx

    from tunes_dagster.registry import Registry, Sending

log = logging.getLogger(__name__)

HEAD_BYTES = 500
WORKERS = 16
PER_HOST = 4
# A lease outlives the tick that took it by this much, for senders that are slow to record an outcome.
LEASE_SLACK_SECONDS = 30.0


@dataclass(frozen=True)
class Outcome:
    """What came of one attempt; the fields are those of `OutboxQueries.end_delivery`."""

    status_code: int | None = None
    error: str | None = None
    response_head: str | None = None
    retry_after: float | None = None
    final: bool = False
    unreachable: bool = False

    @property
    def delivered(self) -> bool:
        """Whether the receiver took it."""
        return self.error is None and self.status_code is not None and 200 <= self.status_code < 300


@dataclass
class DeliveryReport:
    """What one call of `deliver_due` did.

    Attributes:
        delivered: Attempts that were answered with 2xx.
        failed: Attempts that will be made again.
        dead: Callbacks that were given up.
        held: Callbacks not sent because it is unknown whether they arrived already.
        left: Callbacks that are due but were left for the next tick.
    """

    delivered: int = 0
    failed: int = 0
    dead: int = 0
    held: int = 0
    left: int = 0


def _retry_after(answer: httpx.Response) -> float | None:
    """Return the seconds of a Retry-After header (number or date), or None."""
    given = answer.headers.get("retry-after", "").strip()
    if answer.status_code not in (429, 503) or not given:
        return None
    if given.isdecimal():
        return float(given)
    try:
        moment = parsedate_to_datetime(given)
    except ValueError:
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - clock.now()).total_seconds())


def _judge(answer: httpx.Response, head: str) -> Outcome:
    code = answer.status_code
    if 200 <= code < 300:
        return Outcome(code, None, head)
    if 300 <= code < 400:
        target = answer.headers.get("location", "")[:200]
        return Outcome(code, f"Redirected to {target!r}; redirects are not followed.", head)
    return Outcome(code, f"Answered with {code}.", head, _retry_after(answer), final=code == 410)


def send(client: httpx.Client, sending: Sending, seconds: float) -> Outcome:
    """Make one attempt and return what came of it; never raises for anything the receiver does.

    Args:
        client: Goes through the guard of `intake.guard`.
        sending: From `OutboxQueries.begin_delivery`.
        seconds: Time for the whole attempt.
    """
    import httpx

    body, headers = wire_form(sending, clock.now())
    deadline = time.monotonic() + seconds
    try:
        timeout = httpx.Timeout(seconds)
        with client.stream(
            sending.method,
            sending.url,
            content=body,
            headers=headers,
            timeout=timeout,
            follow_redirects=False,
            extensions={"target": request_target(sending.url)},
        ) as answer:
            head = b""
            for chunk in answer.iter_raw(HEAD_BYTES):
                head += chunk
                if len(head) >= HEAD_BYTES or time.monotonic() > deadline:
                    break
            text = head[:HEAD_BYTES].decode("utf-8", "replace").replace("\x00", "\ufffd")
            return _judge(answer, text)
    except Failure as refused:
        return Outcome(error=str(refused), final=True)
    except httpx.TimeoutException as error:
        return Outcome(error=f"No answer within {seconds:.0f} s ({type(error).__name__}).", unreachable=True)
    except httpx.TransportError as error:
        return Outcome(error=f"{type(error).__name__}: {error}"[:500], unreachable=True)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return Outcome(
            error=f"{type(error).__name__}: {error}"[:500], final=isinstance(error, httpx.InvalidURL)
        )


def request_target(url: str) -> bytes:
    """Return the path and query of a URL byte for byte as the caller wrote them; httpx would normalise them."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return quote(target, safe=string.punctuation).encode("ascii")


@dataclass
class _Turns:
    """Hands out leased callbacks, hosts in turns; guarded by one lock."""

    budget_ends: float
    queues: dict[str, deque[tuple[str, str]]] = field(default_factory=dict)
    in_air: Counter[str] = field(default_factory=Counter)
    silent: set[str] = field(default_factory=set)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, lease_id: str, urls: Iterable[tuple[str, str]]) -> None:
        for callback_id, url in urls:
            host = urlsplit(url).netloc.lower()
            self.queues.setdefault(host, deque()).append((callback_id, lease_id))

    def take(self) -> tuple[str, str, str] | None:
        """Return (host, callback, lease), waiting for a turn; None when nothing is left to start."""
        with self.changed:
            while time.monotonic() < self.budget_ends:
                waiting = [host for host, queue in self.queues.items() if queue and host not in self.silent]
                if not waiting:
                    return None
                for host in waiting:
                    if self.in_air[host] < PER_HOST:
                        self.in_air[host] += 1
                        queue = self.queues.pop(host)
                        self.queues[host] = queue  # to the end of the line
                        return host, *queue.popleft()
                self.changed.wait(0.2)
            return None

    def give_back(self, host: str, silent: bool) -> None:
        with self.changed:
            self.in_air[host] -= 1
            if silent:
                self.silent.add(host)
            self.changed.notify_all()

    def rest(self) -> list[tuple[str, str]]:
        """Return (callback, lease) of everything that was not started."""
        with self.changed:
            left = [entry for queue in self.queues.values() for entry in queue]
            self.queues.clear()
            return left


class _Senders:
    """A few threads that send what `_Turns` hands out, and abandon what outlives the budget."""

    def __init__(self, registry: Registry, client: httpx.Client, turns: _Turns, timeout: float) -> None:
        self.registry, self.client, self.turns, self.timeout = registry, client, turns, timeout
        self.report = DeliveryReport()
        self.flying: dict[str, Sending] = {}
        self.lock = threading.Lock()
        self.abandoned = False

    def run(self, workers: int) -> None:
        threads = [
            # Daemon threads: one that hangs in a dead receiver's answer must not keep the process.
            threading.Thread(target=self._work, name=f"callbacks-{i}", daemon=True)
            for i in range(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, self.turns.budget_ends + 1.0 - time.monotonic()))
        with self.lock:
            self.abandoned = True
            late = list(self.flying.values())
        for sending in late:
            self._record(sending, Outcome(error="No complete answer within the time of one tick."))

    def _work(self) -> None:
        while (turn := self.turns.take()) is not None:
            host, callback_id, lease_id = turn
            outcome = None
            try:
                outcome = self._deliver(callback_id, lease_id)
            except Exception:
                log.exception("The callback %s could not be handled.", callback_id)
            finally:
                self.turns.give_back(host, silent=outcome is not None and outcome.unreachable)

    def _deliver(self, callback_id: str, lease_id: str) -> Outcome | None:
        sending = self.registry.begin_delivery(callback_id, lease_id)
        if sending is None:
            with self.lock:
                self.report.held += self.registry.get_callback(callback_id).state == "held"
            return None
        with self.lock:
            self.flying[sending.delivery_id] = sending
        left = self.turns.budget_ends - time.monotonic()
        try:
            outcome = send(self.client, in_form(self.registry, sending), max(1.0, min(self.timeout, left)))
        except Exception as error:
            log.exception("The callback %s could not be put into the form %r.", callback_id, sending.form)
            outcome = Outcome(error=f"It could not be written: {type(error).__name__}: {error}"[:500])
        with self.lock:
            self.flying.pop(sending.delivery_id, None)
            late = self.abandoned
        # After the tick the attempt is on record as unanswered; only news of a 2xx still matters.
        if not late or outcome.delivered:
            self._record(sending, outcome)
        return outcome

    def _record(self, sending: Sending, outcome: Outcome) -> None:
        callback = self.registry.end_delivery(
            sending.delivery_id,
            status_code=outcome.status_code,
            error=outcome.error,
            response_head=outcome.response_head,
            retry_after=outcome.retry_after,
            final=outcome.final,
        )
        with self.lock:
            self.report.delivered += outcome.delivered
            self.report.dead += callback.state == "dead"
            self.report.failed += callback.state == "pending"


def deliver_due(
    registry: Registry,
    http: httpx.Client | None = None,
    *,
    allow_hosts: Iterable[str] = (),
    budget_seconds: float = 20.0,
    timeout_seconds: float = 10.0,
    workers: int = WORKERS,
) -> DeliveryReport:
    """Send what is due until nothing is left or the budget is spent.

    Args:
        registry: Keeps the outbox.
        http: Client to use; None makes one whose every connection passes the guard.
        allow_hosts: Hosts that may be private, for the client made here.
        budget_seconds: No attempt is started after this; the call returns within a second of it.
        timeout_seconds: For one attempt.
        workers: Attempts in the air at most.
    """
    lease_id, urls = registry.lease_callbacks(budget_seconds + timeout_seconds + LEASE_SLACK_SECONDS)
    if not urls:
        return DeliveryReport()
    client = http
    if client is None:
        from tunes_dagster.intake.guard import Guard, guarded_client

        client = guarded_client(Guard(allow_hosts), timeout=timeout_seconds)
    turns = _Turns(time.monotonic() + budget_seconds)
    turns.add(lease_id, urls.items())
    senders = _Senders(registry, client, turns, timeout_seconds)
    try:
        senders.run(min(workers, len(urls)))
    finally:
        rest = [callback_id for callback_id, _lease in turns.rest()]
        registry.release_lease(lease_id, rest)
        if http is None:
            client.close()
    senders.report.left = len(rest)
    return senders.report
