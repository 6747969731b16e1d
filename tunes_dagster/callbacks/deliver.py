"""Delivers the callbacks that are due: concurrently, inside a budget, each attempt recorded before it is sent.

A receiver that hangs costs nobody else: accounts take turns and each gets at most half of what is free, a receiver has
few requests in the air, and one that does not answer is left alone until the next tick. What became due meanwhile is
taken up while a tick waits. A row that cannot be sent is dead with a reason, alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from tunes_dagster.callbacks.forms import in_form
from tunes_dagster.callbacks.recording import Outcome, just_back, record, unrecorded
from tunes_dagster.callbacks.signing import wire_form
from tunes_dagster.callbacks.turns import Turns
from tunes_dagster.core.failures import Failure, detail_of
from tunes_dagster.core.ids import new_id
from tunes_dagster.core.urls import parse_url
from tunes_dagster.registry.retrying import DatabaseAway

if TYPE_CHECKING:
    import httpx

    from tunes_dagster.registry import Sending
    from tunes_dagster.service.installation import Installation

log = logging.getLogger(__name__)

HEAD_BYTES = 500
# An account alone gets half of them.
WORKERS = 32
# How often a tick that waits for somebody looks for what became due meanwhile.
LOOK_SECONDS = 1.0
# A lease outlives the tick that took it by this much, for senders that are slow to record an outcome.
LEASE_SLACK_SECONDS = 30.0


@dataclass(kw_only=True)
class DeliveryReport:
    """What one call of `deliver_due` did.

    Attributes:
        delivered: Attempts that were answered with 2xx.
        failed: Attempts that will be made again.
        dead: Callbacks that were given up.
        held: Callbacks not sent because it is unknown whether they arrived already.
        left: Callbacks that are due but were left for the next tick.
        unrecorded: Attempts of this tick or earlier ones whose outcome waits for the database; until it is recorded
            nothing is sent.
    """

    delivered: int = 0
    failed: int = 0
    dead: int = 0
    held: int = 0
    left: int = 0
    unrecorded: int = 0


def _retry_after(answer: httpx.Response, now: datetime) -> float | None:
    """Return the seconds of a Retry-After header (number or date), or None."""
    given = answer.headers.get("retry-after", "").strip()
    if answer.status_code not in (429, 503) or not given:
        return None
    if given.isdecimal():
        return float(given)
    try:
        moment = parsedate_to_datetime(given)
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds())


def _judge(answer: httpx.Response, head: str, now: datetime) -> Outcome:
    code = answer.status_code
    if 200 <= code < 300:
        return Outcome(code, None, head)
    if 300 <= code < 400:
        target = answer.headers.get("location", "")[:200]
        return Outcome(code, f"Redirected to {target!r}; redirects are not followed.", head)
    return Outcome(code, f"Answered with {code}.", head, _retry_after(answer, now), final=code == 410)


def send(client: httpx.Client, sending: Sending, seconds: float, now: datetime) -> Outcome:
    """Make one attempt and return what came of it; never raises for anything the receiver does.

    Args:
        client: Goes through the guard of `intake.guard`.
        sending: From `Outbox.begin_delivery`.
        seconds: Time for the whole attempt, from the lookup of the name to the last byte.
        now: The time, which the signature names.
    """
    import httpx

    from tunes_dagster.intake.streams import Deadline, DeadlinePassed, in_words

    body, headers = wire_form(sending, now)
    outcome: Outcome | None = None
    try:
        where = parse_url(sending.url).request()
        try:
            with (
                Deadline(seconds),
                client.stream(
                    sending.method,
                    content=body,
                    headers=headers,
                    timeout=seconds,
                    follow_redirects=False,
                    **where,
                ) as answer,
            ):
                outcome = _judge(answer, _head(answer), now)
        except Exception:
            if outcome is None:  # else it only closed badly
                raise
        return outcome
    except Failure as refused:
        return Outcome(error=str(refused), final=True)
    except (httpx.TimeoutException, DeadlinePassed) as error:
        log.debug("A callback was not answered in time: %s", detail_of(error))
        said = f"No answer within {seconds:.0f} s: it took more than that time."
        return Outcome(error=said, unreachable=True)
    except httpx.TransportError as error:
        log.warning("The callback %s was not delivered: %s", sending.callback_id, detail_of(error))
        return Outcome(error=f"The receiver cannot be told: {in_words(error)}.", unreachable=True)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        log.warning("The callback %s was not delivered: %s", sending.callback_id, detail_of(error))
        return Outcome(error="The receiver's answer is not one of HTTP, or its address is none.")


def _head(answer: httpx.Response) -> str:
    """Return the beginning of an answer's body for the log, or what came of it: the status has been said already."""
    head = b""
    try:
        for chunk in answer.iter_raw(HEAD_BYTES):
            head += chunk
            if len(head) >= HEAD_BYTES:
                break
    except Exception:
        log.debug("The answer's body was not complete.")
    return head[:HEAD_BYTES].decode("utf-8", "replace").replace("\x00", "\ufffd")


class _Senders:
    """A few threads that send what `Turns` hands out, and abandon what outlives the budget."""

    def __init__(
        self, installation: Installation, client: httpx.Client, turns: Turns, timeout: float
    ) -> None:
        self.installation, self.registry = installation, installation.registry
        self.client, self.turns, self.timeout = client, turns, timeout
        self.report = DeliveryReport()
        self.flying: dict[str, Sending] = {}
        self.lock = threading.Lock()
        self.abandoned = False

    def run(self, lease_seconds: float) -> None:
        threads = [
            # Daemon threads: one that hangs in a dead receiver's answer must not keep the process.
            threading.Thread(target=self._work, name=f"callbacks-{i}", daemon=True)
            for i in range(self.turns.workers)
        ]
        for thread in threads:
            thread.start()
        while (left := self.turns.budget_ends - time.monotonic()) > 0:
            if self.turns.idle(min(LOOK_SECONDS, left)):
                break
            try:
                self.turns.add(*self.registry.outbox.lease(lease_seconds))
            except DatabaseAway as away:
                log.warning("%s What became due meanwhile is left for the next tick.", away.trouble.sentence)
        self.turns.close()
        for thread in threads:
            thread.join(max(0.0, self.turns.budget_ends + 1.0 - time.monotonic()))
        with self.lock:
            self.abandoned = True
            late = list(self.flying.values())
        for sending in late:
            self._record_safely(sending, Outcome(error="No complete answer within the time of one tick."))

    def _work(self) -> None:
        while (turn := self.turns.take()) is not None:
            receiver, callback_id, lease_id = turn
            outcome = None
            try:
                outcome = self._deliver(callback_id, lease_id)
            except Exception:
                log.exception("The callback %s could not be handled.", callback_id)
            finally:
                self.turns.give_back(receiver, silent=outcome is not None and outcome.unreachable)

    def _deliver(self, callback_id: str, lease_id: str) -> Outcome | None:
        try:
            sending = self.registry.outbox.begin_delivery(callback_id, lease_id, new_id("dlv"))
        except DatabaseAway as away:  # not the row's trouble: it is due again when its lease ends
            log.warning("%s The callback %s is left for later.", away.trouble.sentence, callback_id)
            return None
        except Exception:
            log.exception("The callback %s could not be read.", callback_id)
            self.registry.outbox.bury(callback_id, lease_id, "Its row could not be read.")
            with self.lock:
                self.report.dead += 1
            return None
        if sending is None:
            with self.lock:
                self.report.held += self.registry.outbox.get(callback_id).state == "held"
            return None
        with self.lock:
            self.flying[sending.delivery_id] = sending
        left = self.turns.budget_ends - time.monotonic()
        try:
            form = in_form(self.installation, sending)
            outcome = send(self.client, form, max(1.0, min(self.timeout, left)), self.registry.now())
        except DatabaseAway:
            outcome = Outcome(error="It was not sent: our own database did not answer.")
        except Exception:
            log.exception("The callback %s could not be put into the form %r.", callback_id, sending.form)
            outcome = Outcome(error="It could not be written.")
        with self.lock:
            self.flying.pop(sending.delivery_id, None)
            late = self.abandoned
        # After the tick the attempt is on record as unanswered; only news of a 2xx still matters.
        if not late or outcome.delivered:
            self._record(sending, outcome)
        return outcome

    def _record_safely(self, sending: Sending, outcome: Outcome) -> None:
        try:
            self._record(sending, outcome)
        except Exception:  # it stays on record as of unknown outcome
            log.exception("What came of the callback %s could not be recorded.", sending.callback_id)

    def _record(self, sending: Sending, outcome: Outcome) -> None:
        callback = record(self.registry, sending.delivery_id, outcome)
        with self.lock:
            self.report.delivered += outcome.delivered
            if callback is not None:
                self.report.dead += callback.state == "dead"
                self.report.failed += callback.state == "pending"


def deliver_due(
    installation: Installation,
    http: httpx.Client | None = None,
    *,
    allow_hosts: Iterable[str] = (),
    budget_seconds: float = 20.0,
    timeout_seconds: float = 10.0,
    workers: int = WORKERS,
) -> DeliveryReport:
    """Send what is due until nothing is left or the budget is spent.

    Args:
        installation: Its registry keeps the outbox; the rest makes the bodies.
        http: Client to use; None makes one whose every connection passes the guard.
        allow_hosts: Hosts that may be private, for the client made here.
        budget_seconds: No attempt is started after this; the call returns within a second of it.
        timeout_seconds: For one attempt.
        workers: Attempts in the air at most.
    """
    registry = installation.registry
    if waiting := unrecorded(registry):
        return DeliveryReport(unrecorded=waiting)
    if just_back(registry):
        return DeliveryReport()
    lease_seconds = budget_seconds + timeout_seconds + LEASE_SLACK_SECONDS
    lease_id, leased = registry.outbox.lease(lease_seconds)
    if not leased:
        return DeliveryReport()
    client = http
    if client is None:
        from tunes_dagster.intake.guard import Guard, guarded_client

        client = guarded_client(Guard(allow_hosts), timeout=timeout_seconds, max_connections=workers)
    turns = Turns(time.monotonic() + budget_seconds, workers)
    turns.add(lease_id, leased)
    senders = _Senders(installation, client, turns, timeout_seconds)
    try:
        senders.run(lease_seconds)
    finally:
        turns.close()
        for lease, rest in turns.rest().items():
            with suppress(DatabaseAway):  # then it ends by itself
                registry.outbox.release_lease(lease, rest)
            senders.report.left += len(rest)
        senders.report.unrecorded = unrecorded(registry, 0.0)
        if http is None:
            client.close()
    return senders.report
