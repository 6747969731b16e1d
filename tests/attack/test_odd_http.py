"""HTTP that is odd but legal is served, and what is not is refused in the vendor's form: never a server error."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.conftest import House
from tests.gateway.test_pixelapi import TRAIN, train
from tests.gateway.test_pixu import FACE

TRAINER = "/flux-2-pro-text-to-image-trainer-712/v1/flux-2-pro-text-to-image-trainer-request"
URL = "https://example.com/x.jpg"
# Path → a body that is accepted, and the vendor's word for a refusal.
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "/tunes": ({"tune": {"title": "t", "name": "woman", "image_urls": [URL]}}, "error"),
    "/tunes/690204/prompts": ({"prompt": {"text": "x"}}, "error"),
    "/v1/tunes/train": (TRAIN, "detail"),
    "/v1/image/generate": ({"prompt": "x"}, "detail"),
    TRAINER: ({"image_data_url": "https://example.com/x.zip"}, "error"),
    "/pixu/api/create_model": ({"app_uid": "api", "face_base64": FACE}, "error"),
}
KINDS = (
    "application/json; charset=utf-8",
    'application/json;charset="UTF-8"',
    "APPLICATION/JSON",
    "application/vnd.api+json",
    "text/plain;charset=UTF-8",
    "application/x-www-form-urlencoded",
    "",
)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
FIELDS = {"tune[title]": "t", "tune[name]": "woman"}


@pytest.fixture
def auth(house: House) -> dict[str, str]:
    rich = house.auth(credits=10**9)
    return {**rich, "Ocp-Apim-Subscription-Key": house.key()}


@pytest.mark.parametrize("path", CALLS)
def test_what_is_legal_is_served(house: House, auth: dict[str, str], path: str) -> None:
    raw = json.dumps(CALLS[path][0]).encode()
    as_json = {**auth, "Content-Type": "application/json"}
    spelled = "".join(c if c == "/" else f"%{ord(c):02x}" for c in path)

    def chunks() -> Iterator[bytes]:
        yield from (raw[at : at + 7] for at in range(0, len(raw), 7))

    tries = {
        kind: house.client.post(path, content=raw, headers={**auth, "Content-Type": kind}) for kind in KINDS
    }
    tries |= {
        "identity": house.client.post(path, content=raw, headers={**as_json, "Content-Encoding": "identity"}),
        "gzip": house.client.post(
            path, content=gzip.compress(raw), headers={**as_json, "Content-Encoding": "gzip"}
        ),
        "gzip in two members": house.client.post(
            path,
            content=iter((gzip.compress(raw[:9]), gzip.compress(raw[9:]))),
            headers={**as_json, "Content-Encoding": "X-GZIP"},
        ),
        "a byte order mark": house.client.post(path, content=b"\xef\xbb\xbf" + raw, headers=as_json),
        "every field twice": house.client.post(path, content=raw[:-1] + b"," + raw[1:], headers=as_json),
        "chunked": house.client.post(path, content=chunks(), headers=as_json),
        "percent-encoded": house.client.post(spelled, content=raw, headers=as_json),
        "slashes": house.client.post(f"http://testserver/{path}/", content=raw, headers=as_json),
    }
    refused = {name: answer.text for name, answer in tries.items() if answer.status_code not in (200, 201)}
    assert not refused


@pytest.mark.parametrize("path", CALLS)
def test_what_is_not_is_refused_in_the_vendors_form(house: House, auth: dict[str, str], path: str) -> None:
    body, word = CALLS[path]
    raw = json.dumps(body).encode()
    as_json = {**auth, "Content-Type": "application/json"}
    latin_1 = {**as_json, "Content-Type": "application/json; charset=iso-8859-1"}
    parts = {**as_json, "Content-Type": "multipart/form-data; boundary=x"}
    latin = json.dumps({**body, "x": "é"}, ensure_ascii=False).encode("latin-1")
    tries = [
        house.client.post(path, content=raw, headers={**as_json, "Content-Encoding": "br"}),
        house.client.post(path, content=raw, headers={**as_json, "Content-Encoding": "gzip"}),
        house.client.post(
            path, content=gzip.compress(raw)[:-9], headers={**as_json, "Content-Encoding": "gzip"}
        ),
        house.client.post(path, content=latin, headers=latin_1),
        house.client.post(path, content=raw[:-2], headers=as_json),
        house.client.post(path, content=b"null", headers=as_json),
        house.client.post(path, content=raw, headers={**auth, "Content-Type": "multipart/form-data"}),
        house.client.post(path, content=b"--x\r\n" + raw, headers=parts),
    ]
    for answer in tries:
        assert answer.status_code in (400, 415, 422), answer.text
        said = json.dumps(answer.json())
        assert isinstance(answer.json()[word], str) and "Bad Request" not in said, said
    assert tries[0].status_code == 415 and "compressed" in tries[0].text
    assert tries[0].headers["Accept-Encoding"] == "gzip, identity"
    assert [one.status_code for one in tries[1:3]] == [400, 400] and "gzip" in tries[1].text + tries[2].text
    assert house.registry.tunes.rows() == [] and house.registry.prompts.rows() == []


@pytest.mark.parametrize(
    "name", ["tune[images][]", "tune[images][0]", "tune[images]", "tune[image_urls][]", "tune[image_urls][7]"]
)
@pytest.mark.parametrize("file", ["фото 照片 é.png", "C:\\a\\..\\b.png", "../../x.png", "a" * 300 + ".png"])
def test_files_under_the_names_that_clients_give_them(
    house: House, auth: dict[str, str], name: str, file: str
) -> None:
    made = house.client.post("/tunes", data=FIELDS, files=[(name, (file, PNG, "image/png"))], headers=auth)
    assert made.status_code == 201, made.text
    (key,) = house.tune(made.json()["id"]).request["sources"]["uploads"]
    assert ".." not in key and house.store.read_bytes(key) == PNG


def test_lists_as_rails_axios_and_php_send_them(house: House, auth: dict[str, str]) -> None:
    rails = (
        "tune[title]=t&tune[name]=woman&tune[image_urls][]=%s&tune[prompts_attributes][][text]=a"
        "&tune[prompts_attributes][][seed]=1&tune[prompts_attributes][][text]=b&tune[characteristics][hair]=red"
    )
    axios = (
        "tune[title]=t&tune[name]=woman&tune[image_urls][0]=%s&tune[prompts_attributes][0][text]=a"
        "&tune[prompts_attributes][0][seed]=1&tune[prompts_attributes][1][text]=b&tune[characteristics][hair]=red"
    )
    for form in (rails, axios, axios.replace("[", "%%5B").replace("]", "%%5D")):
        kind = {**auth, "Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"}
        made = house.client.post("/tunes", content=form % URL, headers=kind)
        assert made.status_code == 201 and made.json()["characteristics"] == {"hair": "red"}, made.text
        asked = house.client.get(f"/tunes/{made.json()['id']}/prompts", headers=auth).json()
        assert [(one["text"], one["seed"] == 1) for one in asked] == [("b", False), ("a", True)]


@pytest.mark.parametrize("name", ["images", "images[]", "images[{}]"])
def test_pictures_of_a_job_under_numbered_names(house: House, name: str) -> None:
    where = train(house)["upload_url"]
    empty = [(name.format(n), (f"{n}.png", b"" if n == 3 else PNG, "image/png")) for n in range(5)]
    refused = house.client.post(where, files=empty)
    assert refused.status_code == 422 and "'3.png', which is empty" in refused.json()["detail"]
    files = [(name.format(n), (f"{n}.png", PNG, "image/png")) for n in range(5)]
    assert house.client.post(where, files=files).json()["images_uploaded"] == 5, "the job went on waiting"


def test_empty_files_are_refused_by_name(house: House, auth: dict[str, str]) -> None:
    empty = ("a.png", b"", "image/png")
    tune = house.client.post("/tunes", data=FIELDS, files=[("tune[images][]", empty)], headers=auth)
    assert tune.status_code == 422 and "'a.png', which is empty" in tune.json()["images"][0]
    fields, files = {"prompt[text]": "x"}, [("prompt[input_image]", empty)]
    prompt = house.client.post("/tunes/690204/prompts", data=fields, files=files, headers=auth)
    assert prompt.status_code == 422 and "which is empty" in prompt.json()["input_image"][0]
    assert house.registry.tunes.rows() == [] and list(house.store.list("tunes")) == []


def test_parameters_that_nobody_filled_in_are_absent(house: House, auth: dict[str, str]) -> None:
    for path in ("/tunes?limit=&before_id=&title=", "/prompts?offset=&limit=", "/v1/account/usage?limit="):
        assert house.client.get(path, headers=auth).status_code == 200, path
    assert house.client.get("/tunes?limit=x", headers=auth).status_code == 422
