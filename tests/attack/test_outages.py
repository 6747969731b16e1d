"""A database that is killed and frozen again and again under all who use it: nothing is lost, doubled or stuck."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import httpx
import pytest

from tests.support.databases import Server, new_database
from tests.support.registry import add_tune, around, prompt_request
from tunes_dagster.callbacks import recording
from tunes_dagster.callbacks.deliver import deliver_due
from tunes_dagster.core.ids import new_id
from tunes_dagster.registry import Registry, Retries
from tunes_dagster.registry.prompts import NewPrompt
from tunes_dagster.registry.retrying import DatabaseAway

SECONDS = 7.0
CREDITS = 10_000_000


def make_tunes(registry: Registry, name: str) -> None:
    tune = add_tune(registry, id=f"tune_{name}", price=100)
    for kind in ("prepare", "train", "finish"):
        work = registry.work.claim(kind, tune.id, f"{name}-{kind}")
        registry.work.progress(work.id, f"{name}-{kind}", phase="x", step=1, total=2)
        registry.work.finish(work.id, f"{name}-{kind}")


def make_pictures(registry: Registry, name: str) -> None:
    asked = prompt_request(callback_url="http://caller.test/p")
    registry.prompts.accept([NewPrompt(request=asked, base_id="tiny-sdxl", price=10) for _ in range(2)])
    for batch in registry.groups.make_batches(wait_seconds=0):
        run = new_id("run")
        work = registry.work.claim("render", batch.id, run)
        for prompt in registry.prompts.rows(batch_id=batch.id):
            registry.prompts.done(prompt.id, work.id, run, [f"{prompt.id}-0.png"])
        registry.work.finish(work.id, run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_nothing_is_lost_doubled_or_stuck(
    own_postgres: Server, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(recording, "_GRACE_SECONDS", 1.0)
    url, chance = new_database(own_postgres.engine), random.Random(seed)

    def opened(patience: float) -> Registry:
        return Registry(url, patience=patience, retries=Retries(callback_backoff=(0.0,) * 8))

    registry = opened(120.0)
    registry.ledger.open_wallet("local", plan="pro", requests_per_minute=60)
    registry.ledger.adjust("local", CREDITS)
    ends, errors, got = time.monotonic() + SECONDS, [], Counter[str]()

    def again_and_again(act: Callable[[Registry, str], None], name: str, patience: float) -> None:
        mine, number = opened(patience), 0
        while time.monotonic() < ends:
            number += 1
            try:
                act(mine, f"{name}{number}")
            except Exception as error:
                errors.append(repr(error))
        mine.close()

    def receive(request: httpx.Request) -> httpx.Response:
        got[request.headers["webhook-id"]] += 1
        return httpx.Response(200, stream=httpx.ByteStream(b"ok"))

    http = httpx.Client(transport=httpx.MockTransport(receive))

    def send(mine: Registry, _name: str) -> None:
        with suppress(DatabaseAway):
            deliver_due(around(mine), http, budget_seconds=2.0)
        time.sleep(0.1)

    users = [
        threading.Thread(target=again_and_again, args=one)
        for one in (
            (make_tunes, "a", 120.0),
            (make_tunes, "b", 120.0),
            (make_pictures, "c", 120.0),
            (make_pictures, "d", 120.0),
            (send, "e", 0.5),
        )
    ]
    for user in users:
        user.start()
    while time.monotonic() < ends:
        time.sleep(chance.uniform(0.2, 1.5))
        stop, go_on = chance.choice(
            [(own_postgres.kill, own_postgres.start), (own_postgres.freeze, own_postgres.thaw)]
        )
        stop()
        time.sleep(chance.uniform(0.0, 0.8))
        go_on()
    for user in users:
        user.join(120)
    assert not any(user.is_alive() for user in users) and errors == []
    ends = time.monotonic() + 60
    while registry.outbox.rows(state="pending", limit=1):
        assert time.monotonic() < ends
        send(registry, "")
    tunes, prompts = registry.tunes.rows(limit=10_000), registry.prompts.rows(limit=10_000)
    assert {tune.status for tune in tunes} == {"ready"} and {one.status for one in prompts} == {"done"}
    wallet = registry.ledger.wallet("local")
    assert (wallet.reserved, CREDITS - wallet.available) == (0, 100 * len(tunes) + 10 * len(prompts))
    assert sum(registry.ledger.books("local").values()) == 0
    assert len(got) == len(tunes) + len(prompts) and set(got.values()) == {1}
    assert registry.audit.faults() == []
    registry.close()
