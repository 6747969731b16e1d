"""PixelAPI's own clients: its Python SDK as PyPI has it, unchanged, and what the others send, as they send it."""

from __future__ import annotations

import base64
import importlib.util
import io
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from urllib.parse import urlencode

import pytest
from PIL import Image

from tests.gateway.conftest import House
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.families.catalog import AuxiliaryEntry, Catalog
from tunes_dagster.gateway.serving import server_of

ADDRESS = "https://example.com/low-res.jpg"
FORM = "application/x-www-form-urlencoded"


def imported() -> ModuleType:
    """The SDK. The 0.2.0 that PyPI has asks for its own `__version__` before it has set it, and cannot be imported."""
    spec = importlib.util.find_spec("pixelapi")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__version__ = "0.2.0"  # type: ignore[attr-defined]
    sys.modules["pixelapi"] = module
    spec.loader.exec_module(module)
    return module


pixelapi: Any = imported()


@pytest.fixture
def enlarging(house: House) -> House:
    """The house with an upscaling model, which nothing here loads."""
    folder = house.settings.resolved_home / "upscaler"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    known = house.service.catalog
    model = AuxiliaryEntry(base_id="upscale-4x", family="upscale", repo_id=str(folder), licence="none")
    entries = {**known.entries, **known.auxiliary, "upscale-4x": model}
    house.service.installation.catalog = Catalog(entries, known.profile)
    return house


@pytest.fixture
def sdk(house: House) -> Iterator[Any]:
    """The SDK with our address and key, against a server on a port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    key, server = house.key(), server_of(house.client.app, port=port)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    with pixelapi.PixelAPI(key, base_url=f"http://127.0.0.1:{port}") as client:
        yield client
    server.should_exit = True
    thread.join(20)


def test_the_python_sdk_generates_and_waits(house: House, sdk: Any) -> None:
    made = sdk.image.generate(prompt="a cat in space", model="sdxl")
    assert made.is_pending and made.status.value == "pending" and made.credits_used == 1
    assert sdk.generation.get(made.id).is_pending
    house.render_all()
    done = sdk.generation.wait(made.id, timeout=5, poll_interval=0.1)
    assert done.is_complete and done.output_url and done.created_at
    lost = sdk.image.generate(prompt="a cat", negative_prompt="dogs")  # its default is FLUX
    house.render_all(fail=True)
    with pytest.raises(pixelapi.PixelAPIError, match="No"):
        sdk.generation.wait(lost.id, timeout=5, poll_interval=0.1)


def test_what_the_python_sdk_cannot_have_here_is_not_found(sdk: Any) -> None:
    calls = {
        "remove-background": lambda: sdk.image.remove_background(image_url=ADDRESS),
        "restore-face": lambda: sdk.image.restore_face(image_url=ADDRESS),
        "remove-object": lambda: sdk.image.remove_object(image_url=ADDRESS, mask_url=ADDRESS),
        "replace-background": lambda: sdk.image.replace_background(image_url=ADDRESS, prompt="marble"),
    }
    for name, call in calls.items():
        with pytest.raises(pixelapi.NotFoundError, match=f"{name} is not served here"):
            call()
    with pytest.raises(pixelapi.NotFoundError):
        sdk.audio.generate(prompt="upbeat")
    with pytest.raises(pixelapi.ValidationError, match="scale is 2"):
        sdk.image.upscale(image_url=ADDRESS, scale=2)


def test_the_python_sdk_enlarges(enlarging: House, sdk: Any) -> None:
    made = sdk.image.upscale(image_url=ADDRESS)
    row = enlarging.registry.prompts.rows()[0]
    assert made.is_pending and row.base_id == "upscale-4x" and row.settings["input_image"] == ADDRESS
    enlarging.render_all()
    assert sdk.generation.wait(made.id, timeout=5, poll_interval=0.1).output_url


def test_forms_of_the_go_and_php_clients(enlarging: House) -> None:
    """Go: urlencoded; PHP: multipart, as curl makes it of an array; both with `X-API-Key`."""
    client, key = enlarging.client, {"X-API-Key": enlarging.key()}
    headers = {**key, "Content-Type": FORM, "User-Agent": "Go-http-client/1.1"}
    answer = client.post(
        "/v1/image/generate", content=urlencode({"prompt": "a cat & a dog"}), headers=headers
    )
    assert answer.status_code == 200 and answer.json()["status"] == "queued", answer.text
    assert enlarging.registry.prompts.rows()[0].text == "a cat & a dog"
    content = urlencode({"image_url": ADDRESS, "scale": "4"})
    assert client.post("/v1/image/upscale", content=content, headers=headers).status_code == 200
    answer = client.post(
        "/v1/image/generate", files={"prompt": (None, "a cat"), "seed": (None, "7")}, headers=key
    )
    assert answer.status_code == 200 and enlarging.registry.prompts.rows()[0].settings["seed"] == 7
    refused = client.post("/v1/image/generate", content=urlencode({"steps": "x"}), headers=headers)
    assert refused.status_code == 422 and "steps" in refused.json()["detail"]
    answer = client.post("/v1/image/face-restore", content=urlencode({"image_url": ADDRESS}), headers=headers)
    assert answer.status_code == 404 and "face-restore" in answer.json()["detail"]


@pytest.mark.parametrize("agent", ["n8n", "Zapier", "axios/1.8.4"])
def test_bodies_of_the_workflow_tools(enlarging: House, agent: str) -> None:
    """The n8n node and the Zapier app: a prompt and nothing else, or an address and a scale, as JSON."""
    headers = {**enlarging.auth(), "User-Agent": agent}
    made = enlarging.client.post("/v1/image/generate", json={"prompt": "a cat"}, headers=headers).json()
    assert made["model"] == "sdxl" and made["status"] == "queued"
    body = {"image_url": ADDRESS, "scale": 4}
    assert (
        enlarging.client.post("/v1/image/upscale", json=body, headers=headers).json()["model"] == "upscale-4x"
    )
    for call in ("edit", "relight", "face-restore"):
        answer = enlarging.client.post(f"/v1/image/{call}", json={"image_url": ADDRESS}, headers=headers)
        assert answer.status_code == 404 and call in answer.json()["detail"]


def test_a_seed_of_minus_one_is_any_seed(house: House) -> None:
    """As most programs write it; what was drawn stands in the row."""
    for headers, send in ((house.auth(), {"json": {"prompt": "a cat", "seed": -1}}),) * 2 + (
        ({**house.auth(), "Content-Type": FORM}, {"content": urlencode({"prompt": "a cat", "seed": "-1"})}),
    ):
        assert house.client.post("/v1/image/generate", headers=headers, **send).status_code == 200  # type: ignore[arg-type]
    drawn = [row.settings["seed"] for row in house.registry.prompts.rows()]
    assert len(set(drawn)) == 3 and min(drawn) >= 0
    refused = house.client.post(
        "/v1/image/generate", json={"prompt": "a cat", "seed": -2}, headers=house.auth()
    )
    assert refused.status_code == 422 and "seed" in refused.json()["detail"]


def test_a_picture_as_a_file_of_a_form(enlarging: House) -> None:
    drawn = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(drawn, "PNG")
    file = {"image": ("a.png", drawn.getvalue(), "image/png")}
    answer = enlarging.client.post("/v1/image/upscale", files=file, headers=enlarging.auth())
    assert answer.status_code == 200, answer.text
    kept = enlarging.registry.prompts.rows()[0].settings["input_image"]
    assert Image.open(io.BytesIO(enlarging.store.read_bytes(kept))).size == (40, 30)
    assert enlarging.client.post("/v1/image/upscale", data={}, headers=enlarging.auth()).status_code == 422


@pytest.mark.parametrize(
    ("agent", "word"),
    [("pixelapi-python/0.1.0", "blocked"), ("pixelapi-js/0.1.0", "failed"), ("MyApp/1", "blocked")],
)
def test_each_sdk_reads_a_blocked_prompt_in_its_words(house: House, agent: str, word: str) -> None:
    """The first Python SDK raises for `blocked`; the others would wait for it until they give up."""
    made = house.client.post("/v1/image/generate", json={"prompt": "a cat"}, headers=house.auth()).json()
    for batch in house.registry.groups.make_batches(wait_seconds=0):
        work = house.registry.work.claim("render", batch.id, "run")
        for prompt in house.registry.prompts.rows(batch_id=batch.id):
            refused = Failure(FailureCode.BLOCKED, "A rule blocks it.")
            house.registry.prompts.failed(prompt.id, work.id, "run", refused)
        house.registry.work.finish(work.id, "run")
    headers = {**house.auth(), "User-Agent": agent}
    seen = house.client.get(f"/v1/image/{made['generation_id']}", headers=headers).json()
    assert seen["status"] == word and seen["error_message"] == seen["error"] == "A rule blocks it."
    assert seen["generation_id"] == seen["id"] == made["generation_id"]


def test_a_batch_is_one_job(enlarging: House) -> None:
    """The first Python SDK's `client.batch("upscale", [...])`: pictures by address or as base64."""
    agent = {**enlarging.auth(), "User-Agent": "pixelapi-python/0.1.0"}
    body = {"operation": "upscale", "images": [ADDRESS, ADDRESS]}
    made = enlarging.client.post("/v1/image/batch", json=body, headers=agent).json()
    path = f"/v1/image/batch/{made['batch_id']}"
    assert made["total"] == 2 and enlarging.client.get(path, headers=agent).json()["status"] == "processing"
    enlarging.render_all()
    done = enlarging.client.get(path, headers=agent).json()
    assert done["status"] == "completed" and all(one["output_url"] for one in done["results"])
    assert enlarging.client.get(path, headers=enlarging.auth("bob")).status_code == 404
    other = {"operation": "remove-bg", "images": [base64.b64encode(bytes(99)).decode()]}
    refused = enlarging.client.post("/v1/image/batch", json=other, headers=agent)
    assert refused.status_code == 422 and "known is upscale" in refused.json()["detail"]
