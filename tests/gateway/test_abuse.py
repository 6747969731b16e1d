"""Bad input, in each API's error form: uploads, addresses, names, tokens, keys; and what limits hold it back."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.gateway.conftest import House
from tests.gateway.test_astria import create as astria_tune
from tests.gateway.test_pixelapi import TRAIN, train
from tests.gateway.test_pixu import call as pixu_call
from tests.gateway.test_pixu import create as pixu_model
from tunes_dagster.gateway.app import load_dialect
from tunes_dagster.gateway.dialect import as_problem
from tunes_dagster.gateway.middleware import Manners
from tunes_dagster.gateway.native import DIALECT as NATIVE
from tunes_dagster.gateway.options import GatewayOptions

TRAINER = "/flux-2-pro-text-to-image-trainer-712/v1/flux-2-pro-text-to-image-trainer-request"
# One call of each API, with the word its refusals have.
CALLS = [
    ("POST", "/v1/tunes/train", TRAIN, "detail"),
    ("POST", TRAINER, {"image_data_url": "https://example.com/x.zip"}, "error"),
    (
        "POST",
        "/pixu/api/create_model_from_url",
        {"app_uid": "api", "url": "https://example.com/x.png"},
        "error",
    ),
    (
        "POST",
        "/tunes",
        {"tune": {"title": "t", "name": "man", "image_urls": ["https://example.com/x"]}},
        "error",
    ),
    ("GET", "/native/v1/account", None, "error"),
]


def _send(house: House, method: str, path: str, body: Any, key: str) -> Any:
    headers = {"Authorization": f"Bearer {key}".encode(), "Ocp-Apim-Subscription-Key": key.encode()}
    if path.startswith("/pixu"):
        body = {**body, "api_key": key}
    return house.client.request(method, path, json=body, headers=headers)


@pytest.mark.parametrize(("method", "path", "body", "word"), CALLS)
def test_keys_that_ended_are_401_in_every_form(
    house: House, monkeypatch: pytest.MonkeyPatch, method: str, path: str, body: Any, word: str
) -> None:
    house.key()
    _row, short = house.registry.keys.add("ann", days=1)
    assert _send(house, method, path, body, short).status_code < 300
    monkeypatch.setattr(house.registry, "now", lambda: datetime.now(UTC) + timedelta(days=2))
    house.service._seen.clear()
    for key in (short, "sd_nobody", "pk_live_" + "x" * 5000, "ключ\x7f"):
        answer = _send(house, method, path, body, key)
        assert answer.status_code == 401 and word in answer.json(), answer.text


@pytest.mark.parametrize("token", ["", "x", "%00", "a" * 5000, "ü"])
def test_forged_upload_tokens(house: House, pictures, token: str) -> None:
    job = train(house)
    answer = house.client.post(
        f"/v1/tunes/{job['job_id']}/upload", params={"token": token}, files=pictures(5)
    )
    assert answer.status_code == 403 and "detail" in answer.json()
    other = train(house, "bob")
    stolen = other["upload_url"].split("token=")[1]
    answer = house.client.post(
        f"/v1/tunes/{job['job_id']}/upload", params={"token": stolen}, files=pictures(5)
    )
    assert answer.status_code == 403 and house.registry.tunes.get(job["job_id"]).status == "awaiting_images"


def test_pictures_that_never_come_return_their_credits(house: House) -> None:
    before = train(house)
    held = house.registry.ledger.wallet("ann").reserved
    house.registry.now = lambda moment=house.registry.now(): moment + timedelta(hours=2)  # type: ignore[misc]
    assert house.registry.uploads.expire() == [before["job_id"]]
    assert held > 0 and house.registry.ledger.wallet("ann").reserved == 0


def test_ten_thousand_addresses(house: House) -> None:
    urls = [f"https://example.com/{n}.png" for n in range(10_000)]
    body = {"tune": {"title": "t", "name": "man", "image_urls": urls}}
    answer = house.client.post("/tunes", json=body, headers=house.auth())
    assert answer.status_code == 422 and "image_urls" in answer.json()
    body["tune"]["image_urls"] = urls[:500]
    answer = house.client.post("/tunes", json=body, headers=house.auth())
    assert answer.status_code == 422 and "500 pictures" in str(answer.json())


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "a\r\nX-Evil: 1.png", "名前\u202egnp.png", "\x00", "x" * 3000, ""]
)
def test_hostile_names(house: House, name: str) -> None:
    files = [("tune[images][]", (name, b"\x89PNG", "image/png"))]
    answer = house.client.post(
        "/tunes", data={"tune[title]": name or "t", "tune[name]": "man"}, files=files, headers=house.auth()
    )
    assert answer.status_code in (201, 400, 422) and "x-evil" not in answer.headers
    for key in house.store.list("tunes"):
        assert ".." not in key and "\n" not in key and len(key) < 300
    if answer.status_code == 201 and answer.json()["orig_images"]:
        url = answer.json()["orig_images"][0]
        assert house.client.get(url.removeprefix("https://tunes.example.com")).status_code == 200


def test_keys_of_the_store_are_not_taken_from_callers(house: House) -> None:
    """A prompt may start from a picture of the store; whose that is, a caller cannot be asked."""
    for fields in ({"input_image": "batches/x/1.png"}, {"input_image_url": "blobs/aa/b.png"}):
        body = {"prompt": {"text": "x", **fields}}
        answer = house.client.post("/tunes/690204/prompts", json=body, headers=house.auth())
        assert answer.status_code == 422 and set(fields) <= set(answer.json()), answer.text
    asked = {"prompt": "x", "image_url": "uploads/x"}
    answer = house.client.post("/v1/image/generate", json=asked, headers=house.auth())
    assert answer.status_code == 422 and "image_url" in answer.json()["detail"]


def test_limits_of_an_account(house: House, pictures) -> None:
    job = train(house)
    house.registry.ledger.set_options("ann", max_upload_files=6, max_upload_mb=0.01)
    many = house.client.post(job["upload_url"], files=pictures(9))
    assert many.status_code == 413 and "detail" in many.json()
    big = [("images", (f"{n}.png", b"x" * 20_000, "image/png")) for n in range(5)]
    assert house.client.post(job["upload_url"], files=big).status_code == 413
    assert house.client.post(job["upload_url"], files=pictures(5)).status_code == 200


@pytest.mark.parametrize("body", [b"\xff\xfe{\x00}\x00", '{"tune": "é"}'.encode("latin-1"), b"\x80abc"])
@pytest.mark.parametrize(("method", "path", "_body", "_word"), CALLS[:4])
def test_wrong_encodings(house: House, method: str, path: str, _body: Any, _word: str, body: bytes) -> None:
    headers = {**house.auth(), "Ocp-Apim-Subscription-Key": house.key(), "Content-Type": "application/json"}
    answer = house.client.request(method, path, content=body, headers=headers)
    assert 400 <= answer.status_code < 500 and answer.json()


@pytest.mark.parametrize("limit", ["body_seconds", "body_total_seconds"])
def test_bodies_that_come_too_slowly(limit: str) -> None:
    """Silence ends a request, and so does dripping steadily."""
    options = GatewayOptions.model_validate({limit: 0.2})
    gaps = 5.0 if limit == "body_seconds" else 0.05

    async def drip() -> dict[str, Any]:
        await asyncio.sleep(gaps)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        while True:
            await receive()

    async def nothing(_message: Any) -> None:
        """Answers go nowhere."""

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    with pytest.raises(Exception) as caught:
        asyncio.run(asyncio.wait_for(Manners(app, options)(scope, drip, nothing), 4))
    assert as_problem(caught.value).status == 408


def test_deleting_takes_everything_along(house: House, pictures) -> None:
    job = train(house)
    house.client.post(job["upload_url"], files=pictures(5))
    house.finish_tune(house.registry.tunes.get(job["job_id"]))
    asked = {"tune_id": job["job_id"], "prompt": "ohwx", "num_images": 1}
    house.client.post("/v1/tunes/infer", json=asked, headers=house.auth())
    house.render_all()
    lora = job["job_id"].replace("tune_", "lora_")
    assert house.client.delete(f"/v1/tunes/{lora}", headers=house.auth()).json()["status"] == "deleted"
    assert house.client.get(f"/v1/tunes/{job['job_id']}", headers=house.auth()).status_code == 404
    house.service.settle()
    left = [key for key in house.store.list("batches") if key.endswith("-0.png")]
    assert list(house.store.list("tunes")) == [] and left == []


@pytest.fixture
def redis() -> Iterator[str]:
    """A redis server of this test."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server = subprocess.Popen(
        ["redis-server", "--port", port, "--save", "", "--appendonly", "no"], stdout=subprocess.DEVNULL
    )
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                break
        time.sleep(0.05)
    yield f"redis://127.0.0.1:{port}"
    server.terminate()
    server.wait(10)


def test_servers_share_their_counts(house: House, redis: str) -> None:
    from limits.storage import storage_from_string
    from limits.strategies import FixedWindowRateLimiter

    from tunes_dagster.gateway.app import create_app
    from tunes_dagster.gateway.service import Service

    service = house.service
    other = Service(service.installation, service.options)
    for one in (service, other):
        one.limiter = FixedWindowRateLimiter(storage_from_string(redis))
    second = TestClient(create_app(service.settings, service.options, other))
    house.key("slow")
    house.registry.ledger.open_wallet("slow", plan="free", requests_per_minute=3)
    seen = [
        client.get("/v1/account/balance", headers=house.auth("slow"))
        for client in (house.client, second, house.client, second)
    ]
    assert [one.status_code for one in seen] == [200, 200, 200, 429]
    assert [one.headers["x-ratelimit-remaining"] for one in seen] == ["2", "1", "0", "0"]


def _routes() -> list[tuple[str, str]]:
    """Return method and path of every route of every API, also of those that no page shows."""
    found = []
    for name in ("pixelapi", "pixazo", "pixu", "astria", "native"):
        dialect = NATIVE if name == "native" else load_dialect(name)
        for route in _flat(dialect.router.routes):
            for method in sorted(route.methods - {"HEAD"}):
                found.append((method, ("/native/v1" if name == "native" else "") + route.path))
    return found


def _flat(routes: list[Any]) -> Iterator[Any]:
    for route in routes:
        inner = getattr(route, "original_router", None)  # FastAPI keeps what is included as it is
        yield from _flat(inner.routes) if inner is not None else (route,)


def _nobodys(value: str) -> str:
    """Return an id of the same look that nothing has."""
    return "987654" if value.isdecimal() else value[:-4] + "zzzz"


def test_every_endpoint_keeps_tenants_apart(house: House) -> None:
    """Walks every route there is: with Ann's ids in every path, Bob sees, changes and learns nothing.

    A new endpoint is walked by itself; one with a new parameter fails here until it is given Ann's id for it.
    """
    job = train(house)["job_id"]
    tune = astria_tune(house, prompts_attributes=[{"text": "ohwx woman"}], callback="https://a.example.com/x")
    uid, request = pixu_model(house), pixu_call(house, "txt2img_composition").json()["response"]
    prompt = house.client.get("/prompts", headers=house.auth()).json()[0]["id"]
    own = {"title": "Secret", "prompts_per_class": {"man": [{"text": "x"}]}}
    pack = house.client.post("/packs", json={"pack": own}, headers=house.auth()).json()["slug"]
    space = {"workspace": {"title": "Secret"}}
    space = house.client.post("/workspaces", json=space, headers=house.auth()).json()["id"]
    house.registry.work.cancel_tune(job)
    ids = {
        "job_id": [job],
        "tune_id": [str(tune["id"]), job],
        "prompt_id": [str(prompt)],
        "pack_id": [pack],
        "key": [job, uid, str(tune["id"]), str(prompt)],
        "generation_id": [str(prompt)],
        "request_id": [job],
        "callback_id": [one.id for one in house.registry.outbox.of_account("ann")] or ["cb_x"],
        "form": ["kohya"],
        "operation": ["remove-background"],
        "batch_id": ["batch_x"],
        "workspace_id": [str(space)],
    }
    bob = {**house.auth("bob"), "Ocp-Apim-Subscription-Key": house.key("bob")}
    bodies = {
        "model_uid": uid,
        "request_uid": request,
        "tune_id": job,
        "request_id": job,
        "api_key": house.key("bob"),
        "app_uid": "api",
        "prompt": "x",
        "captions": {},
    }
    secrets = (job, uid, request, "Natalie", "Secret", "ohwx woman")
    made_up = {name: _nobodys(values[0]) for name, values in ids.items()}
    walked = 0
    for method, path in _routes():
        unknown = re.findall(r"{(\w+)}", path)
        assert set(unknown) <= set(ids), f"{path} has a parameter that this test does not know"
        body = bodies if method in ("POST", "PUT", "PATCH") else None
        for number in range(max([1, *(len(ids[name]) for name in unknown)])):
            chosen = {name: ids[name][number % len(ids[name])] for name in unknown}
            answer = house.client.request(method, path.format(**chosen), json=body, headers=bob)
            walked += 1
            said = answer.text
            for value in chosen.values():
                said = said.replace(value, "")
            if method == "GET" or answer.status_code < 300:
                assert not any(word in said for word in secrets), (method, path, said)
            if unknown:
                assert answer.status_code in (400, 403, 404, 422), (
                    method,
                    path,
                    answer.status_code,
                    answer.text,
                )
                nobody = house.client.request(method, path.format(**made_up), json=body, headers=bob)
                assert answer.status_code == nobody.status_code, (method, path, "tells what exists")
    assert walked > 50
    assert house.tune(tune["id"]).deleted_at is None and house.registry.tunes.get(job).deleted_at is None
