"""`tunes bases pull` against a hub that runs here and speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Tunes
from tunes_dagster.cli.checkup import companions_found
from tunes_dagster.cli.installation import Installation
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.core.settings import Settings, get_settings
from tunes_dagster.families.catalog import BaseModelEntry, load_catalog
from tunes_dagster.families.pulling import (
    HuggingFaceHub,
    RemoteFile,
    needed_files,
    plan_pull,
    pull,
    single_network,
)
from tunes_dagster.service.companions import captioner_of, companions, missing

COMMIT = "a" * 40
FILES = {
    "model_index.json": json.dumps(
        {
            "_class_name": "StableDiffusionXLPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
            "safety_checker": [None, None],
        }
    ).encode(),
    "LICENSE.md": b"do no harm",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"x" * 4000,
    "unet/diffusion_pytorch_model.fp16.safetensors": b"y" * 2000,
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"z" * 100,
    "vae_1_0/diffusion_pytorch_model.safetensors": b"old" * 100,
    "sd_xl.safetensors": b"w" * 9000,
    "unet/model.onnx": b"o" * 9000,
}
# A model of transformers as its makers publish it: in three frameworks, of which one is taken.
MODEL = {
    "config.json": b"{}",
    "model.safetensors": b"m" * 500,
    "pytorch_model.bin": b"p" * 500,
    "tf_model.h5": b"t" * 500,
    "preprocessor_config.json": b"{}",
    "vocab.txt": b"a",
    "README.md": b"what it is",
    "onnx/model.onnx": b"o" * 500,
}
REPOSITORIES = {
    "acme/base": FILES,
    "facebook/dinov2-base": MODEL,
    "openai/clip-vit-large-patch14": MODEL,
    "Salesforce/blip-image-captioning-base": MODEL,
}


class _Hub(BaseHTTPRequestHandler):
    """Just enough of the hub: model information, and files with the headers that the client wants."""

    gated = False
    fetched: list[str] = []

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        repository = "/".join(path.removeprefix("/api/models/").strip("/").split("/")[:2])
        files = REPOSITORIES.get(repository)
        if self.gated and "resolve" in path:
            self._send(403, b"gated", body, {"X-Error-Code": "GatedRepo"})
        elif files is None:
            self._send(404, b"no", body, {"X-Error-Code": "RepoNotFound"})
        elif path.startswith(f"/api/models/{repository}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            self._send(200, json.dumps(tree).encode(), body)
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            said = {"id": repository, "sha": COMMIT, "siblings": siblings}
            self._send(200, json.dumps(said).encode(), body)
        else:
            name = path.removeprefix(f"/{repository}/resolve/{COMMIT}/")
            if body:
                type(self).fetched.append(name)
            etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
            self._send(200, files[name], body, {"ETag": etag, "X-Repo-Commit": COMMIT})

    def _send(self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def hub() -> Iterator[HuggingFaceHub]:
    _Hub.gated, _Hub.fetched = False, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield HuggingFaceHub(token=None, endpoint=f"http://127.0.0.1:{server.server_address[1]}")
    server.shutdown()


@pytest.fixture
def entry() -> BaseModelEntry:
    return BaseModelEntry(
        base_id="acme",
        family="sdxl",
        repo_id="acme/base",
        licence="acme-1",
        native_size=1024,
        max_pixels=1 << 20,
        memory_gb=14,
        embedded="tiny-sdxl",
        token="ohwx",
    )


def test_a_pull_brings_what_the_pipeline_loads_under_plain_names(
    hub: HuggingFaceHub, entry: BaseModelEntry, tmp_path: Path
) -> None:
    plan = plan_pull(entry, tmp_path, hub)
    assert plan.commit == COMMIT
    assert plan.size == sum(len(FILES[file.path]) for file in plan.files)
    assert not entry.installed(tmp_path)
    folder = pull(plan, hub)
    assert entry.installed(tmp_path)
    assert (folder / "unet/diffusion_pytorch_model.safetensors").read_bytes() == b"y" * 2000
    assert (folder / "vae/diffusion_pytorch_model.safetensors").read_bytes() == b"z" * 100
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert names == {
        "model_index.json",
        "LICENSE.md",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "tunes-base.json",
    }
    assert json.loads((folder / "tunes-base.json").read_text())["commit"] == COMMIT
    assert not list(tmp_path.glob("*.part"))


def test_a_single_file_on_the_hub_is_brought_alone(
    hub: HuggingFaceHub, entry: BaseModelEntry, tmp_path: Path
) -> None:
    file = entry.model_copy(update={"repo_id": "acme/base/sd_xl.safetensors"})
    assert not file.installed(tmp_path)
    folder = pull(plan_pull(file, tmp_path, hub), hub)
    assert file.installed(tmp_path) and file.location(tmp_path).read_bytes() == b"w" * 9000
    assert {path.name for path in folder.iterdir()} == {"sd_xl.safetensors", "LICENSE.md", "tunes-base.json"}
    with pytest.raises(Failure, match="has no file other.safetensors"):
        plan_pull(entry.model_copy(update={"repo_id": "acme/base/other.safetensors"}), tmp_path, hub)


def test_an_interrupted_pull_goes_on_where_it_stopped(
    hub: HuggingFaceHub, entry: BaseModelEntry, tmp_path: Path
) -> None:
    plan = plan_pull(entry, tmp_path, hub)
    hub.download(
        "acme/base", COMMIT, ["unet/diffusion_pytorch_model.fp16.safetensors"], tmp_path / "acme--base.part"
    )
    _Hub.fetched.clear()
    pull(plan, hub)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" not in _Hub.fetched
    assert "vae/diffusion_pytorch_model.safetensors" in _Hub.fetched


def test_a_gate_is_explained(hub: HuggingFaceHub, entry: BaseModelEntry, tmp_path: Path) -> None:
    _Hub.gated = True
    with pytest.raises(Failure) as caught:
        plan_pull(entry, tmp_path, hub)
    assert caught.value.code is FailureCode.SOURCE_REFUSED
    assert "accept the licence" in caught.value.remedy
    assert "HF_TOKEN" in caught.value.remedy


def test_an_unknown_repository_and_a_dead_hub_are_told_apart(
    hub: HuggingFaceHub, entry: BaseModelEntry, tmp_path: Path
) -> None:
    with pytest.raises(Failure) as unknown:
        plan_pull(entry.model_copy(update={"repo_id": "acme/none"}), tmp_path, hub)
    assert unknown.value.code is FailureCode.SOURCE_REFUSED
    with pytest.raises(Failure) as dead:
        plan_pull(entry, tmp_path, HuggingFaceHub(endpoint="http://127.0.0.1:9"))
    assert dead.value.code is FailureCode.SOURCE_UNREACHABLE


def test_a_disk_that_is_too_small_is_seen_before_the_download(
    hub: HuggingFaceHub, entry: BaseModelEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_pull(entry, tmp_path, hub)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    with pytest.raises(Failure) as caught:
        pull(plan, hub)
    assert caught.value.code is FailureCode.STORE_UNAVAILABLE


def test_half_precision_is_chosen_also_without_a_plain_twin() -> None:
    listing = [RemoteFile(path, 1) for path in ("model_index.json", "vae/a.fp16.safetensors", "vae/a.bin")]
    assert [file.path for file in needed_files(listing, {"vae"})] == [
        "model_index.json",
        "vae/a.fp16.safetensors",
    ]


def test_what_ships_with_the_package_is_not_pulled(tmp_path: Path, entry: BaseModelEntry) -> None:
    with pytest.raises(Failure, match="ships with the package"):
        plan_pull(entry.model_copy(update={"repo_id": "embedded:sdxl"}), tmp_path, HuggingFaceHub())


def test_a_single_network_is_pulled_in_half_precision(tmp_path: Path) -> None:
    names = (
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
        "diffusion_pytorch_model.bin",
        "README.md",
        "images/a.png",
    )
    found = [file.path for file in single_network([RemoteFile(name, 1) for name in names])]
    assert found == ["README.md", "config.json", "diffusion_pytorch_model.fp16.safetensors"]
    with pytest.raises(Failure, match="safetensors"):
        single_network([RemoteFile("config.json", 1), RemoteFile("pytorch_model.bin", 1)])


class _Shelf:
    """A hub of which only names and sizes matter."""

    def __init__(self, files: dict[str, int]) -> None:
        self.files, self.fetched = files, []

    def listing(self, repo_id: str, revision: str | None) -> tuple[str, list[RemoteFile]]:
        return revision or COMMIT, [RemoteFile(path, size) for path, size in self.files.items()]

    def download(self, repo_id: str, commit: str, paths: Sequence[str], folder: Path) -> None:
        for path in paths:
            self.fetched.append(path)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(b"w" * self.files[path])

    def page(self, repo_id: str) -> str:
        return f"https://hub/{repo_id}"


def test_ip_adapters_share_their_encoder_and_bring_nothing_else(tmp_path: Path) -> None:
    catalog = load_catalog("production")
    small, large = (catalog.auxiliary[f"face-adapter-{family}"] for family in ("sd15", "sdxl"))
    shelf = _Shelf(
        {
            "README.md": 5,
            "models/image_encoder/config.json": 7,
            "models/image_encoder/model.safetensors": 90,
            "models/image_encoder/pytorch_model.bin": 90,
            "sdxl_models/image_encoder/model.safetensors": 130,
            small.weights: 20,
            small.weights.replace(".safetensors", ".bin"): 20,
            large.weights: 40,
        }
    )
    folder = pull(plan_pull(small, tmp_path, shelf), shelf)
    assert small.installed(tmp_path) and not large.installed(tmp_path)
    assert sorted(shelf.fetched) == sorted(
        [
            "README.md",
            "models/image_encoder/config.json",
            "models/image_encoder/model.safetensors",
            small.weights,
        ]
    )
    shelf.fetched.clear()
    assert pull(plan_pull(large, tmp_path, shelf), shelf) == folder
    assert shelf.fetched == [large.weights]
    assert small.installed(tmp_path) and large.installed(tmp_path)
    with pytest.raises(Failure, match="has no file"):
        plan_pull(small.model_copy(update={"weights": "models/none.safetensors"}), tmp_path, shelf)


@pytest.fixture
def real(tmp_path: Path, installation: Installation, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name a base of the hub in the operator's catalog; returns where models come to lie."""
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(
        catalog.read_text() + "acme: {family: sdxl, repo_id: acme/base, licence: acme-1, native_size: 64,"
        " max_pixels: 65536, memory_gb: 1, embedded: tiny-sdxl, token: ohwx}\n"
    )
    monkeypatch.setenv("HF_ENDPOINT", "")
    return installation.settings.bases_folder


def test_a_pull_brings_what_a_tune_needs_to_its_end(hub: HuggingFaceHub, tunes: Tunes, real: Path) -> None:
    said = tunes("bases", "pull", "acme", "--yes", "--endpoint", hub.endpoint)
    assert said.code == 0, said.err
    assert {place.name for place in real.iterdir()} == {
        "acme--base",
        "facebook--dinov2-base",
        "openai--clip-vit-large-patch14",
        "Salesforce--blip-image-captioning-base",
    }
    assert {file.name for file in (real / "facebook--dinov2-base").iterdir()} == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "vocab.txt", "README.md"),
        "tunes-base.json",
    }
    assert "without it its report card is not scored" in " ".join(said.out.split())
    again = tunes("bases", "pull", "acme", "--yes", "--endpoint", hub.endpoint)
    assert "Tunes on it also use" not in again.out and "is installed at" in again.out


def test_a_base_alone_and_then_a_scorer_by_its_name(hub: HuggingFaceHub, tunes: Tunes, real: Path) -> None:
    assert tunes("bases", "pull", "acme", "--yes", "--alone", "--endpoint", hub.endpoint).code == 0
    assert [place.name for place in real.iterdir()] == ["acme--base"]
    assert tunes("bases", "pull", "dinov2-base", "--yes", "--endpoint", hub.endpoint).code == 0
    assert (real / "facebook--dinov2-base" / "model.safetensors").is_file()


def test_what_is_missing_is_said_by_doctor_and_submission(
    tunes: Tunes, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNES_PROFILE", "production")
    get_settings.cache_clear()
    found = {one.says: one.remedy for one in companions_found(Settings(profile="production", home=tmp_path))}
    (says,) = [one for one in found if one.startswith("dinov2-base")]
    assert "its report card is not scored" in says and "tunes bases pull dinov2-base" in found[says]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for one in range(5):
        Image.new("RGB", (80, 80), (one * 50, 0, 0)).save(pictures / f"{one}.png")
    said = tunes("train", str(pictures), "--name", "woman", "--base", "tiny-sdxl", "--no-wait", "--json")
    assert said.code == 0, said.err
    warnings = " ".join(json.loads(said.out)["warnings"])
    assert "dinov2-base is not installed" in warnings and "blip-base is not installed" in warnings


def test_settings_choose_the_captioner(real: Path) -> None:
    catalog = load_catalog("production")
    chosen = {
        word: captioner_of(Settings(profile="production", captioner=word), catalog)
        for word in ("profile", "none", "tiny", "blip-base")
    }
    assert [entry and entry.base_id for entry in chosen.values()] == ["blip-base", None, None, "blip-base"]
    assert captioner_of(Settings(), catalog) is None and missing(Settings(), load_catalog()) == []
    with pytest.raises(Failure, match="is no captioner"):
        companions(Settings(captioner="sdxl1"), catalog)
