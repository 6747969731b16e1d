"""What clients send and look for beside the documented calls: addresses for files, sentences, other methods."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from tests.gateway.conftest import House
from tests.gateway.test_astria import create as astria_tune
from tests.gateway.test_pixelapi import TRAIN
from tunes_dagster.core.recipe import PromptRequest
from tunes_dagster.gateway.dialects.astria import callback
from tunes_dagster.registry.outbox import Sending
from tunes_dagster.service.submit import submit_prompt

TUNE: dict[str, Any] = {"title": "t", "name": "woman"}
URL = "https://example.com/x.jpg"
TRAINER = "/flux-2-pro-text-to-image-trainer-712/v1/flux-2-pro-text-to-image-trainer-request"


@pytest.mark.parametrize(
    "body",
    [
        {"json": {"tune": {**TUNE, "images": [URL]}}},
        {"json": {"tune": {**TUNE, "images": URL}}},
        {"json": {"tune": {**TUNE, "images": {"0": URL}}}},
        {"json": {"tune": {**TUNE, "image_urls": {"0": URL}}}},
        {"data": {"tune[title]": "t", "tune[name]": "woman", "tune[images][]": URL}},
        {"data": {"tune[title]": "t", "tune[name]": "woman", "tune[images][0]": URL}},
    ],
)
def test_an_address_among_the_images_of_a_tune_is_fetched(house: House, body: dict[str, Any]) -> None:
    made = house.client.post("/tunes", headers=house.auth(), **body)
    assert made.status_code == 201, made.text
    assert made.json()["orig_images"] == [URL]
    assert house.tune(made.json()["id"]).request["sources"]["image_urls"] == [URL]


def test_a_file_and_an_address_make_one_tune(house: House) -> None:
    fields = {"tune[title]": "t", "tune[name]": "woman", "tune[images][]": URL}
    files = [("tune[images][]", ("a.png", b"\x89PNG", "image/png"))]
    made = house.client.post("/tunes", data=fields, files=files, headers=house.auth())
    sources = house.tune(made.json()["id"]).request["sources"]
    assert sources["image_urls"] == [URL] and len(sources["uploads"]) == 1


@pytest.mark.parametrize(
    "given", ["nonsense", "/etc/passwd", {"a": 1}, 7, ["x"], "data:image/png;base64,eA=="]
)
def test_what_is_neither_file_nor_address_is_refused_by_name(house: House, given: Any) -> None:
    answer = house.client.post("/tunes", json={"tune": {**TUNE, "images": [given]}}, headers=house.auth())
    assert answer.status_code == 422 and "neither a file nor" in answer.json()["images"][0]


@pytest.mark.parametrize("host", ["localhost:3000", "127.0.0.1", "[::1]", "10.0.0.7"])
def test_an_address_inside_is_judged_when_it_is_handed_in(house: House, host: str) -> None:
    where = f"http://{host}/hook"
    trained = house.client.post("/v1/tunes/train", json={**TRAIN, "webhook_url": where}, headers=house.auth())
    assert trained.status_code == 422 and "not public" in trained.json()["detail"]
    for name in ("callback", "image_urls", "images"):
        told = {**TUNE, "image_urls": [URL], name: where if name == "callback" else [where]}
        answer = house.client.post("/tunes", json={"tune": told}, headers=house.auth())
        assert answer.status_code == 422, name
        assert "not public" in answer.json()["callback" if name == "callback" else "image_urls"][0]
    assert house.registry.tunes.rows(account_id="ann") == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "dress"}, "needs a person's face, but 'dress'"),
        ({"name": "style"}, "needs a person's face, but 'style'"),
        ({"branch": "flux1"}, "faceid is made on sd15 and sdxl1, not on flux1"),
        ({"base_tune_id": 1504944, "name": "dress"}, "not on flux1"),
    ],
)
def test_faceid_that_cannot_be_made_is_refused_with_the_reason(
    house: House, fields: dict[str, Any], reason: str
) -> None:
    asked = {**TUNE, "image_urls": [URL], "model_type": "faceid", **fields}
    answer = house.client.post("/tunes", json={"tune": asked}, headers=house.auth())
    assert answer.status_code == 422 and reason in answer.json()["model_type"][0]
    assert reason in answer.json()["error"]


def test_every_refusal_of_fields_has_its_sentence(house: House) -> None:
    """Clients print `error`, `detail` or `error.message`; none of them joins lists."""
    auth = {**house.auth(), "Ocp-Apim-Subscription-Key": house.key()}
    calls = {
        "/tunes": "error",
        "/packs": "error",
        "/tunes/666678/prompts": "error",
        "/v1/tunes/train": "detail",
        "/v1/tunes/infer": "detail",
        TRAINER: "error",
        "/pixu/api/create_model": "error",
    }
    for path, word in calls.items():
        answer = house.client.post(path, json={"name": 7}, headers=auth)
        assert answer.status_code in (400, 422) and isinstance(answer.json()[word], str), (path, answer.text)
        assert answer.json()[word]
    answer = house.client.post("/native/v1/callbacks/sample", json={}, headers=auth)
    assert "url" in answer.json()["error"]["message"]


# Path → its vendor's word for what is wrong.
LOST = {
    "/v1/nothing": "detail",
    "/v1": "detail",
    "/tunes/1/2/3": "error",
    "/workspaces/1/2": "error",
    "/p": "error",
    "/pixu/api/nothing": "error",
    "/pixu": "error",
    "/flux-2-pro-text-to-image-trainer-712/v1/nothing": "error",
    "/v2/requests": "error",
    "/native/v1/nothing": "error",
    "/nowhere": "detail",
}


@pytest.mark.parametrize("path", LOST)
def test_paths_that_meet_nothing_are_answered_in_the_vendors_form(house: House, path: str) -> None:
    answer = house.client.get(path)
    assert answer.status_code == 404 and answer.json()[LOST[path]], answer.text
    if path == "/nowhere":
        assert answer.json()["error"] == answer.json()["detail"]
    if path.startswith("/native"):
        assert answer.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/tunes", "GET, HEAD, POST, OPTIONS"),
        ("/tunes/1", "GET, HEAD, PATCH, DELETE, OPTIONS"),
        ("/v1/tunes/train", None),
        ("/v1/image/generate", "GET, HEAD, POST, OPTIONS"),
        (TRAINER, "POST, OPTIONS"),
        ("/native/v1/account", "GET, HEAD, OPTIONS"),
        ("/", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_method_that_is_not_served_is_told_which_are(house: House, path: str, allowed: str | None) -> None:
    answer = house.client.put(path)
    assert answer.status_code == 405
    if allowed:
        assert answer.headers["allow"] == allowed
    asked = house.client.options(path)
    assert asked.status_code == 204 and asked.headers["allow"] == answer.headers["allow"]


@pytest.mark.parametrize(
    "path", ["/tunes", "/v1/models", "/prompts", "/native/v1/account", "/v1/tunes/config"]
)
def test_the_head_of_what_can_be_read(house: House, path: str) -> None:
    whole, head = house.client.get(path, headers=house.auth()), house.client.head(path, headers=house.auth())
    assert head.status_code == 200 and head.content == b""
    assert head.headers["content-length"] == str(len(whole.content))
    assert house.client.head(path).status_code == (200 if path == "/v1/tunes/config" else 401)


def test_a_slash_at_the_end_is_nothing(house: House) -> None:
    made = house.client.post(
        "/tunes/", json={"tune": {**TUNE, "image_urls": [URL]}}, headers=house.auth(), follow_redirects=False
    )
    assert made.status_code == 201
    assert house.client.get(f"/tunes/{made.json()['id']}/", headers=house.auth()).status_code == 200
    assert house.client.get("//").status_code == 200


def test_own_packs_and_public_ones_stand_in_two_lists(house: House) -> None:
    def slugs(path: str, account: str = "ann") -> set[str]:
        return {one["slug"] for one in house.client.get(path, headers=house.auth(account)).json()}

    made = {}
    for title, public in (("mine", False), ("ours", True)):
        pack = {"pack": {"title": title, "public": public}}
        made[title] = house.client.post("/packs", json=pack, headers=house.auth()).json()["slug"]
    shipped = "corporate-headshots"
    assert slugs("/packs") == {made["mine"], made["ours"]} and slugs("/packs", "bob") == set()
    for path in ("/gallery/packs", "/packs?public=true", "/packs?listed=true"):
        assert slugs(path) == slugs(path, "bob") == {made["ours"], shipped}
    assert house.client.get(f"/p/{shipped}", headers=house.auth()).status_code == 200


def test_native_endpoints_take_the_ids_of_every_api(house: House) -> None:
    job = house.client.post("/v1/tunes/train", json=TRAIN, headers=house.auth()).json()["job_id"]
    picture = house.client.post("/v1/image/generate", json={"prompt": "x"}, headers=house.auth()).json()
    asked = {"tune_id": job, "prompt": "x"}
    render = house.client.post("/v1/tunes/infer", json=asked, headers=house.auth()).json()["job_id"]
    for tune in (job, job.replace("tune_", "lora_")):
        assert house.client.get(f"/native/v1/tunes/{tune}", headers=house.auth()).json()["id"] == job
    for prompt in (picture["generation_id"], render):
        found = house.client.get(f"/native/v1/prompts/{prompt}/timeline", headers=house.auth())
        assert found.status_code == 200, prompt


def test_pictures_are_jpegs_where_their_address_says_so(house: House) -> None:
    asked = {"prompt": {"text": "a cat", "callback": "https://a.example.com/x"}}
    made = house.client.post("/tunes/690204/prompts", json=asked, headers=house.auth()).json()
    house.render_all()
    png = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(png, "PNG")
    (key,) = house.prompt(made["id"]).images
    house.store.write_bytes(key, png.getvalue())

    def shown() -> tuple[str, str, bytes]:
        (url,) = house.client.get(f"/prompts/{made['id']}", headers=house.auth()).json()["images"]
        found = house.client.get(url)
        assert house.client.head(url).headers["content-type"] == found.headers["content-type"]
        return url, found.headers["content-type"], found.content

    url, kind, data = shown()
    assert url.endswith(".png") and kind == "image/png" and data == png.getvalue()
    same = house.client.get(url.removesuffix("png") + "jpg")
    assert same.headers["content-type"] == "image/jpeg" and same.content[:3] == b"\xff\xd8\xff"
    house.registry.ledger.set_options("ann", picture_format="jpeg")
    house.service._seen.clear()
    url, kind, data = shown()
    assert url.endswith(".jpg") and kind == "image/jpeg"
    assert Image.open(io.BytesIO(data)).format == "JPEG"
    told = callback(house.service.installation, sending_of(house, made["id"]))
    assert told.body["prompt"]["images"][0].endswith(".jpg")


def sending_of(house: House, number: int) -> Sending:
    row = house.prompt(number)
    return Sending(
        delivery_id="delivery",
        callback_id="callback",
        event="prompt.done",
        url="https://a.example.com/x",
        body={},
        secret=None,
        attempt=1,
        subject_id=row.id,
    )


def test_what_was_handed_in_is_served_as_what_it_is(house: House) -> None:
    files = [("tune[images][]", ("a.jpg", b"\x89PNG\r\n\x1a\n" + bytes(20), "image/jpeg"))]
    fields = {"tune[title]": "t", "tune[name]": "woman"}
    made = house.client.post("/tunes", data=fields, files=files, headers=house.auth()).json()
    served = house.client.get(made["orig_images"][0])
    assert served.status_code == 200 and served.headers["content-type"] == "image/png"


def test_nothing_is_a_value_in_every_api(house: House) -> None:
    """Zeros and empty texts are what they are, and not what stands there when nobody says anything."""
    headers = house.auth()
    asked = {"prompt": "x", "guidance_scale": 0, "seed": 0, "negative_prompt": ""}
    assert house.client.post("/v1/image/generate", json=asked, headers=headers).status_code == 200
    tune = house.finish_tune(house.tune(astria_tune(house, branch="sdxl1")["id"]))
    zeros = {"text": "ohwx", "cfg_scale": 0, "seed": 0, "film_grain": False, "super_resolution": "0"}
    path = f"/tunes/{tune.number}/prompts"
    assert house.client.post(path, json={"prompt": zeros}, headers=headers).status_code == 201
    form = {f"prompt[{name}]": str(value).lower() for name, value in zeros.items()}
    assert house.client.post(path, data=form, headers=headers).status_code == 201
    asked = {"tune_id": f"lora_{tune.id.removeprefix('tune_')}", "prompt": "x", "guidance_scale": 0}
    assert house.client.post("/v1/tunes/infer", json=asked, headers=headers).status_code == 200
    submit_prompt(
        house.service.installation,
        PromptRequest.model_validate({"text": "x", "settings": {"guidance_scale": 0, "seed": 0}}),
        account_id="ann",
    )
    rows = house.registry.prompts.rows(account_id="ann")
    assert len(rows) == 5
    assert {row.settings["guidance_scale"] for row in rows} == {0}
    assert sum(row.settings["seed"] == 0 for row in rows) == 4, "of all that have the field"
    assert not any(row.settings["super_resolution"] or row.settings["film_grain"] for row in rows)
