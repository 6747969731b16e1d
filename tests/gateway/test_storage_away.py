"""A registry that is locked or away answers 503 with `Retry-After`, in every dialect's form, and without a word of it.

A PostgreSQL that was stopped or killed is asked over HTTP by all dialects at once, and goes on answering afterwards.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from urllib.parse import urlsplit

import pytest

from tests.gateway.conftest import House
from tests.support.databases import Server, new_database
from tunes_dagster.gateway.dialects import pixazo
from tunes_dagster.gateway.files import file_url
from tunes_dagster.registry import Registry, postgres

PATHS = {
    "pixelapi": "/v1/tunes/train",
    "pixazo": pixazo._PATH,
    "pixu": "/pixu/api/txt2img_results",
    "astria": "/tunes",
    "native": "/native/v1/callbacks/sample",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_a_registry_that_is_locked_is_a_passing_refusal(house: House, path: str) -> None:
    auth = {**house.auth(), "Ocp-Apim-Subscription-Key": house.key()}
    impatient = Registry(house.registry.url, busy_seconds=0.05, patience=0.1)
    house.service.installation.registry = impatient
    other = sqlite3.connect(impatient.engine.url.database or "", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        answer = house.client.post(
            path, headers={**auth, "Idempotency-Key": f"one-{path}"}, json={"api_key": house.key()}
        )
    finally:
        other.execute("ROLLBACK")
        other.close()
        impatient.close()
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) > 0
    assert "registry.db" not in answer.text and "locked" not in answer.text


@pytest.fixture
def elsewhere(house: House, own_postgres: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A server on a PostgreSQL that can be stopped, whose calls end soon."""
    monkeypatch.setattr(postgres, "PING_SECONDS", 0.3)
    monkeypatch.setattr(postgres, "_MARGIN_SECONDS", 0.2)
    monkeypatch.setitem(postgres._LIBPQ, "connect_timeout", 2)
    house.service.registry.close()
    house.service.installation.registry = Registry(
        new_database(own_postgres.engine), answer_seconds=2.0, patience=0.1
    )
    house.key()
    yield house


def ask_all(house: House) -> dict[str, tuple[int, int, str]]:
    """Return status, Retry-After and body of every dialect's answer to a request that reads and one that writes."""
    auth = {**house.auth(), "Ocp-Apim-Subscription-Key": house.key()}

    def ask(one: tuple[str, str]) -> tuple[int, int, str]:
        method, path = one
        answer = house.client.request(
            method, path, headers=auth, json={"api_key": house.key()} if method == "POST" else None
        )
        return answer.status_code, int(answer.headers.get("Retry-After", 0)), answer.text

    asked = [("POST", path) for path in PATHS.values()]
    asked += [("GET", "/tunes"), ("GET", "/v1/tunes/tune_nobodys"), ("GET", "/native/v1/account")]
    with ThreadPoolExecutor(len(asked)) as pool:
        return {
            f"{method} {path}": told for (method, path), told in zip(asked, pool.map(ask, asked), strict=True)
        }


def test_a_server_that_froze_or_was_killed_is_a_passing_refusal_in_every_dialect(
    elsewhere: House, own_postgres: Server
) -> None:
    well = {one: status for one, (status, _after, _body) in ask_all(elsewhere).items()}
    assert all(status < 500 for status in well.values()), well
    for stop, go_on in (
        (own_postgres.freeze, own_postgres.thaw),
        (own_postgres.kill, own_postgres.start),
    ):
        stop()
        elsewhere.service._seen.clear()  # keys that were seen a moment ago are let in without a look
        for one, (status, after, body) in ask_all(elsewhere).items():
            assert (status, after > 0) == (503, True), (one, status, body)
            assert "postgres" not in body.lower() and "timeout" not in body, (one, body)
        go_on()
        again = {one: status for one, (status, _after, _body) in ask_all(elsewhere).items()}
        assert again == well


def test_a_file_is_not_gone_when_the_store_is_away(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    key = house.store.write_bytes("batches/b/1/p-0.png", b"\x89PNG")
    until = house.registry.now() + timedelta(hours=1)
    path = urlsplit(file_url(house.service.secret, "http://testserver", key, until)).path
    found, broken = house.store.path, [ConnectionResetError(104, "Connection reset by peer")]

    def reset_once(key: str) -> object:
        if broken:
            raise broken.pop()
        return found(key)

    monkeypatch.setattr(house.store, "path", reset_once)
    answer = house.client.get(path)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5"), answer.text
    assert house.client.get(path).status_code == 200
