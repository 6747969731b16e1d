"""One installation with everybody who does something to it: two accounts, an operator, hosts, senders, receivers.

Everything is real but the models: requests go through a desk of the gateway, launches come from what the sensors
decide, callbacks go through the sender to a receiver in this process. Hosts and runs are objects that act when a
history says so, in any order, late, twice or never; nothing here is a thread.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text
from starlette.requests import Request

from tests.machine.seam import Died, Meanwhile, Seam, Trouble
from tests.support.lock_order import unwatched
from tests.support.registry import Clock
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.settings import Settings
from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import Catalog
from tunes_dagster.gateway.desk import Desk
from tunes_dagster.gateway.options import GatewayOptions
from tunes_dagster.gateway.problems import HttpProblem
from tunes_dagster.gateway.service import Caller, Service
from tunes_dagster.registry import Account, Registry, Retries
from tunes_dagster.registry.accepting import Claim
from tunes_dagster.registry.retrying import Outage
from tunes_dagster.registry.tables import Table
from tunes_dagster.service.decide import Launch
from tunes_dagster.service.installation import Installation

ACCOUNTS = ("ann", "bob")
# What the world knows of the rows, and forgets with them.
_REMEMBERED = ("answers", "given", "doubtful", "removed", "kept")
# Most that a plan grants in a month.
BEST_PLAN = 300_000
# What each account was given before.
GIVEN = 350_001
# What the world refuses for good reasons; anything else that a deed raises is a fault.
REFUSED = frozenset(
    {
        FailureCode.CONFLICT,
        FailureCode.CANCELLED,
        FailureCode.UNKNOWN_TUNE,
        FailureCode.INVALID_REQUEST,
        FailureCode.OUT_OF_CREDITS,
        FailureCode.STORE_UNAVAILABLE,
    }
)


@dataclass
class Run:
    """One run on some host.

    Attributes:
        id: Its run id.
        name: Run key or cohort of its launch; the id when a person started it.
        alive: Whether its process is there.
        seen_alive: What Dagster says, which does not hear of a host that lost its power.
        works: Work that it was told is its own, by id.
        ended: Work that it ended itself.
    """

    id: str
    name: str
    kind: str
    alive: bool = True
    seen_alive: bool = True
    works: dict[str, Any] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)


class Chance:
    """Time and chance from which ids are made: the same in every replay of a history."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin again."""
        self._made, self._random = 0, random.Random(0)

    def time_ns(self) -> int:
        """Return a moment later than all before."""
        self._made += 1
        return (1_800_000_000_000 + self._made) * 1_000_000

    def randbits(self, count: int) -> int:
        """Return a number of so many bits."""
        return self._random.getrandbits(count)


@dataclass
class House:
    """What all histories share: none of them changes anything in it.

    Attributes:
        chance: Where ids come from.
        settings: The operator's.
        catalog: With bases that are there by name only.
        template: A SQLite registry with what every history begins with.
        folder: Where the registry and files of the history at hand lie.
        postgres: URL of an empty PostgreSQL database to use in place of a file.
    """

    chance: Chance
    settings: Settings
    catalog: Catalog
    template: Path
    folder: Path
    postgres: str | None = None

    @cached_property
    def registry(self) -> Registry:
        """Opened once, so that no history compiles its statements anew."""
        url = self.postgres or f"sqlite:///{self.folder / 'registry.db'}"
        return Registry(
            url, migrate=False, retries=Retries(retry_backoff=(5.0, 30.0), callback_backoff=(5.0, 30.0))
        )

    @cached_property
    def seam(self) -> Seam:
        """Below it."""
        return Seam(self.registry.engine)

    def empty(self) -> None:
        """Take away what the history before left."""
        registry = self.registry
        registry.work.__dict__.pop("_paces", None)
        registry.outage = Outage()
        if self.postgres is None:
            registry.engine.dispose()
            for old in self.folder.glob("registry.db*"):
                old.unlink()
            shutil.copyfile(self.template, self.folder / "registry.db")
            return
        names = ", ".join(Table.metadata.tables)
        with unwatched(), registry.writing() as session:
            session.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
            epoch = datetime(2026, 1, 1, tzinfo=UTC)
            session.add(Account(id="local", name="local", callback_unknown="resend", created_at=epoch))
        furnish(registry)


def furnish(registry: Registry) -> None:
    """Add what every history begins with: the accounts and their credits."""
    registry.now = Clock()
    for name in ACCOUNTS:
        registry.accounts.add(name)
        registry.ledger.open_wallet(name, plan="house", requests_per_minute=60, monthly_grant=200_000)
        registry.ledger.adjust(name, GIVEN)


class World:
    """See above.

    Args:
        house: What histories share.
    """

    def __init__(self, house: House) -> None:
        house.chance.reset()
        house.empty()
        self.house, self.clock = house, Clock()
        self.registry, self.seam = house.registry, house.seam
        self.registry.now = self.clock
        self.engine: Engine = self.registry.engine
        self.files = house.folder / "store"
        self.files.mkdir(exist_ok=True)
        self.store = Store(self.files)
        self.launches: list[Launch] = []
        self.runs: list[Run] = []
        self.answers: dict[tuple[str, str], tuple[str, str]] = {}
        self.redone: set[str] = set()
        self.gave_up: set[str] = set()
        self.removed: set[str] = set()
        self.kept: dict[str, datetime] = {}
        self.caps: dict[str, float] = {}
        self.given: dict[str, list[int]] = {name: [] for name in ACCOUNTS}
        self.doubtful: dict[str, list[int]] = {name: [] for name in ACCOUNTS}
        for name in ACCOUNTS:
            self.given[name].append(GIVEN)
        self.count = 0
        self.backup: tuple[datetime, dict[str, Any]] | None = None

    @cached_property
    def installation(self) -> Installation:
        """What a process has open."""
        house = self.house
        return Installation(house.settings, registry=self.registry, store=self.store, catalog=house.catalog)

    @cached_property
    def service(self) -> Service:
        """What a server has open."""
        return Service(self.installation, GatewayOptions(public_url="https://tunes.example.com"))

    def close(self) -> None:
        """Take its files away."""
        shutil.rmtree(self.files, ignore_errors=True)

    # Looking, past everything of ours

    def rows(self, query: str, **values: Any) -> list[Any]:
        """Return rows, as anybody with a database client sees them."""
        with self.seam.paused(), self.engine.connect() as connection:
            if values or "%" in query:
                return list(connection.execute(text(query), values))
            return list(connection.exec_driver_sql(query))

    def pick(self, number: int, query: str, **values: Any) -> Any:
        """Return one of the rows, the newest for 0; None when there is none."""
        found = self.rows(query, **values)
        return found[-1 - number % len(found)] if found else None

    def new(self, what: str) -> str:
        """Return a name that nobody had before; the same in every replay."""
        self.count += 1
        return f"{what}-{self.count}"

    # Doing

    def act(
        self, deed: Callable[[], Any], trouble: Trouble | None = None, meanwhile: Meanwhile | None = None
    ) -> Any:
        """Let somebody do something; returns what came of it, None when it was refused or its process died."""
        self.registry.patience = 0.0 if trouble is not None and trouble.kind == "gone" else 3.0
        try:
            with self.seam.armed(trouble, meanwhile):
                return deed()
        except Died:
            return None
        except Failure as refused:
            if refused.code not in REFUSED:
                raise
            return None
        except HttpProblem:
            return None

    def beside(self, deed: Callable[[], Any]) -> Callable[[], Any]:
        """Return a deed that is done inside of another one, by another host."""

        def careful() -> None:
            try:
                deed()
            except Failure as refused:
                if refused.code not in REFUSED:
                    raise
            except HttpProblem:
                return

        return careful

    def forward(self, seconds: float) -> None:
        """Turn the clock."""
        self.clock.moment += timedelta(seconds=seconds)

    # Backups

    def back_up(self) -> None:
        """Copy the registry as it is now, and what the world remembers of it."""
        if self.house.postgres is not None:
            return
        files = (self.house.folder / name for name in ("registry.db", "backup.db"))
        source, target = map(sqlite3.connect, files)
        with closing(source), closing(target):
            source.backup(target)
        kept = {name: copy.deepcopy(getattr(self, name)) for name in _REMEMBERED}
        self.backup = (self.clock(), kept)

    def put_back(self) -> None:
        """Put the last backup back; runs and senders of the time since then do not know of it."""
        if self.backup is None:
            return
        taken_at, kept = self.backup
        self.engine.dispose()
        for old in self.house.folder.glob("registry.db*"):
            old.unlink()
        shutil.copyfile(self.house.folder / "backup.db", self.house.folder / "registry.db")
        self.registry.work.__dict__.pop("_paces", None)
        for name, value in copy.deepcopy(kept).items():
            setattr(self, name, value)
        self.launches.clear()
        self.registry.restoring.restored(taken_at)

    # Callers

    def desk(self, account: str, state: dict[str, Any] | None = None) -> Desk:
        """Return an account's door, for one request."""
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1",
            "headers": [],
            "query_string": b"",
            "state": state or {},
        }
        request: Any = Request(scope)
        request.long_texts = {}
        caller = Caller(account, "key", 60, {})
        return Desk(self.service, caller, "https://tunes.example.com", request)

    def asked_once(self, account: str, key: str, body: Any, accept: Callable[[Desk], str]) -> str | None:
        """Ask with an `Idempotency-Key`, as the gateway's endpoints do; returns the id of what was accepted."""
        digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        registry = self.registry
        claim, first = registry.idempotency.begin(account, key, digest, {"body": body})
        if claim:
            try:
                made = accept(self.desk(account, {"claim": Claim(key, claim)}))
            except Exception:
                registry.idempotency.end(account, key, claim, None)
                raise
            registry.idempotency.end(account, key, claim, 200, made)
            return self._answered(account, key, digest, made)
        assert first is not None
        if first.body_hash != digest:
            return None
        if first.status_code is not None:
            return self._answered(account, key, digest, str(first.answer))
        if not first.subjects:
            return None
        made = accept(self.desk(account, {"made": first.subjects}))
        registry.idempotency.end(account, key, first.claim, 200, made)
        return self._answered(account, key, digest, made)

    def _answered(self, account: str, key: str, digest: str, made: str) -> str:
        before = self.answers.setdefault((account, key), (digest, made))
        assert before == (digest, made), f"{key} of {account} was answered with {before}, then with {made}."
        return made
