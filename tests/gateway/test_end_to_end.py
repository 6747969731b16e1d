"""The vendors' documented samples, run by curl, Python and node against a running server with the real pipeline.

`vendors/` holds the samples. What is filled in or left out of each is listed in `FILLED`; beside it every sample's
address leads to the server under test. One server, one pipeline and few trainings serve all of them.
"""

from __future__ import annotations

import base64
import http.server
import io
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pytest
from PIL import Image, ImageChops, ImageStat

from tests.support.houses import QUICK, draw_pictures, write_catalog
from tests.support.registry import around
from tunes_dagster.callbacks.deliver import deliver_due
from tunes_dagster.core.settings import get_settings
from tunes_dagster.gateway.app import create_app
from tunes_dagster.gateway.dialects import pixu
from tunes_dagster.gateway.serving import server_of
from tunes_dagster.pipeline.inprocess import drive
from tunes_dagster.registry import Registry, open_registry
from tunes_dagster.service.installation import Installation

VENDORS = Path(__file__).with_name("vendors")
HOSTS = ("https://api.pixelapi.dev", "https://gateway.pixazo.ai", "https://pixu.ai", "https://api.astria.ai")
# Sample → what stands on the page, and what the test puts there: addresses, keys, blanks and pictures, nothing else.
# {…} is known only when it runs.
FILLED: dict[str, dict[str, str]] = {
    "pixelapi.py": {"YOUR_API_KEY": "{key}", '"image{n}.jpg"': '"{pictures}/{n}.png"'},
    "pixelapi.sh": {"YOUR_API_KEY": "{key}"},
    "pixazo.sh": {"YOUR_SUBSCRIPTION_KEY": "{key}", "https://example.com": "{files}"},
    "pixazo.py": {"YOUR_SUBSCRIPTION_KEY": "{key}", "https://example.com": "{files}"},
    "pixazo.js": {"YOUR_SUBSCRIPTION_KEY": "{key}", "https://example.com": "{files}"},
    "pixazo.java": {"YOUR_SUBSCRIPTION_KEY": "{key}", "https://example.com": "{files}"},
    "pixu.sh": {
        "my_api_key": "{key}",
        "base64 encoded cropped face": "{face}",
        "https://my-site.com": "{files}",
    },
    "pixu_portrait.sh": {
        "my_api_key": "{key}",
        "https://my-site.com": "{files}",
        "upose_de2d19bbb30703a45df8d0366ec49099": "{uid}",
    },
    "astria.sh": {
        "$API_KEY": "{key}",
        "=@": "=@{pictures}/",
        ".jpg": ".png",
        "https://optional-callback-url.com": "{files}",
    },
    "astria_flux.sh": {"$API_KEY": "{key}", "=@": "=@{pictures}/", ".jpg": ".png"},
    "astria_prompt.py": {
        "YOUR_API_KEY": "{key}",
        "/tunes/1/": "/tunes/{tune}/",
        "https://optional-callback-url.com": "{files}",
    },
    "astria_prompt.js": {
        "YOUR_API_KEY": "{key}",
        "/tunes/1/": "/tunes/{tune}/",
        "https://optional-callback-url.com": "{files}",
    },
    # The installation's pack of that name.
    "astria_pack.js": {
        "YOUR_API_KEY": "{key}",
        "/p/260/": "/p/corporate-headshots/",
        "https://optional-callback-url.com": "{files}",
        "https://i.imgur.com/HLHBnl9.jpeg": "{files}/1.png",
    },
}
# What is made shorter where the machine is shared; `-m proof` runs the samples with all their steps.
CUT: dict[str, dict[str, str]] = {
    "pixelapi.py": {"1000": "100", "time.sleep(30)": "time.sleep(0.5)"},
    "pixazo.sh": {"1500": "5"},
    "pixazo.py": {"1500": "5"},
    "pixazo.js": {"1500": "5"},
    "pixazo.java": {"1500": "5"},
    "astria_flux.sh": {'-F "tune[token]': '-F tune[steps]=5 -F "tune[token]'},
    "astria.sh": {"-F tune[token]": "-F tune[steps]=5 -F tune[token]"},
    "astria_pack.js": {"name: 'man',": "name: 'man', steps: 5,"},
}


class Callers(http.server.BaseHTTPRequestHandler):
    """The callers' side: their files, and a note of every callback that comes."""

    seen: list[tuple[str, str, Any]] = []
    folder: Path

    def do_GET(self) -> None:
        path = self.folder / self.path.strip("/")
        if path.is_file():
            self._answer(path.read_bytes())
            return
        self.seen.append(("GET", self.path, None))
        self._answer(b"ok")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.seen.append(("POST", self.path, json.loads(body)))
        self._answer(b"ok")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


class Running:
    """A server on a port of this machine, the callers' side beside it, and the pipeline on demand."""

    def __init__(self, folder: Path, whole: bool) -> None:
        self.whole = whole
        self.settings = get_settings()
        self.registry: Registry = open_registry(self.settings)
        self.registry.accounts.add("ann")
        self.registry.ledger.open_wallet(
            "ann", plan="house", requests_per_minute=6000, sign_up_grant=100_000_000
        )
        self.key = self.registry.keys.add("ann", "pk_live_")[1]
        self.folder = folder
        for number, path in enumerate(sorted(draw_pictures(folder / "drawn", 5).iterdir()), 1):
            shutil.copy(path, folder / f"{number}.png")
        with zipfile.ZipFile(folder / "dataset.zip", "w") as archive:
            for number in range(1, 6):
                archive.write(folder / f"{number}.png", f"{number}.png")
        Callers.folder, Callers.seen = folder, []
        self.callers = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Callers)
        threading.Thread(target=self.callers.serve_forever, daemon=True).start()
        self.files = f"http://127.0.0.1:{self.callers.server_port}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        port = int(self.address.rpartition(":")[2])
        self.server = server_of(create_app(self.settings), port=port)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.05)
        self.client = httpx.Client(
            base_url=self.address, timeout=60, headers={"Authorization": f"Bearer {self.key}"}
        )

    def start(self, name: str, **known: str) -> subprocess.Popen[str]:
        """Start a sample with the tool it is written for."""
        text = (VENDORS / name).read_text(encoding="utf-8")
        face = base64.b64encode((self.folder / "1.png").read_bytes()).decode()
        values = {"key": self.key, "files": self.files, "pictures": str(self.folder), "face": face, **known}
        for host in HOSTS:
            text = text.replace(host, self.address)
        for page, ours in {**FILLED[name], **({} if self.whole else CUT.get(name, {}))}.items():
            assert page in text, (name, page)
            for word, value in values.items():
                ours = ours.replace("{" + word + "}", value)
            text = text.replace(page, ours)
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        tool = {".sh": ["bash"], ".py": [sys.executable], ".js": ["node"], ".java": ["java"]}[path.suffix]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*tool, str(path)], cwd=self.folder, **pipes)  # type: ignore[call-overload,no-any-return]

    def play(self, name: str, **known: str) -> list[Any]:
        """Run a sample to its end and return the JSON documents it printed."""
        return told(name, self.start(name, **known))

    def work(self) -> None:
        """Let the pipeline do everything that waits, and send the callbacks."""

        def done() -> bool:
            waits = self.registry.figures.queue_lengths()
            return not waits["work"] and not waits["prompts_queued"]

        drive(
            Installation(self.settings, registry=self.registry), done, instance=dg.DagsterInstance.ephemeral()
        )
        deliver_due(around(self.registry), allow_hosts=["127.0.0.1"])

    def steps(self, tune_id: str) -> int | None:
        """Return how many steps a tune was trained."""
        return self.registry.tunes.get(tune_id).made.steps

    def picture(self, url: str) -> Image.Image:
        """Return a picture as anybody may fetch it: without a key."""
        answer = httpx.get(url)
        assert answer.status_code == 200, answer.text
        return Image.open(io.BytesIO(answer.content))

    def close(self) -> None:
        self.client.close()
        self.callers.shutdown()
        self.server.should_exit = True
        self.thread.join(10)
        self.registry.close()


def told(name: str, process: subprocess.Popen[str]) -> list[Any]:
    out, err = process.communicate(timeout=7200)
    assert process.returncode == 0, (name, out, err)
    if name.endswith(".py"):
        return [
            eval(line) for line in out.splitlines() if line.strip()
        ]  # what Python prints of its own dicts
    found, decoder, text = [], json.JSONDecoder(), out.strip()
    while text:
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:].strip()
    return found


# Thousands of steps take longer than any other test may.
WHOLE = [pytest.mark.proof, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module", params=["cut", pytest.param("whole", marks=WHOLE)])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, base_folder: Path
) -> Iterator[Running]:
    whole, folder = request.param == "whole", tmp_path_factory.mktemp("vendors")
    catalog = write_catalog(folder / "catalog.yaml", base_folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "TUNES_HOME": str(folder / "home"),
            "TUNES_CATALOG": str(catalog),
            "TUNES_DEVICE": "cpu",
            "TUNES_COHORT_WAIT_SECONDS": "0",
            "TUNES_BATCH_WAIT_SECONDS": "0",
            "TUNES_REPORT_CHECKPOINTS": "0",
            "TUNES_ALLOW_HOSTS": '["127.0.0.1"]',
        }.items():
            patch.setenv(name, value)
        if not whole:
            patch.setitem(pixu._STEPS, 1, 5)  # of a face alone 300 are trained
        get_settings.cache_clear()
        server = Running(folder, whole)
        yield server
        server.close()
    get_settings.cache_clear()


NODE = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
CURL = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@CURL
def test_pixelapis_samples(running: Running) -> None:
    config, train, models, image = running.play("pixelapi.sh")
    assert (
        config["pricing"]["train_sdxl"] == {"credits": 100, "usd": 0.10}
        and train["status"] == "awaiting_images"
    )
    assert models == [] and image["credits_used"] == 1.0
    sample = running.start("pixelapi.py")  # it waits for its training
    while not any(tune.status == "queued" for tune in running.registry.tunes.rows()):
        assert sample.poll() is None, sample.communicate()
        time.sleep(0.1)
    running.work()
    (infer,) = told("pixelapi.py", sample)
    assert infer["status"] == "queued" and infer["credits_cost"] == 4, infer
    (trained,) = running.registry.tunes.rows(status="ready")
    assert running.steps(trained.id) == (1000 if running.whole else 100)
    running.work()
    done = running.client.get(f"/v1/tunes/{infer['job_id']}").json()
    assert done["status"] == "completed" and len(done["images"]) == 2, done
    assert running.picture(done["output_url"]).size == (1024, 1024)
    shown = running.client.get(f"/v1/image/{image['generation_id']}").json()
    assert shown["status"] == "completed" and running.picture(shown["output_url"]).size == (1024, 1024)


def test_a_picture_is_enlarged_by_the_shipped_model(running: Running) -> None:
    known = running.client.get("/v1/models").json()["models"]
    assert {one["id"]: one["status"] for one in known}["upscale-4x"] == "available"
    given = io.BytesIO()
    with Image.open(running.folder / "1.png") as drawn:
        drawn.convert("RGB").resize((48, 40)).save(given, "PNG")
    file = {"image": ("small.png", given.getvalue(), "image/png")}
    made = running.client.post("/v1/image/upscale", files=file, data={"scale": "4"})
    assert made.status_code == 200 and made.json()["model"] == "upscale-4x", made.text
    running.work()
    done = running.client.get(f"/v1/image/{made.json()['generation_id']}").json()
    assert done["status"] == "completed" and done["credits_used"] == 2.0, done
    enlarged = running.picture(done["output_url"]).convert("RGB")
    assert enlarged.size == (192, 160)
    small = Image.open(given).convert("RGB")
    assert max(ImageStat.Stat(ImageChops.difference(enlarged.resize(small.size), small)).mean) < 12, (
        "it is the picture that was given"
    )


@pytest.mark.slow
@CURL
def test_pixazos_samples(running: Running) -> None:
    samples = ["pixazo.sh", "pixazo.py"]
    # Java runs a source file where its compiler is.
    for tool, name in (("node", "pixazo.js"), ("javac", "pixazo.java")):
        samples += [name] if shutil.which(tool) else []
    requests = [running.play(name)[0] for name in samples]
    assert {one["status"] for one in requests} == {"IN_QUEUE"}
    running.work()
    path = "/flux-2-pro-text-to-image-trainer-712/v1/flux-2-pro-text-to-image-trainer-request-result"
    for one in requests:
        asked, headers = {"request_id": one["request_id"]}, {"Ocp-Apim-Subscription-Key": running.key}
        done = running.client.post(path, json=asked, headers=headers).json()
        assert done["status"] == "COMPLETED", done
        assert running.steps(one["request_id"]) == (1500 if running.whole else 5)
        assert len(httpx.get(done["output"]["media_url"][0]).content) > 1000
        assert done["diffusers_lora_file"]["url"] and httpx.get(done["config_file"]["url"]).json()


@pytest.mark.slow
@CURL
def test_pixus_samples(running: Running) -> None:
    (made,) = running.play("pixu.sh")
    uid = made["response"]["modelUid"]
    running.work()
    assert running.steps(running.registry.tunes.rows()[0].id) == (300 if running.whole else 5)
    assert ("GET", f"/callback_create_model/?model_uid={uid}", None) in Callers.seen
    (request,) = running.play("pixu_portrait.sh", uid=uid)
    running.work()
    assert ("GET", f"/callback_txt2img/?request_uid={request['response']}", None) in Callers.seen
    body = {"api_key": running.key, "app_uid": "api", "request_uid": request["response"]}
    done = running.client.post("/pixu/api/txt2img_results", json=body).json()["response"]
    assert done["status"] == "completed" and running.picture(done["images"][0]).size == (512, 768), done


@pytest.mark.slow
@CURL
@NODE
def test_astrias_samples_and_the_callbacks_of_the_headshots_application(running: Running) -> None:
    """The page's samples, and section 6 of the contracts: callback addresses byte for byte, each told once."""
    (tune,) = running.play("astria.sh")
    assert isinstance(tune["id"], int) and tune["trained_at"] is None and tune["branch"] == "fast"
    asked = [running.play(name, tune=str(tune["id"]))[0] for name in ("astria_prompt.py", "astria_prompt.js")]
    (pack,) = running.play("astria_pack.js")
    flux = running.play("astria_flux.sh") if running.whole else []
    query = "user_id=3f2b-1&model_id=7&webhook_secret=s%2Bx~!*()'"
    hook = {name: f"{running.files}/astria/{name}-webhook?{query}" for name in ("train", "prompt")}
    prompts = [
        {"text": f"portrait of ohwx man {n}", "callback": hook["prompt"], "num_images": 2} for n in range(2)
    ]
    body = {
        "title": "Natalie",
        "base_tune_id": 690204,
        "name": "man",
        "branch": "fast",
        "token": "ohwx",
        "steps": 5,
        "image_urls": [f"{running.files}/{n}.png" for n in range(1, 5)],
        "callback": hook["train"],
        "characteristics": {},
        "prompts_attributes": prompts,
    }
    assert running.client.post("/tunes", json={"tune": body}).status_code == 201
    running.work()
    running.work()
    shown = running.client.get(f"/tunes/{tune['id']}.json").json()
    assert shown["steps"] == (QUICK["steps"] if running.whole else 5), "the sample leaves them to the base"
    assert shown["trained_at"] and len(httpx.get(shown["ckpt_url"]).content) > 1000
    for one in asked:
        prompt = running.client.get(f"/tunes/{tune['id']}/prompts/{one['id']}.json").json()
        assert prompt["super_resolution"] and prompt["face_correct"], "as they were asked for"
        assert len(prompt["images"]) == 1 and running.picture(prompt["images"][0]).width >= 256, prompt
    assert len(running.client.get(f"/tunes/{pack['id']}/prompts.json").json()[0]["images"]) == 1
    for one in flux:
        (large,) = running.client.get(f"/tunes/{one['id']}/prompts.json").json()
        assert running.picture(large["images"][0]).width >= 256, large
    told_here = [one for one in Callers.seen if one[1].startswith("/astria/")]
    addresses = sorted(path for _method, path, _body in told_here)
    assert addresses == [f"/astria/prompt-webhook?{query}"] * 2 + [f"/astria/train-webhook?{query}"]
    assert {method for method, _path, _body in told_here} == {"POST"}
    for _method, path, content in told_here:
        assert set(content) == ({"tune"} if "train" in path else {"prompt"})
        for url in content.get("prompt", {}).get("images", []):
            assert running.picture(url).width >= 64
    deliver_due(around(running.registry), allow_hosts=["127.0.0.1"])
    assert len([one for one in Callers.seen if one[1].startswith("/astria/")]) == 3
