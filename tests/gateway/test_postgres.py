"""The same server on PostgreSQL: the queries of every list, and the ledger under concurrent requests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text

from tests.gateway.conftest import House
from tests.gateway.test_astria import create as astria_tune
from tests.gateway.test_hostile import BODIES
from tests.gateway.test_pixelapi import TRAIN
from tests.support.databases import new_database
from tunes_dagster.registry import Registry


@pytest.fixture
def elsewhere(house: House, postgres: Engine) -> Iterator[House]:  # noqa: F811
    url = new_database(postgres)
    house.service.registry.close()
    house.service.installation.registry = Registry(url)
    yield house
    house.service.registry.close()
    with postgres.connect() as connection:
        connection.execute(text(f"DROP DATABASE {url.rpartition('/')[2].partition('?')[0]} WITH (FORCE)"))


def test_lists_filters_and_the_ledger(elsewhere: House) -> None:
    house = elsewhere
    poor = house.auth("poor", credits=1_000_000)  # ten trainings
    with ThreadPoolExecutor(8) as pool:
        sent = list(
            pool.map(lambda _: house.client.post("/v1/tunes/train", json=TRAIN, headers=poor), range(30))
        )
    assert sorted({one.status_code for one in sent}) == [200, 402]
    assert sum(one.status_code == 200 for one in sent) == 10
    wallet = house.registry.ledger.wallet("poor")
    assert (wallet.available, wallet.reserved) == (0, 1_000_000)
    assert house.registry.ledger.books("poor") == {"account": 0, "grants": -1_000_000, "reserved": 1_000_000}
    tune = astria_tune(house, prompts_attributes=[{"text": "ohwx woman"}])
    (prompt,) = house.client.get("/prompts", headers=house.auth()).json()
    second = house.client.post(f"/prompts/{prompt['id']}/duplicate", json={}, headers=house.auth()).json()
    house.client.post(f"/prompts/{prompt['id']}/likes", headers=house.auth())
    for query, found in (
        ("orig_prompt_id=" + str(prompt["id"]), [second["id"]]),
        ("liked=true", [prompt["id"]]),
        ("text=ohwx", [second["id"], prompt["id"]]),
    ):
        rows = house.client.get(f"/tunes/{tune['id']}/prompts?{query}", headers=house.auth()).json()
        assert [row["id"] for row in rows] == found, query
    assert house.client.get("/native/v1/health").json()["status"] == "ok"
    assert house.client.get("/native/v1/account", headers=house.auth()).json()["ledger"]
    for kind, result in (("prepare", None), ("train", {"steps": 300, "seconds": 61.5}), ("finish", None)):
        house.registry.work.finish(
            house.registry.work.claim(kind, house.tune(tune["id"]).id, "run").id, "run", result=result
        )
    text = house.client.get("/native/v1/metrics").text
    branch = house.tune(tune["id"]).base_id
    assert f'tunes_training_seconds_total{{base="{branch}"}} 61.5' in text, text
    assert house.client.get("/tunes?branch=fast", headers=house.auth()).json()[0]["id"] == tune["id"]
    for path, body in BODIES:  # what SQLite would keep, PostgreSQL cannot
        headers = {**house.auth(), "Content-Type": "application/json"}
        assert house.client.post(path, content=body, headers=headers).status_code < 500, (path, body[:100])
