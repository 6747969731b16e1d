"""Every call of the application that changes something, asked only to rehearse, in every spelling that clients use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from tests.gateway.conftest import House
from tests.gateway.test_astria import create as astria_tune
from tests.gateway.test_pixelapi import TRAIN, train
from tests.gateway.test_pixu import FACE
from tests.gateway.test_pixu import create as pixu_model
from tunes_dagster.registry.tables import Table

TRAINER = "/flux-2-pro-text-to-image-trainer-712/v1/flux-2-pro-text-to-image-trainer-request"
TUNE = {"title": "t", "name": "woman", "image_urls": ["https://example.com/x.jpg"]}
# Body of each changing call by its path, and what its fields are wrapped in. `rehearsed` says that it makes work.
CALLS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "/tunes": ({"tune": TUNE}, "tune", True),
    "/tunes/{tune_id}": ({"tune": {"title": "new"}}, "tune", False),
    "/tunes/{tune_id}/prompts": ({"prompt": {"text": "ohwx woman"}}, "prompt", True),
    "/tunes/{tune_id}/prompts/{prompt_id}": ({"prompt": {"community": "x"}}, "prompt", False),
    "/prompts/{prompt_id}": ({"prompt": {"community": "x"}}, "prompt", False),
    "/prompts/{prompt_id}/duplicate": ({"prompt": {}}, "prompt", True),
    "/prompts/{prompt_id}/likes": ({}, "", False),
    "/prompts/{prompt_id}/like": ({}, "", False),
    "/packs": ({"pack": {"title": "p"}}, "pack", False),
    "/p/{pack_id}/tunes": ({"tune": TUNE}, "tune", True),
    "/images/inspect": ({"name": "woman"}, "", False),
    "/themes": ({"theme": {"theme": "x"}}, "theme", False),
    "/workspaces": ({"workspace": {"title": "w"}}, "workspace", False),
    "/workspaces/{workspace_id}": ({"workspace": {"title": "w"}}, "workspace", False),
    "/v1/tunes/train": (TRAIN, "", True),
    "/v1/tunes/infer": ({"tune_id": "JOB", "prompt": "ohwx"}, "", True),
    "/v1/tunes/{job_id}/upload": ({}, "", False),
    "/v1/tunes/{tune_id}": ({}, "", False),
    "/v1/image/generate": ({"prompt": "a cat"}, "", True),
    "/v1/image/upscale": ({"image_url": "https://example.com/x.png"}, "", True),
    "/v1/image/batch": ({"images": ["https://example.com/x.png"], "operation": "upscale"}, "", True),
    "/v1/image/{operation}": ({}, "", False),
    "/v1/video/generate": ({"prompt": "a cat"}, "", True),
    TRAINER: ({"image_data_url": "https://example.com/x.zip"}, "", True),
    TRAINER + "-result": ({"request_id": "JOB"}, "", False),
    "/pixu/api/create_model": ({"face_base64": FACE}, "", True),
    "/pixu/api/create_model_from_url": ({"url": "https://example.com/x.jpg"}, "", True),
    "/pixu/api/txt2img_strict_portrait": ({"model_uid": "UID"}, "", True),
    "/pixu/api/txt2img_composition": ({"model_uid": "UID"}, "", True),
    "/pixu/api/txt2img_results": ({"request_uid": "UID"}, "", False),
    "/native/v1/tunes/import": ({"url": "https://example.com/x.safetensors", "base": "sdxl"}, "", True),
    "/native/v1/tunes/{key}/cancel": ({}, "", False),
    "/native/v1/tunes/{key}/captions": ({"captions": {"a": "b"}}, "", False),
    "/native/v1/callbacks/{callback_id}/replay": ({}, "", False),
    "/native/v1/callbacks/sample": ({"url": "https://example.com/x"}, "", False),
}
YES: tuple[Any, ...] = (True, "true", "True", "1", 1, " YES ")


def changing(routes: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield method and path of every route of an application that changes something."""
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            yield from changing(inner.routes, prefix + route.include_context.prefix)
            continue
        for method in sorted((getattr(route, "methods", None) or set()) - {"GET", "HEAD", "OPTIONS"}):
            yield method, prefix + route.path


def everything(house: House) -> tuple[list[Any], list[str]]:
    """Return every row and every key of the store."""
    with house.registry.reading() as session:
        rows = [
            (name, sorted(map(repr, session.execute(select(table)).all())))
            for name, table in sorted(Table.metadata.tables.items())
        ]
    folders = ("tunes", "uploads", "batches", "blobs")
    return rows, sorted(key for folder in folders for key in house.store.list(folder))


def _workspace(house: House) -> int:
    made = house.client.post("/workspaces", json={"workspace": {"title": "mine"}}, headers=house.auth())
    return made.json()["id"]


@pytest.fixture
def ann(house: House) -> dict[str, str]:
    """What Ann has of everything: a value for every parameter of a path."""
    waiting = train(house)
    tune = astria_tune(house, prompts_attributes=[{"text": "ohwx woman"}], callback="https://a.example.com/x")
    row = house.registry.objects.find_tune("ann", str(tune["id"]))
    assert row is not None
    house.finish_tune(row[0])
    uid = pixu_model(house)
    prompt = house.client.get("/prompts", headers=house.auth()).json()[0]["id"]
    return {
        "job_id": waiting["job_id"],
        "token": waiting["upload_url"].partition("=")[2],
        "tune_id": str(tune["id"]),
        "prompt_id": str(prompt),
        "pack_id": "corporate-headshots",
        "operation": "remove-background",
        "workspace_id": str(_workspace(house)),
        "key": uid,
        "UID": uid,
        "callback_id": house.registry.outbox.of_account("ann")[0].id,
        "JOB": waiting["job_id"],
    }


def spellings(path: str, body: dict[str, Any], wrapper: str) -> Iterator[dict[str, Any]]:
    """Yield how a call may say that it is a rehearsal, as arguments of a request."""
    yield {"json": body, "params": {"dry_run": "True"}}
    if path.endswith(".json"):
        return  # another address of the same endpoint
    for value in YES:
        if wrapper and value in ("True", 1):
            yield {"json": {**body, wrapper: {**body.get(wrapper, {}), "dry_run": value}}}
        yield {"json": {**body, "dry_run": value}}
    yield {"json": body, "headers": {"Dry-Run": "true"}}
    yield {"content": json.dumps(body)[:-1] + (", " if body else "") + '"dry\\u005frun": 1}'}
    if wrapper or path.endswith(("upload", "inspect")):
        name = f"{wrapper}[dry_run]" if wrapper else "dry_run"
        form = {
            f"{wrapper}[{k}]" + ("[]" if isinstance(v, list) else ""): v[0] if isinstance(v, list) else v
            for k, v in body.get(wrapper, {}).items()
        }
        yield {"data": {**form, "dry_run": "True"}}
        yield {"data": {**form, name: "1"}, "files": [("images", ("a.png", b"\x89PNG", "image/png"))]}


def test_a_rehearsal_changes_nothing_whatever_is_called_and_however_it_is_said(
    house: House,
    ann: dict[str, str],
) -> None:
    """Walks the application's own routes; one without a case above fails, and so does one that keeps anything."""
    before = everything(house)
    walked = set()
    for method, path in changing(house.client.app.routes):  # type: ignore[attr-defined]
        plain = path.removesuffix(".json")
        assert plain in CALLS, f"{method} {path} has no case in this test"
        body, wrapper, rehearsed = CALLS[plain]
        if method in ("DELETE", "PATCH", "PUT"):
            rehearsed = False
        if path.startswith("/pixu"):
            body = {"api_key": house.key(), "app_uid": "api", **body}
        body = {
            name: ann.get(value, value) if isinstance(value, str) else value for name, value in body.items()
        }
        address = re.sub(r"{(\w+)}", lambda found: ann[found.group(1)], path)
        for said in spellings(path, body, wrapper):
            headers = {
                **house.auth(),
                "Ocp-Apim-Subscription-Key": house.key(),
                "Idempotency-Key": "once",
                "Content-Type": "application/json",
                **said.pop("headers", {}),
            }
            if "data" in said:
                del headers["Content-Type"]
            if path.endswith("upload"):
                if not ({"params", "data"} & said.keys() or "Dry-Run" in headers):
                    continue  # it takes no JSON
                said["params"] = {**said.get("params", {}), "token": ann["token"]}
            answer = house.client.request(method, address, headers=headers, **said)
            what = (method, address, said, answer.status_code, answer.text)
            if rehearsed and not ("files" in said and wrapper == "prompt"):
                report = answer.json().get("response", answer.json())
                assert answer.status_code == 200 and report["dry_run"] is True and report["price_usd"] >= 0, (
                    what
                )
            else:
                assert answer.status_code in (400, 422) or "files" in said, what
                assert "dry_run" in answer.text, what
            walked.add((method, path))
        assert everything(house) == before, (method, path)
    assert len(walked) > 35


@pytest.mark.parametrize("value", ["maybe", 2, [True], {"a": 1}, 0.5, "null"])
def test_what_is_neither_yes_nor_no_is_refused_by_name(house: House, value: Any) -> None:
    for path, body in (
        ("/v1/tunes/train", TRAIN),
        ("/tunes", {"tune": TUNE}),
        ("/packs", {"pack": {"title": "p"}}),
    ):
        answer = house.client.post(path, json={**body, "dry_run": value}, headers=house.auth())
        assert answer.status_code == 422 and "dry_run" in answer.text, answer.text
    assert house.registry.tunes.rows(account_id="ann") == []


@pytest.mark.parametrize("value", [False, "false", "False", "0", 0, "", None])
def test_a_no_makes_work(house: House, value: Any) -> None:
    for path, body in (
        ("/v1/tunes/train", TRAIN),
        ("/tunes", {"tune": TUNE}),
        ("/packs", {"pack": {"title": "p"}}),
    ):
        answer = house.client.post(path, json={**body, "dry_run": value}, headers=house.auth())
        assert answer.status_code in (200, 201) and "would_be_refused" not in answer.text, answer.text
    assert len(house.registry.tunes.rows(account_id="ann")) == 2


def test_rehearsals_and_idempotency_keys_do_not_meet(house: House) -> None:
    """A rehearsal neither uses a key up, nor is it refused for one that was used, nor does it get another's answer."""
    headers = {**house.auth(), "Idempotency-Key": "once"}
    for body in ({**TRAIN, "dry_run": "True"}, {**TRAIN, "dry_run": 1}):
        assert house.client.post("/v1/tunes/train", json=body, headers=headers).json()["dry_run"] is True
    made = house.client.post("/v1/tunes/train", json=TRAIN, headers=headers).json()
    tried = house.client.post(
        "/v1/tunes/train", json={**TRAIN, "steps": 200, "dry_run": "1"}, headers=headers
    )
    assert tried.json()["dry_run"] is True and "idempotent-replayed" not in tried.headers
    again = house.client.post("/v1/tunes/train", json=TRAIN, headers=headers)
    assert again.json() == made and again.headers["idempotent-replayed"] == "true"


def test_a_rehearsal_of_a_pack_for_several_tunes_says_what_all_of_them_cost(
    house: House, ann: dict[str, str]
) -> None:
    given = {"tune": {"tune_ids": [ann["tune_id"]] * 3}, "dry_run": True}
    report = house.client.post("/p/corporate-headshots/tunes", json=given, headers=house.auth()).json()
    one = house.client.post(
        "/p/corporate-headshots/tunes",
        json={**given, "tune": {"tune_ids": [ann["tune_id"]]}},
        headers=house.auth(),
    ).json()
    assert report["price_usd"] == pytest.approx(3 * one["price_usd"]) and report["would_be_refused"] == []
