"""What is wished for and not met: told of in the header, the row, the timeline and the price, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.conftest import House

TUNE = {"title": "Ann", "name": "woman", "branch": "sd15", "image_urls": ["https://example.com/1.jpg"]}
TRAIN = {"model": "flux", "trigger_word": "ohwx"}


def astria(house: House, prompt: dict[str, Any], path: str = "/tunes/690204/prompts") -> Any:
    return house.client.post(path, json={"prompt": {"text": "a man", **prompt}}, headers=house.auth())


def test_pictures_are_enlarged_by_the_shipped_model(house: House) -> None:
    made, plain = (astria(house, {**more, "seed": 1}) for more in ({"super_resolution": True}, {}))
    assert made.status_code == 201 and "x-tunes-warnings" not in made.headers
    row = house.prompt(made.json()["id"])
    assert row.settings["super_resolution"] and row.settings["upscaler"] is None
    assert made.json()["cost_mc"] - plain.json()["cost_mc"] == 200, "a model does not come free"


@pytest.mark.usefixtures("without_upscaler")
def test_a_prompt_goes_on_without_and_says_so_everywhere(house: House) -> None:
    answer = astria(house, {"super_resolution": True, "face_correct": True, "negative_prompt": "mole"})
    made = answer.json()
    assert answer.status_code == 201 and made["super_resolution"] is True and made["face_correct"] is True
    told = answer.headers["x-tunes-warnings"]
    assert "super_resolution needs upscale-4x" in told and "face_correct needs the package" in told
    row = house.prompt(made["id"])
    assert row.settings["upscaler"] == "lanczos" and row.settings["face_correct"] is False
    assert [one.option for one in row.warnings] == ["super_resolution", "face_correct"]
    seen = house.client.get(f"/native/v1/prompts/{row.id}/timeline", headers=house.auth()).json()
    assert seen["warnings"] == row.warnings
    assert any("upscale-4x" in event.message for event in house.registry.events.of(row.id))
    plain = astria(house, {"negative_prompt": "mole", "seed": 1}).json()
    assert made["cost_mc"] == plain["cost_mc"], "a resampler costs nothing"
    tried = house.client.post(
        "/tunes/690204/prompts?dry_run=1", json={"text": "x", "face_correct": 1}, headers=house.auth()
    )
    assert "face_correct" in tried.json()["warnings"][0] and not tried.json()["would_be_refused"]


@pytest.mark.usefixtures("without_upscaler")
def test_a_tune_goes_on_without_with_its_prompts(house: House) -> None:
    wishes = {"training_face_correct": True, "preset": "flux-lora-fast"}
    prompts = [{"text": f"ohwx woman {n}", "super_resolution": "true"} for n in range(2)]
    body = {"tune": {**TUNE, **wishes, "prompts_attributes": prompts}}
    answer = house.client.post("/tunes", json=body, headers=house.auth())
    told = answer.headers["x-tunes-warnings"]
    assert answer.status_code == 201 and told.count("super_resolution") == 1
    assert "training_face_correct needs" in told and "preset is 'flux-lora-fast'" in told
    row = house.tune(answer.json()["id"])
    assert row.request["dataset"]["face_correct"] is False and len(row.warnings) == 2
    assert answer.json()["training_face_correct"] is True
    shown = house.client.get(f"/native/v1/tunes/{row.id}", headers=house.auth()).json()
    assert shown["warnings"] == row.warnings
    assert all(len(one.warnings) == 1 for one in house.registry.prompts.rows(tune_id=row.id))


def test_negative_prompts_and_weights_on_flux_are_told_of_in_every_api(house: House) -> None:
    asked = {"negative_prompt": "mole", "text": "a (red:1.2) hat (at night)"}
    answer = astria(house, asked, "/tunes/1504944/prompts")
    told = answer.headers["x-tunes-warnings"]
    assert (
        answer.status_code == 201
        and "negative_prompt is not understood" in told
        and "text has weights" in told
    )
    assert answer.json()["negative_prompt"] == "mole"
    assert house.prompt(answer.json()["id"]).settings["negative_prompt"] == ""
    body = {"model": "flux-schnell", "prompt": "x", "negative_prompt": "y"}
    answer = house.client.post("/v1/image/generate", json=body, headers=house.auth())
    assert "negative_prompt is not understood" in answer.headers["x-tunes-warnings"]


@pytest.mark.parametrize("flag", ["--tiled_upscale_v2", "--hires_denoising_strength 0.35", "--upscale_v4"])
def test_flags_that_only_ask_for_a_better_picture_leave_the_text(house: House, flag: str) -> None:
    answer = astria(house, {"text": f"a man {flag} at sea", "prompt_expansion": True})
    assert answer.status_code == 201 and answer.json()["text"] == "a man at sea"
    told = answer.headers["x-tunes-warnings"]
    assert flag.split()[0] in told and "prompt_expansion needs a language model" in told
    other = astria(house, {"text": "a man --remove_background"})
    assert other.status_code == 422, "another picture is refused"


@pytest.mark.usefixtures("without_upscaler")
def test_an_installation_may_refuse_instead(house: House) -> None:
    house.settings.unmet_wishes = "refuse"
    for wish in ("super_resolution", "face_correct", "prompt_expansion"):
        answer = astria(house, {wish: True})
        assert answer.status_code == 422 and wish in answer.text and "/" not in answer.text.split("Run")[0]
    body = {"tune": {**TUNE, "training_face_correct": True}}
    answer = house.client.post("/tunes", json=body, headers=house.auth())
    assert answer.status_code == 422 and "training_face_correct" in answer.json()
    assert not house.registry.prompts.rows() and not house.registry.tunes.rows()
