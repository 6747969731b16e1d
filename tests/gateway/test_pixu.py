"""Pixu: models, portraits, compositions, results, and the GET callback with the uid at its end."""

from __future__ import annotations

import base64
import re

from tests.gateway.conftest import House
from tunes_dagster.callbacks.forms import in_form

FACE = base64.b64encode(b"\x89PNG face").decode()


def call(house: House, name: str, account: str = "ann", **body: object):
    return house.client.post(
        f"/pixu/api/{name}", json={"api_key": house.key(account), "app_uid": "API", **body}
    )


def create(house: House, account: str = "ann") -> str:
    hook = "https://caller.example.com/hook?model_uid="
    answer = call(house, "create_model", account, face_base64=FACE, height=192, baseline=1, callback_url=hook)
    assert answer.status_code == 200, answer.text
    return answer.json()["response"]["modelUid"]


def test_a_model_and_its_portrait(house: House) -> None:
    uid = create(house)
    assert re.fullmatch(r"upose_[0-9a-f]{32}", uid)
    (tune,) = house.registry.tunes.rows(account_id="ann")
    house.finish_tune(tune)
    asked = {
        "model_uid": uid,
        "model_weight": 0.9,
        "positive": "smiling",
        "negative": "(big hands)",
        "resolution": "512,768",
        "callback_url": "https://caller.example.com/done?request_uid=",
    }
    request = call(house, "txt2img_strict_portrait", **asked).json()["response"]
    assert re.fullmatch(r"[0-9a-f]{40}", request)
    house.render_all()
    done = call(house, "txt2img_results", request_uid=request).json()["response"]
    assert done["status"] == "completed" and len(done["images"]) == 1
    lease, urls = house.registry.outbox.lease(60)
    told = []
    for callback in urls:
        sending = house.registry.outbox.begin_delivery(callback, lease)
        assert sending is not None
        told.append(in_form(house.service.installation, sending))
    assert {one.method for one in told} == {"GET"}
    assert {one.url for one in told} == {
        f"https://caller.example.com/hook?model_uid={uid}",
        f"https://caller.example.com/done?request_uid={request}",
    }


def test_a_failure_never_calls_the_success_address(house: House) -> None:
    create(house)
    (tune,) = house.registry.tunes.rows(account_id="ann")
    house.registry.work.cancel_tune(tune.id)
    assert house.registry.outbox.lease(60)[1] == {}


def test_those_who_ask_are_told_of_failures_beside_the_uid(house: House) -> None:
    house.key()
    house.registry.ledger.set_options("ann", failure_callbacks=True)
    uid = create(house)
    (tune,) = house.registry.tunes.rows(account_id="ann")
    house.registry.work.cancel_tune(tune.id)
    lease, (callback,) = house.registry.outbox.lease(60)
    sending = house.registry.outbox.begin_delivery(callback, lease)
    assert sending is not None
    told = in_form(house.service.installation, sending)
    assert (
        told.url == f"https://caller.example.com/hook?model_uid={uid}&error=cancelled"
        and told.method == "GET"
    )


def test_compositions_are_stored_and_random_without_a_uid(house: House) -> None:
    assert call(house, "txt2img_composition").status_code == 200
    wrong = call(house, "txt2img_composition", comp_uid="0" * 32)
    assert wrong.status_code == 422 and "comp_uid" in wrong.json()["error"]


def test_errors(house: House) -> None:
    assert house.client.post("/pixu/api/create_model", json={"face_base64": FACE}).status_code == 401
    assert house.client.post("/pixu/api/create_model", content=b"[1]").status_code == 401
    wrong = call(house, "create_model", face_base64=FACE, height=100, baseline=1)
    assert wrong.status_code == 422 and "height" in wrong.json()["error"]
    assert call(house, "txt2img_strict_portrait", model_uid="upose_x").status_code == 404
    assert call(house, "create_model_from_url", url="http://10.0.0.1/x.png").status_code == 422


def test_height_baseline_and_composition_reach_the_renderer(house: House) -> None:
    uid = create(house)
    asked = call(house, "txt2img_composition", model_uid=uid, resolution="512,768").json()["response"]
    prompt, _seen = house.registry.objects.find_prompt("ann", asked)
    assert prompt.settings["face_height"] == 192 and prompt.settings["baseline"] == "fast"
    assert prompt.settings["composition"] and not prompt.settings["random_face"]
    shown = house.client.get("/native/v1/compositions", headers=house.auth()).json()
    named = call(house, "txt2img_composition", comp_uid=shown[0]["id"]).json()["response"]
    prompt, _seen = house.registry.objects.find_prompt("ann", named)
    assert prompt.settings["composition"] == shown[0]["name"] and prompt.settings["random_face"]
    wrong = call(house, "txt2img_composition", comp_uid="0" * 32)
    assert wrong.status_code == 422 and shown[0]["id"] in wrong.json()["error"]


def test_the_pages_own_backslashes_are_understood(house: House) -> None:
    lines = [f'{{"api_key":"{house.key()}",', '"app_uid":"api",', '"model_weight":1.0,', '"positive":"x"']
    body = " \\\n".join([*lines, "}"])
    answer = house.client.post(
        "/pixu/api/txt2img_strict_portrait",
        content=body.encode(),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 200, answer.text
