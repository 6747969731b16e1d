"""Pixazo: submit and result, every kind of dataset, the vendor's error bodies."""

from __future__ import annotations

import base64
from urllib.parse import urlsplit

import pytest

from tests.gateway.conftest import House

PATH = "/flux-2-pro-text-to-image-trainer-712/v1/flux-2-pro-text-to-image-trainer-request"
ZIP_URL = "https://example.com/dataset.zip"


def headers(house: House, account: str = "ann", **more: int) -> dict[str, str]:
    return {"Ocp-Apim-Subscription-Key": house.key(account, **more), "Cache-Control": "no-cache"}


def submit(house: House, **body: object):
    return house.client.post(PATH, json={"image_data_url": ZIP_URL, **body}, headers=headers(house))


def test_a_job_from_request_to_its_files(house: House) -> None:
    answer = submit(house, steps=1500, learning_rate=0.00003)
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "IN_QUEUE" and body["message"] == "Training job queued for execution."
    tune = house.registry.tunes.get(body["request_id"])
    assert tune.base == "flux2-dev" and tune.request["sources"]["archive_url"] == ZIP_URL
    assert tune.recipe["training"]["steps"] == 1500 and tune.recipe["training"]["learning_rate"] == 0.00003
    assert house.registry.ledger.wallet("ann").reserved == 8_000_000

    asked = {"request_id": tune.id}
    waiting = house.client.post(f"{PATH}-result", json=asked, headers=headers(house)).json()
    assert waiting["status"] == "IN_QUEUE"
    house.finish_tune(tune)
    done = house.client.post(f"{PATH}-result", json=asked, headers=headers(house)).json()
    assert done["status"] == "COMPLETED" and done["output"]["media_type"] == "application/octet-stream"
    assert done["output"]["media_url"] == [done["diffusers_lora_file"]["url"]]
    for url in (done["diffusers_lora_file"]["url"], done["config_file"]["url"]):
        assert house.client.get(urlsplit(url).path).status_code == 200
    polled = house.client.get(f"/v2/requests/status/{tune.id}", headers=headers(house)).json()
    assert polled["status"] == "COMPLETED" and house.registry.ledger.wallet("ann").available == 2_000_000


@pytest.mark.parametrize(
    "given",
    [
        ZIP_URL,
        base64.b64encode(ZIP_URL.encode()).decode(),
        base64.b64encode(b"PK\x03\x04" + b"z" * 100).decode(),
        "data:application/zip;base64," + base64.b64encode(b"PK\x03\x04" + b"z" * 100).decode(),
    ],
    ids=["url", "base64 of a url", "base64 of a zip", "data uri"],
)
def test_every_kind_of_dataset(house: House, given: str) -> None:
    answer = submit(house, image_data_url=given)
    assert answer.status_code == 200, answer.text
    sources = house.registry.tunes.get(answer.json()["request_id"]).request["sources"]
    assert sources["archive_url"] == ZIP_URL or house.store.read_bytes(sources["uploads"][0])[:2] == b"PK"


def test_a_default_caption_is_taken(house: House) -> None:
    answer = submit(house, default_caption="portrait of TOK, soft light")
    request = house.registry.tunes.get(answer.json()["request_id"]).request
    assert request["default_caption"] == "portrait of TOK, soft light"


def test_errors_have_the_vendors_bodies(house: House) -> None:
    key = headers(house)
    assert house.client.post(PATH, json={"image_data_url": ZIP_URL}).json() == {
        "error": "Invalid or missing authentication"
    }
    missing = house.client.post(PATH, json={}, headers=key)
    assert missing.status_code == 400 and missing.json()["error"] == "Invalid request parameters"
    broken = house.client.post(PATH, content=b"{", headers=key)
    assert broken.status_code == 400 and broken.json()["error"] == "Invalid request parameters"
    value = submit(house, steps=-3)
    assert (
        value.status_code == 400
        and value.json()["error"] == "Invalid parameters"
        and "steps" in value.json()["detail"]
    )
    unknown = house.client.post(f"{PATH}-result", json={"request_id": "tune_no"}, headers=key)
    assert unknown.status_code == 404
    lost = house.client.post("/flux-2-pro-text-to-image-trainer-712/v1/other", json={}, headers=key)
    assert lost.status_code == 404 and lost.json() == {"error": "Endpoint not found"}
    poor = house.client.post(
        PATH, json={"image_data_url": ZIP_URL}, headers=headers(house, "poor", credits=1)
    )
    assert poor.status_code == 402 and "error" in poor.json()
