"""Weights leave the house only when their tune is ready, whichever road is tried."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.gateway.conftest import House
from tests.gateway.test_astria import create as astria_tune
from tests.gateway.test_pixazo import submit as pixazo_tune
from tunes_dagster.core import clock
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.gateway.files import file_url
from tunes_dagster.registry import Tune


def trained(house: House, tune: Tune) -> Tune:
    """Play the pipeline until the weights lie in the store."""
    for kind in ("prepare", "train"):
        work = house.registry.work.claim(kind, tune.id, "run")
        key = house.store.write_bytes(f"tunes/{tune.id}/lora/1/w.safetensors", b"w" * 5000)
        made = {"weights_key": key, "kohya_key": key} if kind == "train" else None
        house.registry.work.finish(work.id, "run", result=made)
    return house.registry.tunes.get(tune.id)


def _roads(house: House, tune: Tune) -> list[str]:
    """Return every address that would lead to a tune's weights, those that nobody was told included."""
    until = clock.now() + timedelta(hours=1)
    key = tune.result["weights_key"]
    told = [
        house.client.get(f"/tunes/{tune.number}", headers=house.auth()).json()["ckpt_url"],
        *_pixazo(house, tune),
    ]
    return [
        f"/native/v1/tunes/{tune.id}/weights/diffusers",
        f"/native/v1/tunes/{tune.id}/weights/kohya",
        file_url(house.service.secret, "", key, until),
        *(url.removeprefix("https://tunes.example.com") for url in told if url),
    ]


def _pixazo(house: House, tune: Tune) -> list[str]:
    headers = {"Ocp-Apim-Subscription-Key": house.key()}
    said = house.client.get(f"/v2/requests/status/{tune.id}", headers=headers).json()
    return [
        (said.get("diffusers_lora_file") or {}).get("url"),
        *(said.get("output") or {}).get("media_url", []),
    ]


@pytest.mark.parametrize("end", ["nothing", "cancel", "cancel while finishing", "finishing fails", "delete"])
@pytest.mark.parametrize("door", ["astria", "pixazo"])
def test_weights_of_a_tune_that_is_not_ready_are_served_nowhere(house: House, end: str, door: str) -> None:
    if door == "astria":
        row = house.tune(astria_tune(house)["id"])
    else:
        row = house.registry.tunes.get(
            pixazo_tune(house, image_data_url="https://example.com/x.zip").json()["request_id"]
        )
    tune = trained(house, row)
    finishing = house.registry.work.claim("finish", tune.id, "run") if "finish" in end else None
    if end.startswith("cancel"):
        house.client.post(f"/native/v1/tunes/{tune.id}/cancel", headers=house.auth())
    elif end == "delete":
        house.registry.work.delete_tune(tune.id)
    if finishing is not None and end == "finishing fails":
        house.registry.work.fail(finishing.id, "run", Failure(FailureCode.WEIGHTS_UNUSABLE, "Not finite."))
    elif finishing is not None:
        house.registry.work.finish(finishing.id, "run")
    if end == "delete":
        roads = [
            file_url(house.service.secret, "", tune.result["weights_key"], clock.now() + timedelta(hours=1))
        ]
    else:
        roads = _roads(house, tune)
    assert house.store.exists(tune.result["weights_key"])
    for road in roads:
        answer = house.client.get(road, headers=house.auth())
        assert answer.status_code == 404 and b"wwww" not in answer.content, road


def test_weights_of_a_ready_tune_are_served_on_every_road(house: House) -> None:
    tune = house.tune(astria_tune(house)["id"])
    trained(house, tune)
    house.registry.work.finish(house.registry.work.claim("finish", tune.id, "run").id, "run")
    roads = _roads(house, house.registry.tunes.get(tune.id))
    assert len(roads) == 6
    for road in roads:
        assert house.client.get(road, headers=house.auth()).content == b"w" * 5000, road


def test_the_words_of_a_pti_tune_are_served_like_its_weights(house: House) -> None:
    """Every SDXL tune that comes through Astria's API is one; its LoRA alone is told `ohwx` in vain."""
    tune = house.tune(astria_tune(house, model_type="pti", branch="sdxl1")["id"])
    assert tune.kind == "pti"
    words = house.store.write_bytes(f"tunes/{tune.id}/lora/1/ohwx.safetensors", b"words")
    for kind in ("prepare", "train"):
        work = house.registry.work.claim(kind, tune.id, "run")
        key = house.store.write_bytes(f"tunes/{tune.id}/lora/1/w.safetensors", b"weights")
        made = {"weights_key": key, "kohya_key": key, "words_key": words} if kind == "train" else None
        house.registry.work.finish(work.id, "run", result=made)
    address = f"/native/v1/tunes/{tune.id}/weights/embeddings"
    until = clock.now() + timedelta(hours=1)
    signed = file_url(house.service.secret, "", words, until)
    for road in (address, signed):
        assert house.client.get(road, headers=house.auth()).status_code == 404
    house.registry.work.finish(house.registry.work.claim("finish", tune.id, "run").id, "run")
    answer = house.client.get(address, headers=house.auth())
    assert answer.content == b"words" and "ohwx.safetensors" in answer.headers["Content-Disposition"]
    files = house.client.get(f"/native/v1/tunes/{tune.id}", headers=house.auth()).json()["files"]
    assert [one["form"] for one in files] == ["diffusers", "kohya", "embeddings"]
    shown = house.client.get(f"/tunes/{tune.number}", headers=house.auth()).json()
    assert len(shown["ckpt_urls"]) == 3 and shown["ckpt_url"] == shown["ckpt_urls"][0]
    told = [url.removeprefix("https://tunes.example.com") for url in shown["ckpt_urls"]]
    assert b"words" in [house.client.get(url).content for url in told]
