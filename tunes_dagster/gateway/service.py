"""What one server holds: the installation's parts, the rate limiter, the keys it has just seen."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import storage_from_string
from limits.strategies import FixedWindowRateLimiter

from tunes_dagster.core.prices import PriceList
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import Catalog
from tunes_dagster.gateway.options import GatewayOptions, read_options, signing_secret
from tunes_dagster.gateway.problems import HttpProblem
from tunes_dagster.gateway.turns import Turns
from tunes_dagster.intake.sandbox.pool import get_pool
from tunes_dagster.registry import ApiKey, Registry, Wallet
from tunes_dagster.registry.keys import key_hash
from tunes_dagster.service.installation import Installation

log = logging.getLogger("tunes.gateway")

# A revoked key or changed plan counts after this long at the latest.
KEY_CACHE_SECONDS = 5.0
_CACHE_SIZE = 10_000
# Requests that may wait for somebody else's server at a time, in all and of one account; each keeps one of the server's
# 40 threads.
_OUTWARD = 8
_OUTWARD_EACH = 2
# Lists show an expected end per row; how long tunes take changes slowly.
_PACE_SECONDS = 10.0
# That a statement may take while a caller waits; with a lost connection and a new one an answer takes 30 s at most.
_ANSWER_SECONDS = 15.0


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        account_id: The tenant.
        key_id: The key that proved it.
        requests_per_minute: Limit of the plan.
        options: The account's choices.
    """

    account_id: str
    key_id: str
    requests_per_minute: int
    options: dict[str, Any]


@dataclass(frozen=True)
class Rate:
    """Where a caller stands with its limit."""

    limit: int
    remaining: int
    reset_seconds: int

    @property
    def headers(self) -> dict[str, str]:
        """What every answer carries."""
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(self.reset_seconds),
        }


@dataclass
class Service:
    """Everything a request needs; made once per process by `app.create_app`."""

    installation: Installation
    options: GatewayOptions
    _seen: dict[str, tuple[float, Caller]] = field(default_factory=dict)
    _pace: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, "behind-the-answer")
        self._outward = threading.BoundedSemaphore(_OUTWARD)
        self._outward_of: dict[str, threading.BoundedSemaphore] = {}
        self.looking = Turns(get_pool().places)
        self.limiter = FixedWindowRateLimiter(storage_from_string(self.options.rate_limit_store))
        self.secret = signing_secret(self.settings, self.options)

    @property
    def settings(self) -> Settings:
        """The operator's."""
        return self.installation.settings

    @property
    def registry(self) -> Registry:
        """The rows."""
        return self.installation.registry

    @property
    def store(self) -> Store:
        """The files."""
        return self.installation.store

    @property
    def catalog(self) -> Catalog:
        """The base models."""
        return self.installation.catalog

    @property
    def prices(self) -> PriceList:
        """What the work costs."""
        return self.installation.prices

    @contextmanager
    def outward(self, account_id: str) -> Iterator[None]:
        """Hold one of the few places for requests that wait for somebody else's server.

        Raises:
            HttpProblem: 503 when all are taken, or those of one account: who waits must not keep the others from being
                answered.
        """
        mine = self._outward_of.setdefault(account_id, threading.BoundedSemaphore(_OUTWARD_EACH))
        if not mine.acquire(blocking=False):
            raise _busy()
        try:
            if not self._outward.acquire(blocking=False):
                raise _busy()
            try:
                yield
            finally:
                self._outward.release()
        finally:
            mine.release()

    def later(self, work: Callable[..., object], *args: object, **more: object) -> None:
        """Do something behind the answer, one after another; what goes wrong is logged."""

        def careful() -> None:
            try:
                work(*args, **more)
            except Exception:
                log.exception("behind the answer", extra={"facts": {"work": getattr(work, "__name__", "")}})

        self._worker.submit(careful)

    def settle(self) -> None:
        """Wait for everything that was put behind an answer."""
        self._worker.submit(lambda: None).result()

    def known(self, secret: str) -> Caller | None:
        """Return the caller of a key that was looked up a moment ago."""
        found = self._seen.get(key_hash(secret))
        return found[1] if found is not None and found[0] > time.monotonic() else None

    def look_up(self, secret: str) -> Caller:
        """Return the caller of a key.

        Raises:
            HttpProblem: 401 for unknown and revoked keys.
        """
        row = self.registry.keys.find(secret) if secret and len(secret) < 200 else None
        ended = row is not None and row.expires_at is not None and row.expires_at <= self.registry.now()
        if row is None or row.revoked_at is not None or ended:
            raise HttpProblem(401, "Invalid or missing API key", code="unauthorized")
        caller = self._caller(row)
        if len(self._seen) > _CACHE_SIZE:
            self._seen.clear()
        self._seen[key_hash(secret)] = (time.monotonic() + KEY_CACHE_SECONDS, caller)
        return caller

    def _caller(self, row: ApiKey) -> Caller:
        wallet: Wallet = self.registry.ledger.wallet(row.account_id)
        return Caller(row.account_id, row.id, wallet.requests_per_minute, wallet.options)

    def recent_seconds(self, base_id: str) -> float:
        """Return how long the latest tunes of a base took in the median; 0 when there was none."""
        found = self._pace.get(base_id)
        if found is None or found[0] < time.monotonic():
            seen = self.registry.figures.recent_seconds(base_id)
            found = (time.monotonic() + _PACE_SECONDS, statistics.median(seen) if seen else 0.0)
            self._pace[base_id] = found
        return found[1]

    def hit(self, caller: Caller) -> Rate:
        """Count one request.

        Raises:
            HttpProblem: 429 when the plan's limit is used up.
        """
        item = RateLimitItemPerMinute(caller.requests_per_minute)
        allowed = self.limiter.hit(item, caller.account_id)
        stats = self.limiter.get_window_stats(item, caller.account_id)
        reset = max(0, round(stats.reset_time - time.time()))
        rate = Rate(caller.requests_per_minute, stats.remaining, reset)
        if not allowed:
            headers = {**rate.headers, "Retry-After": str(max(1, reset))}
            raise HttpProblem(
                429, "Rate limit exceeded, please retry later", headers=headers, code="rate_limited"
            )
        return rate

    def hit_sample(self, account_id: str) -> None:
        """Count one sample callback: it costs nothing, and its receiver may be anybody.

        Raises:
            HttpProblem: 429 when the account had as many as an hour allows.
        """
        item = RateLimitItemPerHour(self.options.samples_per_hour)
        if not self.limiter.hit(item, "samples", account_id):
            reset = self.limiter.get_window_stats(item, "samples", account_id).reset_time - time.time()
            said = f"{self.options.samples_per_hour} sample callbacks an hour are sent; try again later"
            raise HttpProblem(
                429, said, headers={"Retry-After": str(max(1, round(reset)))}, code="rate_limited"
            )


def _busy() -> HttpProblem:
    said = "Too many addresses are being looked at; try again in a few seconds"
    return HttpProblem(503, said, headers={"Retry-After": "5"}, code="busy")


def open_service(settings: Settings, options: GatewayOptions | None = None) -> Service:
    """Open the installation for a server."""
    return Service(Installation(settings, answer_seconds=_ANSWER_SECONDS), options or read_options())


@lru_cache(maxsize=4)  # a process writes callbacks of one installation; tests of a few
def service_around(installation: Installation) -> Service:
    """Return what writing a callback needs, around an installation that is open already."""
    return Service(installation, read_options())
