"""Who is next: the callbacks of a tick, handed out to its senders so that no account waits for another's receivers."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tunes_dagster.core.urls import origin_of

if TYPE_CHECKING:
    from tunes_dagster.registry.outbox import Leased

# Requests in the air to one receiver of one account.
PER_RECEIVER = 4

Receiver = tuple[str, str]
"""Account and origin: what one account's receiver does says nothing about another's, even at the same host."""


@dataclass
class Turns:
    """Hands out leased callbacks, accounts in turns and their receivers in turns; guarded by one lock.

    Attributes:
        budget_ends: Nothing is started after this moment.
        workers: Requests in the air at most.
        queues: Account → receiver → callbacks with their leases; whoever had a turn goes to the end.
        in_air: Requests by account, and by receiver.
        silent: Receivers that did not answer in this tick.
    """

    budget_ends: float
    workers: int
    queues: dict[str, dict[Receiver, deque[tuple[str, str]]]] = field(default_factory=dict)
    in_air: Counter[str | Receiver] = field(default_factory=Counter)
    silent: set[Receiver] = field(default_factory=set)
    changed: threading.Condition = field(default_factory=threading.Condition)
    closed: bool = False

    def add(self, lease_id: str, leased: Mapping[str, Leased]) -> None:
        """Put leased callbacks at the end of their lines."""
        with self.changed:
            for callback_id, one in leased.items():
                receiver = (one.account_id, origin_of(one.url))
                queues = self.queues.setdefault(one.account_id, {})
                queues.setdefault(receiver, deque()).append((callback_id, lease_id))
            self.changed.notify_all()

    def take(self) -> tuple[Receiver, str, str] | None:
        """Return (receiver, callback, lease), waiting for a turn; None when no more will be started."""
        with self.changed:
            while not self.closed and (left := self.budget_ends - time.monotonic()) > 0:
                if (receiver := self._next()) is not None:
                    return receiver, *self._start(receiver)
                self.changed.wait(left)
            return None

    def _next(self) -> Receiver | None:
        busy = sum(count for who, count in self.in_air.items() if isinstance(who, str))
        for account, queues in self.queues.items():
            mine = self.in_air[account]
            if mine >= max(1, (self.workers - busy + mine) // 2):
                continue
            for receiver, queue in queues.items():
                if queue and receiver not in self.silent and self.in_air[receiver] < PER_RECEIVER:
                    return receiver
        return None

    def _start(self, receiver: Receiver) -> tuple[str, str]:
        account = receiver[0]
        queues = self.queues.pop(account)
        queue = queues.pop(receiver)
        self.queues[account], queues[receiver] = queues, queue
        self.in_air.update((account, receiver))
        return queue.popleft()

    def give_back(self, receiver: Receiver, silent: bool) -> None:
        """Note that an attempt has ended, and whether its receiver said nothing."""
        with self.changed:
            self.in_air.subtract((receiver[0], receiver))
            if silent:
                self.silent.add(receiver)
            self.changed.notify_all()

    def idle(self, seconds: float) -> bool:
        """Wait so long at most; whether nothing is in the air and nothing waits that may be started."""
        with self.changed:
            return self.changed.wait_for(
                lambda: self._next() is None and not any(self.in_air.values()), max(0.0, seconds)
            )

    def close(self) -> None:
        """Start nothing more."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def rest(self) -> dict[str, list[str]]:
        """Return by lease what was not started."""
        left: dict[str, list[str]] = {}
        with self.changed:
            for queues in self.queues.values():
                for callback_id, lease_id in (entry for queue in queues.values() for entry in queue):
                    left.setdefault(lease_id, []).append(callback_id)
            self.queues.clear()
        return left
