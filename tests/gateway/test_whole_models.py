"""Full fine-tunes over HTTP: what Astria's missing model_type means, and what is downloaded."""

from __future__ import annotations

import io
import zipfile
from urllib.parse import urlsplit

import pytest

from tests.gateway.conftest import PUBLIC, House
from tests.gateway.test_astria import TUNE, create


@pytest.fixture(autouse=True)
def _public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNES_GATEWAY_PUBLIC_URL", PUBLIC)


def finish(house: House, number: int) -> None:
    """Play the pipeline to a ready full tune."""
    tune = house.tune(number)
    folder = f"tunes/{tune.id}/lora/1/pipeline"
    house.store.write_text(f"{folder}/model_index.json", "{}")
    weights = house.store.write_bytes(
        f"{folder}/unet/diffusion_pytorch_model.safetensors", bytes(range(250)) * 9000
    )
    for kind in ("prepare", "train", "finish"):
        work = house.registry.work.claim(kind, tune.id, "run")
        result = (
            {"weights_key": weights, "kohya_key": "", "pipeline_key": folder} if kind == "train" else None
        )
        house.registry.work.finish(work.id, "run", result=result)


def test_no_model_type_means_a_checkpoint_where_the_base_allows_it(house: House) -> None:
    wanted = {
        ("sd15", None): ("checkpoint", None),
        ("sd15", "lora"): ("lora", None),
        ("flux1", None): ("lora", "trained as lora"),
        ("flux1", "checkpoint"): ("checkpoint", None),
        ("sdxl1", None): ("pti", "trained as pti"),
        ("fast", None): ("lora", "trained as lora"),
    }
    for (branch, asked), (kind, said) in wanted.items():
        shown = create(
            house, branch=branch, title=f"{branch} {asked}", **({"model_type": asked} if asked else {})
        )
        assert (house.tune(shown["id"]).kind, shown["args"]) == (kind, said), (branch, asked)
        assert shown["model_type"] == asked


def test_a_whole_model_is_downloaded_as_one_zip_and_continued_by_its_own_kind(house: House) -> None:
    tune = create(house, branch="sd15")
    finish(house, tune["id"])
    shown = house.client.get(f"/tunes/{tune['id']}", headers=house.auth()).json()
    native = f"/native/v1/tunes/{tune['id']}/weights"
    for path in (urlsplit(shown["ckpt_url"]).path, f"{native}/diffusers"):
        answer = house.client.get(path, headers=house.auth())
        assert answer.status_code == 200 and answer.headers["content-type"] == "application/zip"
        assert "pipeline.zip" in answer.headers["content-disposition"]
        assert int(answer.headers["content-length"]) == len(answer.content)
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.testzip() is None
            weights = archive.read("pipeline/unet/diffusion_pytorch_model.safetensors")
            assert weights == bytes(range(250)) * 9000 and len(archive.namelist()) == 2
    assert house.client.get(f"{native}/kohya", headers=house.auth()).status_code == 404

    more = create(house, branch="", base_tune_id=tune["id"], title="more")
    row = house.tune(more["id"])
    assert row.kind == "checkpoint" and row.recipe["continues"]["weights_key"].endswith("model.safetensors")
    body = {
        "tune": {**TUNE, "branch": "", "base_tune_id": tune["id"], "model_type": "lora", "title": "a LoRA"}
    }
    refused = house.client.post("/tunes", json=body, headers=house.auth())
    assert refused.status_code == 422 and "'lora'" in refused.text and "'checkpoint'" in refused.text
