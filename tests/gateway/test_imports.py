"""`POST /native/v1/tunes/import`: a file or an address becomes a tune of the account, once, or is refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save

from tests.gateway.conftest import House

URL = "/native/v1/tunes/import"
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


def file_of(**more: object) -> bytes:
    """A LoRA of one layer of a UNet of 64 channels."""
    made = {f"unet.{LAYER}.lora_A.weight": np.ones((4, 64), np.float32)}
    made |= {f"unet.{LAYER}.lora_B.weight": np.ones((64, 4), np.float32)}
    return save({**made, **more}, {"tunes_dagster.class_name": "woman", "modelspec.title": "Ann"})


def send(house: House, data: bytes | None = None, headers: dict[str, str] | None = None, **fields: object):
    files = {"file": ("theirs.safetensors", file_of() if data is None else data)}
    return house.client.post(URL, files=files, data=fields, headers={**house.auth(), **(headers or {})})


def test_an_uploaded_file_becomes_a_tune(house):
    answer = send(house, base="sdxl", token="ohwx", **{"labels[order]": "7"})
    assert answer.status_code == 201, answer.text
    told = answer.json()
    tune = house.registry.tunes.get(told["id"])
    assert (tune.status, tune.origin, tune.class_name, tune.title) == ("prepared", "import", "woman", "Ann")
    assert (told["status"], tune.labels, tune.account_id) == ("prepared", {"order": "7"}, "ann")
    imported = tune.recipe["imported"]
    assert imported["name"] == "theirs.safetensors" and house.store.exists(imported["key"])
    assert [work.kind for work in house.registry.work.of(tune.id)] == ["train"]
    assert house.registry.ledger.wallet("ann").reserved == 10_000, (
        "it is checked and shown like a faceid tune"
    )
    other = house.client.get(f"/native/v1/tunes/{tune.id}", headers=house.auth("bob"))
    assert other.status_code == 404


def test_the_same_key_imports_once(house):
    once, data = {"Idempotency-Key": "a"}, file_of()
    first, again = (send(house, data, headers=once, base="sdxl") for _ in range(2))
    assert first.status_code == again.status_code == 201 and first.json()["id"] == again.json()["id"]
    assert len(house.registry.tunes.rows()) == 1


def test_a_rehearsal_keeps_nothing(house):
    answer = send(house, base="sdxl", dry_run="true")
    assert answer.status_code == 200 and answer.json()["would_be_refused"] == [], answer.text
    refused = send(house, data=b"PK\x03\x04 and so on", dry_run="true", base="sdxl").json()
    assert "a PyTorch pickle" in refused["would_be_refused"][0]
    assert house.registry.tunes.rows() == [] and not list(house.store.list("tunes"))


@pytest.mark.parametrize(
    ("data", "fields", "named"),
    [
        (b"\x80\x04 a pickle", {"base": "sdxl"}, "a pickle"),
        (b"", {"base": "sdxl"}, "empty"),
        (file_of(surprise=np.ones(3)), {"base": "sdxl"}, "surprise"),
        (None, {"base": "made-up"}, "made-up"),
        (None, {"base": "sdxl", "url": "https://example.com/a.safetensors"}, "one safetensors file"),
        (None, {"base": "sdxl", "colour": "red"}, "colour"),
        (None, {"base": "sdxl", "token": "two words"}, "token"),
    ],
)
def test_what_cannot_be_taken_is_named_and_nothing_is_kept(house, data, fields, named):
    answer = send(house, data, **fields)
    assert answer.status_code in (400, 422), answer.text
    assert named in answer.text, answer.text
    assert house.registry.tunes.rows() == [] and not list(house.store.list("tunes"))


def test_an_address_is_fetched_by_the_work_and_needs_a_base(house):
    body = {"url": "https://example.com/a.safetensors", "base": "sdxl", "name": "woman"}
    answer = house.client.post(URL, json=body, headers=house.auth())
    assert answer.status_code == 201, answer.text
    imported = house.registry.tunes.get(answer.json()["id"]).recipe["imported"]
    assert (imported["key"], imported["url"]) == ("", body["url"])
    refused = house.client.post(URL, json={"url": body["url"]}, headers=house.auth())
    assert refused.status_code == 422 and "base" in json.dumps(refused.json())
    inside = house.client.post(URL, json={**body, "url": "http://127.0.0.1/a"}, headers=house.auth())
    assert inside.status_code == 422, inside.text


def test_pictures_come_first_where_there_are_some(house):
    answer = send(house, base="sdxl", archive_url="https://example.com/pictures.zip")
    tune = house.registry.tunes.get(answer.json()["id"])
    assert tune.status == "queued" and [work.kind for work in house.registry.work.of(tune.id)] == ["prepare"]
