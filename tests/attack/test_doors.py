"""Every field of every API that takes an address, with addresses that are none or that lead inside."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from tests.attack.test_urls import ODD
from tests.gateway.conftest import House
from tests.gateway.test_pixazo import PATH as TRAINER
from tests.gateway.test_pixelapi import TRAIN
from tests.support.registry import around
from tunes_dagster.callbacks.deliver import deliver_due
from tunes_dagster.gateway.problems import HttpProblem

TUNE = {"title": "t", "name": "woman", "image_urls": ["https://files.example/a.png"]}
PIXU = {"app_uid": "api", "url": "https://files.example/a.png"}
# Path → body, with `URL` where the address goes; all else is as it should be.
DOORS: dict[str, tuple[str, Any]] = {
    "astria tune callback": ("/tunes", {"tune": {**TUNE, "callback": "URL"}}),
    "astria image": ("/tunes", {"tune": {**TUNE, "image_urls": ["https://files.example/b.png", "URL"]}}),
    "astria prompt in a tune": (
        "/tunes",
        {"tune": {**TUNE, "prompts_attributes": [{"text": "x", "callback": "URL"}]}},
    ),
    "astria input image in a tune": (
        "/tunes",
        {"tune": {**TUNE, "prompts_attributes": [{"text": "x", "input_image_url": "URL"}]}},
    ),
    "astria prompt callback": ("/tunes/690204/prompts", {"prompt": {"text": "x", "callback": "URL"}}),
    "astria input image": ("/tunes/690204/prompts", {"prompt": {"text": "x", "input_image_url": "URL"}}),
    "astria mask": (
        "/tunes/690204/prompts",
        {
            "prompt": {
                "text": "x",
                "input_image_url": "https://files.example/a.png",
                "mask_image_url": "URL",
            }
        },
    ),
    "astria pack": ("/p/PACK/tunes", {"tune": {**TUNE, "prompt_attributes": {"callback": "URL"}}}),
    "astria pack group": ("/p/PACK/tunes", {"tune": {**TUNE, "prompts_callback": "URL"}}),
    "astria inspect": ("/images/inspect", {"name": "woman", "file_url": "URL"}),
    "pixelapi webhook": ("/v1/tunes/train", {**TRAIN, "webhook_url": "URL"}),
    "pixelapi image": ("/v1/image/generate", {"prompt": "x", "image_url": "URL"}),
    "pixazo dataset": (TRAINER, {"image_data_url": "URL"}),
    "pixazo dataset as base64": (TRAINER, {"image_data_url": "BASE64"}),
    "pixu callback": ("/pixu/api/create_model_from_url", {**PIXU, "callback_url": "URL"}),
    "pixu picture": ("/pixu/api/create_model_from_url", {**PIXU, "url": "URL"}),
    "pixu render": ("/pixu/api/txt2img_composition", {"app_uid": "api", "callback_url": "URL"}),
    "native import": ("/native/v1/tunes/import", {"url": "URL", "base": "sdxl"}),
    "native import's pictures": (
        "/native/v1/tunes/import",
        {"url": "https://files.example/a.safetensors", "base": "sdxl", "image_urls": ["URL"]},
    ),
    "native import's callback": (
        "/native/v1/tunes/import",
        {"url": "https://files.example/a.safetensors", "base": "sdxl", "callback_url": "URL"},
    ),
    "native sample": ("/native/v1/callbacks/sample", {"url": "URL"}),
}
BAD = [
    "http://a[@example.com/",
    "http://[::1/",
    "http://example.com:99999/x",
    "http://ex ample.com/",
    "http://example.com:/x",
    "http://localhost:8000/hook",
    "http://127.0.0.1/",
    "http://[::ffff:10.0.0.1]/x",
    "http://example.com\\@10.0.0.1/",
    "http://169.254.169.254/latest",
    "http://0177.0.0.1/",
    "http://x\u200b.example/",
]


def filled(body: Any, url: str) -> Any:
    if isinstance(body, dict):
        return {name: filled(value, url) for name, value in body.items()}
    if isinstance(body, list):
        return [filled(value, url) for value in body]
    return {"URL": url, "BASE64": base64.b64encode(url.encode()).decode()}.get(body, body)


def ask(house: House, door: str, url: str, **query: str) -> Any:
    path, body = DOORS[door]
    headers = {**house.auth(), "Ocp-Apim-Subscription-Key": house.key()}
    whole = filled(body, url) | ({"api_key": house.key()} if path.startswith("/pixu") else {})
    return house.client.post(
        path.replace("PACK", "corporate-headshots"), json=whole, headers=headers, params=query
    )


@pytest.mark.parametrize("door", DOORS)
def test_no_door_takes_an_address_that_is_none_or_leads_inside(house: House, door: str) -> None:
    for url in BAD:
        answer = ask(house, door, url)
        assert answer.status_code in (400, 422), (url, answer.status_code, answer.text)
    assert house.registry.tunes.rows(account_id="ann") == [] == house.registry.prompts.rows(account_id="ann")
    assert house.registry.outbox.of_account("ann") == []
    if "inspect" not in door and "sample" not in door:
        assert ask(house, door, "https://caller.example/hook?secret=é&x=", dry_run="true").status_code < 300


@pytest.mark.parametrize("url", ODD)
def test_no_address_is_a_server_error(house: House, url: str) -> None:
    for door in (
        "astria tune callback",
        "astria image",
        "pixelapi webhook",
        "pixazo dataset",
        "pixu callback",
    ):
        if "\ud800" in url or (door == "pixazo dataset" and not url.lower().startswith("http:")):
            continue  # half a character is no JSON; what is no address there may be base64
        answer = ask(house, door, url)
        assert answer.status_code in (400, 422) or url == "", (door, answer.text)
        assert answer.status_code < 500


@pytest.mark.parametrize("url", ["http://example.com", "http://example.com:80", "https://example.com/hook#"])
def test_what_pixu_appends_changes_no_host(house: House, url: str) -> None:
    """The address that was checked is the one that is called, with the uid at the end of its path or query."""
    answer = ask(house, "pixu callback", url)
    assert answer.status_code == 422 and "callback_url" in answer.json()["error"]
    assert ask(house, "pixu callback", "http://example.com/").status_code == 200


def test_samples_are_limited_and_hold_nobody_up(house: House) -> None:
    house.service.options.samples_per_hour = 3
    codes = [ask(house, "native sample", f"https://{n}.example/").status_code for n in range(5)]
    refused = ask(house, "native sample", "https://6.example/")
    assert codes == [201, 201, 201, 429, 429] and int(refused.headers["retry-after"]) > 0
    assert "sample" in refused.json()["error"]["message"]
    other = {"url": "https://bob.example/"}
    answer = house.client.post("/native/v1/callbacks/sample", json=other, headers=house.auth("bob"))
    assert answer.status_code == 201
    assert len(house.registry.outbox.of_account("ann")) == 3
    report = deliver_due(around(house.registry), allow_hosts=[], timeout_seconds=1.0)
    assert report.delivered == 0 and report.failed + report.dead == 4


def test_nobody_takes_all_places_that_wait_for_others(house: House) -> None:
    service = house.service
    with service.outward("ann"), service.outward("ann"), service.outward("bob"):
        with pytest.raises(HttpProblem) as caught, service.outward("ann"):
            pass
        assert caught.value.status == 503
        with service.outward("bob"), service.outward("carl"):
            pass
    with service.outward("ann"):
        pass
