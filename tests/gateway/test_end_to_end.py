"""The vendors' documented samples against a running server with the real pipeline behind it, to finished pictures.

What the samples leave blank is filled in: the address, the key, the pictures (drawn), and short trainings. Every
dialect goes the whole way on the random base; all but the first are slow.
"""

from __future__ import annotations

import base64
import io
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import httpx
import pytest
import uvicorn
from PIL import Image

from tests.support.houses import draw_pictures, write_catalog
from tunes_dagster.gateway.app import create_app
from tunes_dagster.inprocess import drive
from tunes_dagster.registry import Registry, open_registry
from tunes_dagster.settings import get_settings

Finish = Callable[[], None]


class Running:
    """A server on a port of this machine, and the pipeline on demand."""

    def __init__(self, folder: Path) -> None:
        self.settings = get_settings()
        self.registry: Registry = open_registry(self.settings)
        self.registry.add_account("ann")
        self.registry.open_wallet("ann", plan="house", requests_per_minute=6000, sign_up_grant=100_000_000)
        self.key = self.registry.add_key("ann", "pk_live_")[1]
        self.pictures = sorted(draw_pictures(folder / "pictures", 5).iterdir())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = uvicorn.Config(create_app(self.settings), port=self.port, log_level="warning")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.05)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def work(self) -> None:
        """Let the pipeline do everything that waits."""

        def done() -> bool:
            waits = self.registry.queue_lengths()
            return not waits["work"] and not waits["prompts_queued"]

        drive(self.settings, done, registry=self.registry, instance=dg.DagsterInstance.ephemeral())

    def close(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(10)
        self.registry.close()


@pytest.fixture
def running(tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    catalog = write_catalog(tmp_path / "catalog.yaml", base_folder)
    for name, value in {
        "TUNES_HOME": str(tmp_path / "home"), "TUNES_CATALOG": str(catalog), "TUNES_DEVICE": "cpu",
        "TUNES_COHORT_WAIT_SECONDS": "0", "TUNES_BATCH_WAIT_SECONDS": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    server = Running(tmp_path)
    yield server
    server.close()
    get_settings.cache_clear()


def _is_picture(client: httpx.Client, url: str, size: tuple[int, int]) -> None:
    answer = client.get(url)
    assert answer.status_code == 200 and Image.open(io.BytesIO(answer.content)).size == size


def test_pixelapis_python_sample(running: Running) -> None:
    """pixelapi.dev/docs/tunesapi.html; filled in: the address, API_KEY, the five files, 100 steps, rank 4."""
    headers, client = {"Authorization": f"Bearer {running.key}"}, running.client
    train = {"model": "sdxl", "trigger_word": "ohwx", "steps": 100, "rank": 4}
    job = client.post("/v1/tunes/train", headers=headers, json=train).json()
    files = [("images", (path.name, path.read_bytes(), "image/png")) for path in running.pictures]
    client.post(job["upload_url"], files=files).raise_for_status()
    running.work()
    status = client.get(f"/v1/tunes/{job['job_id']}", headers=headers).json()
    assert status["status"] == "completed", status
    asked = {"tune_id": status.get("tune_id", "lora_xyz"), "prompt": "a photo of ohwx on a beach", "num_images": 2,
             "width": 256, "height": 320}  # fmt: skip
    infer = client.post("/v1/tunes/infer", headers=headers, json=asked).json()
    running.work()
    done = client.get(f"/v1/tunes/{infer['job_id']}", headers=headers).json()
    assert done["status"] == "completed" and len(done["images"]) == 2, done
    for url in done["images"]:
        _is_picture(client, url, (256, 320))


@pytest.mark.slow
def test_astrias_curl_sample(running: Running) -> None:
    """docs.astria.ai create a tune; filled in: the address, the key, the files, five steps."""
    headers, client = {"Authorization": f"Bearer {running.key}"}, running.client
    files = [("tune[images][]", (path.name, path.read_bytes(), "image/png")) for path in running.pictures]
    data = {"tune[title]": "John Doe - UUID - 1234-6789-1234-56789", "tune[name]": "man", "tune[branch]": "fast",
            "tune[steps]": "5", "tune[prompts_attributes][0][text]": "a photo of ohwx man",
            "tune[prompts_attributes][0][num_images]": "2"}  # fmt: skip
    tune = client.post("/tunes", headers=headers, data=data, files=files)
    assert tune.status_code == 201
    running.work()
    (prompt,) = client.get(f"/tunes/{tune.json()['id']}/prompts.json", headers=headers).json()
    assert len(prompt["images"]) == 2 and client.get(prompt["images"][0]).status_code == 200


@pytest.mark.slow
def test_pixazos_curl_sample(running: Running) -> None:
    """pixazo.ai; filled in: the address, the key, a zip as a data URI in the place of the sample's, five steps."""
    headers, client = {"Ocp-Apim-Subscription-Key": running.key, "Cache-Control": "no-cache"}, running.client
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in running.pictures:
            archive.write(path, path.name)
    uri = "data:application/zip;base64," + base64.b64encode(packed.getvalue()).decode()
    path = "/flux-2-pro-text-to-image-trainer-712/v1/flux-2-pro-text-to-image-trainer-request"
    body = {"image_data_url": uri, "steps": 5, "learning_rate": 0.00003}
    request = client.post(path, headers=headers, json=body).json()["request_id"]
    running.work()
    done = client.post(f"{path}-result", headers=headers, json={"request_id": request}).json()
    assert done["status"] == "COMPLETED", done
    assert len(client.get(done["output"]["media_url"][0]).content) > 1000


@pytest.mark.slow
def test_pixus_sample(running: Running) -> None:
    """pixu.ai/pixu/apidoc; filled in: the address, api_key, the face (drawn)."""
    client, key = running.client, {"api_key": running.key, "app_uid": "api"}
    face = base64.b64encode(running.pictures[0].read_bytes()).decode()
    made = client.post(
        "/pixu/api/create_model", json={**key, "face_base64": face, "height": 192, "baseline": 1}
    )
    uid = made.json()["response"]["modelUid"]
    asked = {**key, "model_uid": uid, "model_weight": 1.0, "positive": "smiling", "resolution": "512,768"}
    request = client.post("/pixu/api/txt2img_strict_portrait", json=asked).json()["response"]
    running.work()
    done = client.post("/pixu/api/txt2img_results", json={**key, "request_uid": request}).json()["response"]
    assert done["status"] == "completed", done
    _is_picture(client, done["images"][0], (512, 768))
