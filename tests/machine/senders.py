"""Senders of callbacks, and the receiver that they talk to: it hangs, dies, lies and answers late."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import httpx

from tests.machine.world import World
from tunes_dagster.callbacks.deliver import send
from tunes_dagster.callbacks.forms import in_form
from tunes_dagster.callbacks.recording import Outcome
from tunes_dagster.core.ids import new_id
from tunes_dagster.registry import Sending

ANSWERS = ("200", "500", "410", "429", "redirect", "silence", "broken", "noise")


@dataclass
class Receiver:
    """Whoever callbacks go to.

    Attributes:
        answer: What it does with the next request.
        taken: Callback → how many requests it answered with 2xx.
        told: Callback → how many requests reached it.
    """

    answer: str = "200"
    taken: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    told: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        callback = request.headers["webhook-id"]
        self.told[callback] += 1
        if self.answer == "silence":
            raise httpx.ReadTimeout("too late", request=request)
        if self.answer == "broken":
            raise httpx.RemoteProtocolError("closed", request=request)
        if self.answer == "redirect":
            return httpx.Response(302, headers={"location": "https://elsewhere.test"})
        if self.answer == "429":
            return httpx.Response(429, headers={"retry-after": "90"})
        if self.answer in ("500", "410"):
            return httpx.Response(int(self.answer))
        self.taken[callback] += 1
        return httpx.Response(200, content=b"\x00\xff{" if self.answer == "noise" else b"ok")


@dataclass
class Flight:
    """One attempt that a sender makes: begun, then sent, then recorded, if its process lives so long."""

    sending: Sending
    outcome: Outcome | None = None


@dataclass
class Senders:
    """All senders of all hosts.

    Attributes:
        leases: Callbacks under a lease that no attempt was begun for.
        flights: Attempts that are under way.
        forced: Callbacks that an operator had sent again.
    """

    world: World
    receiver: Receiver = field(default_factory=Receiver)
    leases: list[tuple[str, str]] = field(default_factory=list)
    flights: list[Flight] = field(default_factory=list)
    forced: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.client = httpx.Client(transport=httpx.MockTransport(self.receiver))

    def lease(self) -> None:
        """Take what is due."""
        lease, taken = self.world.registry.outbox.lease(60.0, limit=3)
        self.leases += [(callback, lease) for callback in taken]

    def begin(self, number: int) -> None:
        """Record an attempt."""
        if not self.leases:
            return
        callback, lease = self.leases.pop(number % len(self.leases))
        sending = self.world.registry.outbox.begin_delivery(callback, lease, new_id("dlv"))
        if sending is not None:
            self.flights.append(Flight(sending))

    def send(self, number: int, answer: str) -> None:
        """Make an attempt that was begun."""
        waiting = [one for one in self.flights if one.outcome is None]
        if not waiting:
            return
        flight = waiting[number % len(waiting)]
        form = in_form(self.world.installation, flight.sending)
        self.receiver.answer = answer
        flight.outcome = send(self.client, form, 5.0, self.world.clock())

    def record(self, number: int) -> None:
        """Write down what came of an attempt; a sender that cannot does it later."""
        sent = [one for one in self.flights if one.outcome is not None]
        if not sent:
            return
        flight = sent[number % len(sent)]
        assert flight.outcome is not None
        self.world.registry.outbox.end_delivery(flight.sending.delivery_id, **flight.outcome.columns())
        self.flights.remove(flight)

    def give_up(self, number: int) -> None:
        """Record that a tick could not wait for an answer; the answer may come afterwards."""
        waiting = [one for one in self.flights if one.outcome is None]
        if not waiting:
            return
        flight = waiting[number % len(waiting)]
        said = "No complete answer within the time of one tick."
        self.world.registry.outbox.end_delivery(flight.sending.delivery_id, error=said)

    def die(self) -> None:
        """End every sender with all that it knew."""
        self.leases.clear()
        self.flights.clear()

    def deliver_all(self) -> None:
        """Let a healthy sender deliver what is due to a healthy receiver."""
        lease, taken = self.world.registry.outbox.lease(60.0)
        for callback in taken:
            sending = self.world.registry.outbox.begin_delivery(callback, lease, new_id("dlv"))
            if sending is None:
                continue
            self.receiver.answer = "200"
            outcome = send(self.client, in_form(self.world.installation, sending), 5.0, self.world.clock())
            self.world.registry.outbox.end_delivery(sending.delivery_id, **outcome.columns())
