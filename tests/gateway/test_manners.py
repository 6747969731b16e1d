"""What every dialect shares: keys, tenants, limits, idempotency, dry runs, bodies, URLs, the native endpoints."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.gateway.conftest import PUBLIC, House
from tests.gateway.test_astria import create as astria_tune
from tests.gateway.test_pixelapi import TRAIN, train
from tests.gateway.test_pixu import call
from tests.gateway.test_pixu import create as pixu_model
from tunes_dagster.gateway.files import file_url, opened_key


def test_the_server_imports_no_torch_and_no_dagster() -> None:
    code = (
        "import sys, tunes_dagster.gateway.app as app\n"
        "for name in app.DIALECTS: app.load_dialect(name)\n"
        "import tunes_dagster.families.base, tunes_dagster.service.submit\n"
        "import tunes_dagster.rendering.prompts, tunes_dagster.rendering.schedulers\n"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'dagster', 'cv2') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_two_tenants_never_see_each_other(house: House) -> None:
    """Ann makes one of everything; Bob tries every endpoint with her ids."""
    job = train(house)["job_id"]
    image = house.client.post("/v1/image/generate", json={"prompt": "x"}, headers=house.auth()).json()[
        "generation_id"
    ]
    tune = astria_tune(house, prompts_attributes=[{"text": "ohwx woman"}])["id"]
    prompt = house.client.get("/prompts", headers=house.auth()).json()[0]["id"]
    uid = pixu_model(house)
    request = call(house, "txt2img_composition").json()["response"]
    bob = {**house.auth("bob"), "Ocp-Apim-Subscription-Key": house.key("bob")}
    trainer = "/flux-2-pro-text-to-image-trainer-712/v1/flux-2-pro-text-to-image-trainer-request-result"
    tries = [
        ("GET", f"/v1/tunes/{job}", None),
        ("DELETE", f"/v1/tunes/{job.replace('tune_', 'lora_')}", None),
        ("POST", "/v1/tunes/infer", {"tune_id": job, "prompt": "x"}),
        ("GET", f"/v1/image/{image}", None),
        ("GET", f"/v1/tunes/{image.replace('gen_', 'inf_')}", None),
        ("POST", trainer, {"request_id": job}),
        ("GET", f"/v2/requests/status/{job}", None),
        ("GET", f"/tunes/{tune}", None),
        ("GET", f"/tunes/{tune}.json", None),
        ("PATCH", f"/tunes/{tune}", {"tune": {"title": "mine"}}),
        ("DELETE", f"/tunes/{tune}", None),
        ("GET", f"/tunes/{tune}/prompts", None),
        ("POST", f"/tunes/{tune}/prompts", {"prompt": {"text": "x"}}),
        ("GET", f"/prompts/{prompt}", None),
        ("GET", f"/tunes/{tune}/prompts/{prompt}", None),
        ("DELETE", f"/prompts/{prompt}", None),
        ("DELETE", f"/tunes/{tune}/prompts/{prompt}", None),
        ("POST", f"/prompts/{prompt}/duplicate", {}),
        ("POST", f"/prompts/{prompt}/likes", None),
        ("DELETE", f"/prompts/{prompt}/likes", None),
        ("POST", "/p/corporate-headshots/tunes", {"tune": {"tune_ids": [tune]}}),
        ("GET", f"/native/v1/tunes/{tune}", None),
        ("GET", f"/native/v1/tunes/{uid}/timeline", None),
        ("GET", f"/native/v1/prompts/{prompt}/timeline", None),
        ("POST", f"/native/v1/tunes/{job}/cancel", None),
        ("GET", f"/native/v1/tunes/{job}/weights/kohya", None),
        ("GET", f"/native/v1/tunes/{job}/captions", None),
        ("PUT", f"/native/v1/tunes/{job}/captions", {"captions": {}}),
    ]
    for method, path, body in tries:
        answer = house.client.request(method, path, json=body, headers=bob)
        assert answer.status_code == 404, (method, path, answer.status_code, answer.text)
    assert call(house, "txt2img_strict_portrait", "bob", model_uid=uid).status_code == 404
    assert call(house, "txt2img_results", "bob", request_uid=request).status_code == 404
    for path in ("/tunes", "/prompts", "/v1/tunes/models", "/native/v1/callbacks"):
        assert house.client.get(path, headers=bob).json() == [], path
    assert house.client.get("/v1/account/usage", headers=bob).json()["total"] == 0
    fields = {"title": "t", "name": "man", "base_tune_id": tune, "image_urls": ["https://example.com/x"]}
    base = house.client.post("/tunes", json={"tune": fields}, headers=bob)
    assert base.status_code == 422
    assert house.tune(tune).title == "Natalie" and house.registry.tunes.get(job).status == "awaiting_images"


@pytest.mark.parametrize(
    "path", ["/v1/tunes/models", "/tunes", "/native/v1/account", "/prompts", "/packs", "/users/self"]
)
def test_keys_are_needed_and_can_be_revoked(house: House, path: str) -> None:
    assert house.client.get(path).status_code == 401
    assert house.client.get(path, headers={"Authorization": "Bearer pk_live_wrong"}).status_code == 401
    assert house.client.get(path, headers=house.auth()).status_code == 200
    (key,) = house.registry.keys.rows("ann")
    assert house.key() not in json.dumps([key.hash, key.hint])
    house.registry.keys.revoke(key.id)
    house.service._seen.clear()
    assert house.client.get(path, headers=house.auth()).status_code == 401


def test_limits_show_in_headers_and_end_in_429(house: House) -> None:
    house.key("slow")
    house.registry.ledger.open_wallet("slow", plan="free", requests_per_minute=3)
    seen = [house.client.get("/v1/account/balance", headers=house.auth("slow")) for _ in range(4)]
    assert [one.headers["x-ratelimit-remaining"] for one in seen[:3]] == ["2", "1", "0"]
    assert 0 <= int(seen[0].headers["x-ratelimit-reset"]) <= 60
    assert (
        seen[3].status_code == 429 and int(seen[3].headers["retry-after"]) >= 1 and "detail" in seen[3].json()
    )


def test_the_same_key_and_body_get_the_same_answer(house: House) -> None:
    headers = {**house.auth(), "Idempotency-Key": "order-1"}
    first = house.client.post("/v1/tunes/train", json=TRAIN, headers=headers)
    second = house.client.post("/v1/tunes/train", json=TRAIN, headers=headers)
    assert second.json() == first.json() and second.headers["idempotent-replayed"] == "true"
    other = house.client.post("/v1/tunes/train", json={**TRAIN, "steps": 2000}, headers=headers)
    assert other.status_code == 409 and "steps was 1000, is 2000" in other.json()["detail"]
    bob = house.client.post(
        "/v1/tunes/train", json=TRAIN, headers={**house.auth("bob"), "Idempotency-Key": "order-1"}
    )
    assert bob.json()["job_id"] != first.json()["job_id"]
    bad = {**house.auth(), "Idempotency-Key": "order-2"}
    assert house.client.post("/v1/tunes/train", json={**TRAIN, "steps": 1}, headers=bad).status_code == 422
    assert (
        house.client.post("/v1/tunes/train", json=TRAIN, headers=bad).status_code == 200
    )  # a refusal holds no key


def test_a_dry_run_does_not_use_a_key_up(house: House) -> None:
    headers = {**house.auth(), "Idempotency-Key": "order-3"}
    for path, body in (
        ("/v1/tunes/train?dry_run=true", TRAIN),
        ("/v1/tunes/train", {**TRAIN, "dry_run": True}),
    ):
        assert house.client.post(path, json=body, headers=headers).json()["dry_run"] is True
    made = house.client.post("/v1/tunes/train", json=TRAIN, headers=headers)
    assert made.status_code == 200 and made.json()["job_id"]
    tried = house.client.post("/v1/tunes/train?dry_run=true", json=TRAIN, headers=headers)
    assert tried.json()["dry_run"] is True and "idempotent-replayed" not in tried.headers
    again = house.client.post("/v1/tunes/train", json=TRAIN, headers=headers)
    assert again.json() == made.json() and again.headers["idempotent-replayed"] == "true"
    form = {
        "tune[title]": "N",
        "tune[name]": "man",
        "tune[image_urls][]": "https://example.com/x",
        "dry_run": "true",
    }
    for kind in ({}, {"files": [("x", ("a", b"b"))]}):
        answer = house.client.post(
            "/tunes", data=form, headers={**headers, "Idempotency-Key": "order-4"}, **kind
        )
        assert answer.json()["dry_run"] is True, answer.text


def test_many_identical_requests_make_one_tune(house: House) -> None:
    headers = {**house.auth(), "Idempotency-Key": "once"}
    house.client.get("/v1/models", headers=headers)
    with ThreadPoolExecutor(6) as pool:
        answers = list(
            pool.map(lambda _: house.client.post("/v1/tunes/train", json=TRAIN, headers=headers), range(12))
        )
    assert {one.status_code for one in answers} == {200} and len(
        {one.json()["job_id"] for one in answers}
    ) == 1
    assert len(house.registry.tunes.rows(account_id="ann")) == 1


def test_idempotency_of_multipart_bodies(house: House) -> None:
    headers = {**house.auth(), "Idempotency-Key": "files"}

    def send(content: bytes):
        files = [("tune[images][]", ("a.png", content, "image/png"))]
        return house.client.post(
            "/tunes", data={"tune[title]": "N", "tune[name]": "man"}, files=files, headers=headers
        )

    assert send(b"one").json()["id"] == send(b"one").json()["id"]
    assert send(b"two").status_code == 409


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/tunes/train", {**TRAIN, "webhook_url": "https://nowhere.invalid/x"}),
        ("/v1/image/generate", {"prompt": "x"}),
        ("/tunes", {"tune": {"title": "t", "name": "man", "image_urls": ["https://example.com/x"]}}),
    ],
)
def test_a_dry_run_keeps_nothing(house: House, path: str, body: dict) -> None:
    answer = house.client.post(f"{path}?dry_run=true", json=body, headers=house.auth())
    report = answer.json()
    assert answer.status_code == 200 and report["dry_run"] and report["would_be_refused"] == []
    assert report["estimated_minutes"] >= 0 and report["price_usd"] >= 0
    assert (
        house.registry.tunes.rows(account_id="ann") == []
        and house.registry.ledger.wallet("ann").reserved == 0
    )
    assert list(house.store.list("tunes")) == []
    if "webhook_url" in body:
        assert report["callbacks"][0]["ok"] is False
    poor = house.client.post(f"{path}?dry_run=true", json=body, headers=house.auth("poor", credits=1)).json()
    assert ("left" in " ".join(poor["would_be_refused"])) == (poor["price_usd"] > 0)


@pytest.mark.parametrize("options", [{"max_body_mb": 0.01}])
def test_oversize_bodies_are_refused_in_the_dialects_form(house: House) -> None:
    big = b"x" * 20_000
    sent = house.client.post("/v1/tunes/train", content=big, headers=house.auth())
    assert sent.status_code == 413 and "detail" in sent.json()
    files = [("tune[images][]", ("a.png", big, "image/png"))]
    assert "error" in house.client.post("/tunes", files=files, headers=house.auth()).json()
    streamed = house.client.post("/pixu/api/create_model", content=(big for _ in range(2)))
    assert streamed.status_code == 413 and "error" in streamed.json()


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b"[]", b'"x"', b"null", b"1e999", b'{"a":' * 2000, b"\x00"]
)
@pytest.mark.parametrize(
    "path", ["/v1/tunes/train", "/tunes", "/pixu/api/create_model", "/packs", "/v1/tunes/infer"]
)
def test_malformed_bodies_are_no_server_errors(house: House, path: str, body: bytes) -> None:
    headers = {**house.auth(), "Content-Type": "application/json"}
    assert 400 <= house.client.post(path, content=body, headers=headers).status_code < 500


@pytest.mark.parametrize("options", [{"require_user_agent": True}])
def test_bare_user_agents_can_be_refused(house: House) -> None:
    for agent, status in (("Python-urllib/3.11", 403), ("", 403), ("my-app/1", 200)):
        assert house.client.get("/v1/tunes/config", headers={"User-Agent": agent}).status_code == status


@pytest.mark.parametrize("options", [{"mounts": {"astria": "/astria", "pixelapi": "host:pixel.test"}}])
def test_dialects_at_a_prefix_and_at_a_host(house: House) -> None:
    assert house.client.get("/astria/tunes", headers=house.auth()).json() == []
    assert house.client.get("/tunes", headers=house.auth()).status_code == 404
    assert house.client.get("http://pixel.test/v1/tunes/config").status_code == 200
    assert house.client.get("/v1/tunes/config").status_code == 404


def test_every_dialect_has_its_openapi_page(house: House) -> None:
    for name in ("pixelapi", "pixazo", "pixu", "astria", "native"):
        document = house.client.get(f"/openapi/{name}.json").json()
        assert document["paths"] and document["servers"][0]["url"].startswith(PUBLIC), name
        assert house.client.get(f"/docs/{name}").status_code == 200


def test_signed_urls_cannot_be_forged_or_extended(house: House) -> None:
    from datetime import timedelta

    from tunes_dagster.core import clock

    secret = house.service.secret
    good = file_url(secret, PUBLIC, "a/b.png", clock.now() + timedelta(hours=1)).rsplit("/", 4)[1:4]
    assert opened_key(secret, *good, clock.now()) == "a/b.png"
    assert opened_key(secret, good[0], str(int(good[1]) + 1), good[2], clock.now()) is None
    assert opened_key(b"other", *good, clock.now()) is None
    assert opened_key(secret, good[0], good[1], "!!", clock.now()) is None
    old = file_url(secret, PUBLIC, "a/b.png", clock.now() - timedelta(seconds=2)).rsplit("/", 4)[1:4]
    assert opened_key(secret, *old, clock.now()) is None


def test_native_endpoints(house: House, pictures) -> None:
    opened = train(house, webhook_url="https://caller.example.com/x")
    house.client.post(opened["upload_url"], files=pictures(5))
    job = opened["job_id"]
    health = house.client.get("/native/v1/health").json()
    assert health["status"] == "ok" and health["queue"]["work"][0]["count"] == 1
    line = house.client.get(f"/native/v1/tunes/{job}/timeline", headers=house.auth()).json()
    (phase,) = line["phases"]
    assert phase["phase"] == "queued" and [one["message"][:2] for one in phase["said"]] == ["Th", "5 "]
    assert line["steps_per_second"] is None and line["last_sample"] is None
    told = {"url": "https://caller.example.com/x", "dialect": "pixelapi"}
    asked = house.client.post("/native/v1/callbacks/sample", json=told, headers=house.auth())
    assert asked.status_code == 201 and asked.json()["of"] == job
    told["dialect"] = "astria"
    assert (
        house.client.post("/native/v1/callbacks/sample", json=told, headers=house.auth()).status_code == 404
    )
    stopped = house.client.post(f"/native/v1/tunes/{job}/cancel", headers=house.auth()).json()
    assert stopped["status"] == "cancelled"
    callback, _sample = house.client.get("/native/v1/callbacks", headers=house.auth()).json()
    log = house.client.get(f"/native/v1/callbacks/{callback['id']}", headers=house.auth()).json()
    assert log["deliveries"] == [] and log["url"] == "https://caller.example.com/x"
    again = house.client.post(f"/native/v1/callbacks/{callback['id']}/replay", headers=house.auth())
    assert again.status_code == 200
    assert (
        house.client.get(f"/native/v1/callbacks/{callback['id']}", headers=house.auth("bob")).status_code
        == 404
    )
    inside = house.client.post(
        "/native/v1/callbacks/sample", json={"url": "http://127.0.0.1/"}, headers=house.auth()
    )
    assert inside.status_code == 422
    ledger = house.client.get("/native/v1/account", headers=house.auth()).json()["ledger"]
    assert [entry["kind"] for entry in ledger] == ["return", "reserve", "adjust"]


def test_logs_hold_ids_and_no_secrets(house: House, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tunes.gateway"):
        house.client.get("/health")  # asked by machines every few seconds: not a line each
        opened = train(house)
        house.client.post(opened["upload_url"])
    facts = [record.facts for record in caplog.records if hasattr(record, "facts")]
    assert (
        facts[0]["account"] == "ann"
        and facts[0]["request_id"].startswith("req_")
        and facts[0]["status"] == 200
    )
    said = json.dumps(facts)
    assert house.key() not in said and opened["upload_url"].split("token=")[1] not in said


def test_a_dry_run_says_what_a_tune_would_be_trained_on(house: House) -> None:
    def png(size: int) -> bytes:
        buffer = io.BytesIO()
        Image.effect_noise((size, size), 60).save(buffer, "PNG")
        return buffer.getvalue()

    files = [
        ("tune[images][]", (name, png(side), "image/png")) for name, side in (("a.png", 128), ("b.png", 32))
    ]
    fields = {"tune[title]": "N", "tune[name]": "mug", "dry_run": "1"}
    report = house.client.post("/tunes", data=fields, files=files, headers=house.auth()).json()
    said = report["dataset"]
    assert said[:2] == ["Subject: sks mug (token sks, class mug).", "1 of 2 pictures are used."]
    assert any("a.png: used, 128×128" in line for line in said) and any(
        "b.png: not used." in line for line in said
    )
    assert report["would_be_refused"] == [] and house.registry.tunes.rows() == []
    assert list(house.store.list("tunes")) == [] and list(house.store.list("blobs")) == []
    one = {"tune": {"title": "t", "name": "man", "image_urls": ["https://nowhere.invalid/x"]}, "dry_run": 1}
    gone = house.client.post("/tunes", json=one, headers=house.auth()).json()
    assert "nowhere.invalid" in " ".join(gone["dataset"]) and gone["would_be_refused"] == []
