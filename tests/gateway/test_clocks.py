"""The host's clock is a minute or a day away from the database's, by which everything is dated: all goes on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest

from tests.gateway.conftest import House
from tests.gateway.test_pixelapi import train
from tunes_dagster.campaigns.files import Source
from tunes_dagster.campaigns.keeping import Keeper
from tunes_dagster.gateway.files import file_url
from tunes_dagster.registry import Registry

DAILY = b"name: looks\ncron: '0 0 * * *'\nstart: 2026-01-01\nbase: sdxl\nprompts:\n  - text: a mug\n"


@pytest.fixture(params=[61, 86_400, -86_400], ids=["61s", "day-ahead", "day-behind"])
def elsewhen(house: House, request: pytest.FixtureRequest) -> House:
    """A server whose database has another time than its host."""
    apart = timedelta(seconds=request.param)
    house.registry.close()
    house.service.installation.registry = Registry(
        house.settings.resolved_registry_url, now=lambda: datetime.now(UTC) + apart
    )
    return house


def test_addresses_uploads_and_pictures_live_as_long_as_ever(elsewhen: House, pictures) -> None:
    house = elsewhen
    opened = train(house)
    assert house.client.post(opened["upload_url"], files=pictures(5)).status_code == 200
    tune = house.finish_tune(house.registry.tunes.get(opened["job_id"]))
    asked = {"tune_id": tune.id.replace("tune_", "lora_"), "prompt": "a photo of ohwx", "num_images": 1}
    job = house.client.post("/v1/tunes/infer", json=asked, headers=house.auth()).json()["job_id"]
    assert house.client.get("/native/v1/health").json()["status"] == "ok"
    house.render_all()
    shown = house.client.get(f"/v1/tunes/{job}", headers=house.auth()).json()
    assert shown["status"] == "completed" and len(shown["images"]) == 1, shown
    assert house.client.get(urlsplit(shown["images"][0]).path).status_code == 200
    ((key,),) = [prompt.images for prompt in house.registry.prompts.rows()]
    for hours, status in ((0.01, 200), (-0.01, 403)):
        until = house.registry.now() + timedelta(hours=hours)
        address = file_url(house.service.secret, "http://testserver", key, until)
        assert house.client.get(urlsplit(address).path).status_code == status
    listed = house.client.get("/native/v1/tunes", headers=house.auth()).json()
    assert listed


def test_a_campaign_comes_when_the_database_says_so(elsewhen: House) -> None:
    house = elsewhen
    keeper = Keeper(house.service.installation)
    row, _drawn = keeper.add(Source("looks.yaml", DAILY))
    assert keeper.dates(row)[-1] == keeper.date_of(row, None) == f"{house.registry.now():%Y-%m-%d}"
