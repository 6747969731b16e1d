"""PixelAPI: the documented calls, in the documented words, and what happens around them."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from tests.gateway.conftest import PUBLIC, House
from tunes_dagster.callbacks.forms import in_form

TRAIN = {"model": "sdxl", "trigger_word": "ohwx", "steps": 1000, "rank": 16}


def train(house: House, account: str = "ann", **changes: object) -> dict:
    answer = house.client.post("/v1/tunes/train", json={**TRAIN, **changes}, headers=house.auth(account))
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_config_needs_no_key_and_is_the_documented_one(house: House) -> None:
    assert house.client.get("/v1/tunes/config").json() == {
        "service": "tunesapi",
        "pricing": {
            "train_sdxl": {"credits": 100, "usd": 0.1},
            "train_flux": {"credits": 200, "usd": 0.2},
            "infer_sdxl": {"credits": 2, "usd": 0.002, "per": "image"},
            "infer_flux": {"credits": 5, "usd": 0.005, "per": "image"},
        },
        "models": ["sdxl", "flux"],
        "max_training_images": 100,
        "min_training_images": 5,
    }


def test_a_tune_from_train_to_pictures(house: House, pictures) -> None:
    opened = train(house, webhook_url="https://caller.example.com/hook?a=%2F&b=[1]")
    assert opened["job_id"].startswith("tune_") and opened["status"] == "awaiting_images"
    assert opened["credits_cost"] == 100 and opened["credits_remaining"] == 9900.0
    assert opened["upload_url"].startswith(f"/v1/tunes/{opened['job_id']}/upload?token=")

    sent = house.client.post(opened["upload_url"], files=pictures(5))  # no key, as in both samples
    assert sent.json() == {
        "status": "queued",
        "job_id": opened["job_id"],
        "images_uploaded": 5,
        "message": "Images uploaded. Training will start when a GPU worker is available.",
    }
    tune = house.registry.tunes.get(opened["job_id"])
    assert len(tune.request["sources"]["uploads"]) == 5 and tune.recipe["training"]["rank"] == 16
    assert all(house.store.exists(key) for key in tune.request["sources"]["uploads"])

    house.finish_tune(tune)
    status = house.client.get(f"/v1/tunes/{tune.id}", headers=house.auth()).json()
    assert status["status"] == "completed" and status["progress"] == 100.0
    assert status["tune_id"] == tune.id.replace("tune_", "lora_") and status["completed_at"].endswith("Z")
    (model,) = house.client.get("/v1/tunes/models", headers=house.auth()).json()
    assert model["trigger_word"] == "ohwx" and model["base_model"] == "sdxl" and model["file_size_mb"] == 2.0

    asked = {"tune_id": status["tune_id"], "prompt": "a photo of ohwx", "num_images": 2}
    infer = house.client.post("/v1/tunes/infer", json=asked, headers=house.auth()).json()
    assert infer["credits_cost"] == 4 and infer["credits_remaining"] == 9896.0 and infer["status"] == "queued"
    house.render_all()
    done = house.client.get(f"/v1/tunes/{infer['job_id']}", headers=house.auth()).json()
    assert done["status"] == "completed" and len(done["images"]) == 2
    assert done["output_url"] == done["images"][0] and done["output_url"].startswith(PUBLIC)
    path = urlsplit(done["output_url"]).path
    assert house.client.get(path).content.startswith(b"\x89PNG")  # without a key
    part = house.client.get(path, headers={"Range": "bytes=1-3"})
    assert part.status_code == 206 and part.content == b"PNG"
    assert house.client.get(path.replace("/files/", "/files/x")).status_code == 403

    gone = house.client.delete(f"/v1/tunes/{status['tune_id']}", headers=house.auth())
    assert gone.json() == {"status": "deleted", "tune_id": status["tune_id"]}
    assert house.client.get(f"/v1/tunes/{tune.id}", headers=house.auth()).status_code == 404


@pytest.mark.parametrize("end", ["ready", "failed"])
def test_the_webhook_tells_of_success_and_of_failure(house: House, pictures, end: str) -> None:
    opened = train(house, webhook_url="https://caller.example.com/hook")
    house.client.post(opened["upload_url"], files=pictures(5))
    tune = house.registry.tunes.get(opened["job_id"])
    if end == "ready":
        house.finish_tune(tune)
    else:
        house.registry.work.cancel_tune(tune.id)
    lease, urls = house.registry.outbox.lease(60)
    (callback,) = urls
    sending = house.registry.outbox.begin_delivery(callback, lease)
    assert sending is not None
    told = in_form(house.service.installation, sending)
    assert told.method == "POST" and sorted(told.body) == ["job_id", "status", "timestamp"]
    assert told.body["status"] == ("completed" if end == "ready" else "failed")
    wallet = house.registry.ledger.wallet("ann")
    assert wallet.reserved == 0 and wallet.available == (9_900_000 if end == "ready" else 10_000_000)


def test_uploads_of_a_wrong_count_leave_the_job_waiting(house: House, pictures) -> None:
    opened = train(house)
    for count in (0, 4, 101):
        answer = house.client.post(opened["upload_url"], files=pictures(count) or {"other": b"x"})
        assert answer.status_code in (413, 422) and "detail" in answer.json(), (count, answer.text)
    assert house.registry.tunes.get(opened["job_id"]).status == "awaiting_images"
    forged = opened["upload_url"][:-3] + "abc"
    assert house.client.post(forged, files=pictures(5)).status_code == 403
    assert house.client.post(opened["upload_url"], files=pictures(6)).status_code == 200
    again = house.client.post(opened["upload_url"], files=pictures(6))
    assert again.status_code == 409


def test_a_job_whose_pictures_never_come_returns_its_credits(house: House) -> None:
    from datetime import timedelta

    from tunes_dagster.core import clock

    opened = train(house)
    house.registry.now = lambda: clock.now() + timedelta(hours=2)
    assert house.registry.uploads.expire() == [opened["job_id"]]
    assert house.registry.ledger.wallet("ann").available == 10_000_000
    status = house.client.get(f"/v1/tunes/{opened['job_id']}", headers=house.auth()).json()
    assert status["status"] == "failed"


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"steps": 99}, "steps"),
        ({"steps": 5001}, "steps"),
        ({"rank": 3}, "rank"),
        ({"model": "sd3"}, "model"),
        ({"trigger_word": "two words"}, "trigger_word"),
        ({"webhook_url": "http://169.254.169.254/"}, "metadata"),
        ({"webhook_url": "ftp://example.com"}, "http"),
    ],
)
def test_wrong_values_are_refused_by_name(house: House, changes: dict, word: str) -> None:
    answer = house.client.post("/v1/tunes/train", json={**TRAIN, **changes}, headers=house.auth())
    assert answer.status_code == 422 and word in answer.json()["detail"]
    assert house.registry.ledger.wallet("ann").available == 10_000_000


def test_unknown_fields_are_named(house: House) -> None:
    body = {**TRAIN, "webhookUrl": "https://x"}
    answer = house.client.post("/v1/tunes/train", json=body, headers=house.auth())
    assert "webhookUrl" in answer.headers["x-tunes-warnings"]


def test_an_image_from_generate_to_its_file(house: House) -> None:
    headers = {"X-API-Key": house.key()}  # as another integration sends it
    asked = {"prompt": "a castle", "width": 1023, "seed": 7}
    answer = house.client.post("/v1/image/generate", json=asked, headers=headers)
    assert answer.status_code == 200
    body = answer.json()
    assert body["model"] == "sdxl" and body["credits_used"] == 1.0 and body["width"] == 1016
    house.render_all()
    for path in ("image", "jobs", "generation"):
        done = house.client.get(f"/v1/{path}/{body['generation_id']}", headers=headers).json()
        assert done["id"] == body["generation_id"] and done["status"] == "completed"
    assert house.client.get(urlsplit(done["output_url"]).path).status_code == 200
    usage = house.client.get("/v1/account/usage?limit=20", headers=headers).json()
    assert usage["total"] == 1 and usage["usage"][0]["prompt"] == "a castle"
    balance = house.client.get("/v1/account/balance", headers=headers).json()
    assert balance == {"credits_remaining": 9999.0, "plan": "pro", "email": "ann@example.com"}


def test_what_cannot_be_rendered_yet_is_refused_by_name(house: House) -> None:
    for model in ("upscale-4x", "cogvideo-2b"):
        answer = house.client.post(
            "/v1/image/generate", json={"model": model, "prompt": "x"}, headers=house.auth()
        )
        missing = {"upscale-4x": "input_image is missing", "cogvideo-2b": "'cogvideo-2b' is not installed"}
        assert answer.status_code == 422 and missing[model] in answer.json()["detail"]
    known = house.client.get("/v1/models", headers=house.auth()).json()["models"]
    assert {m["id"]: m["status"] for m in known} == {
        "sdxl": "available",
        "flux-schnell": "available",
        "upscale-4x": "available",
        "cogvideo-2b": "unavailable",
    }


def test_a_given_picture_is_enlarged_on_a_default_installation(house: House) -> None:
    body = {"image_url": "https://example.com/a.png"}
    made = house.client.post("/v1/image/upscale", json=body, headers=house.auth())
    assert made.status_code == 200 and made.json()["credits_used"] == 2.0, made.text
    [row] = house.registry.prompts.rows()
    assert row.base_id == "upscale-tiny" and row.settings["steps"] == 1


def test_a_model_whose_weights_were_pulled_is_available(house: House) -> None:
    folder = house.service.catalog.resolve("cogvideo-2b").location(house.service.settings.bases_folder)
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    known = house.client.get("/v1/models", headers=house.auth()).json()["models"]
    assert {m["id"]: m["status"] for m in known}["cogvideo-2b"] == "available"


def test_a_failed_picture_costs_nothing(house: House) -> None:
    body = house.client.post("/v1/image/generate", json={"prompt": "x"}, headers=house.auth()).json()
    house.render_all(fail=True)
    done = house.client.get(f"/v1/image/{body['generation_id']}", headers=house.auth()).json()
    assert done["status"] == "failed" and done["credits_used"] == 0 and done["error"]
    assert house.registry.ledger.wallet("ann").available == 10_000_000


def test_out_of_credits_is_402(house: House) -> None:
    answer = house.client.post("/v1/tunes/train", json=TRAIN, headers=house.auth("poor", credits=50_000))
    assert answer.status_code == 402 and "0.05" in answer.json()["detail"]


@pytest.mark.usefixtures("without_upscaler")
def test_models_without_weights_name_the_command(house: House) -> None:
    for model, more in (
        ("upscale-4x", {"image_url": "https://example.com/a.png"}),
        ("cogvideo-2b", {"prompt": "x"}),
    ):
        answer = house.client.post("/v1/image/generate", json={"model": model, **more}, headers=house.auth())
        assert answer.status_code == 422 and f"tunes bases pull {model}" in answer.json()["detail"], (
            answer.text
        )
        assert "/" not in answer.json()["detail"].split("Run")[0], "no place on this machine is told"
    body = {"model": "flux-schnell", "prompt": "x", "negative_prompt": "y"}
    flux = house.client.post("/v1/image/generate", json=body, headers=house.auth())
    assert flux.status_code == 200 and "negative_prompt" in flux.headers["x-tunes-warnings"]
