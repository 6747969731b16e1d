"""A base may be one checkpoint file as people download them; it is then the same base as its diffusers folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support.families import entry_of, fresh_pipeline, make_base
from tests.support.single_files import write_flux2, write_sd15
from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.families.base import load_family


def written(name: str, base, path: Path) -> Path:
    if name == "sd15":
        return write_sd15(base.pipeline(), path)
    if name == "flux":
        # diffusers splits the original's fused layers by the width of FLUX.1, so this file has diffusers' own names.
        save_file({key: value.contiguous() for key, value in base.denoiser.state_dict().items()}, path)
        return path
    return write_flux2(base.denoiser, path)


@pytest.mark.parametrize("name", ["sd15", "flux", "flux2-klein"])
def test_a_single_file_is_the_same_base(tmp_path, name):
    folder = tmp_path / name
    base = make_base(name, folder)
    path = written(name, base, tmp_path / f"{name}.safetensors")
    if name != "sd15":
        # Of the folder only what the file lacks may be needed.
        for weights in (folder / "transformer").glob("*.safetensors"):
            weights.unlink()
    entry = entry_of(name, path).model_copy(update={"components": str(folder)})
    assert entry.location(tmp_path) == path and entry.installed(tmp_path)
    single = load_family(entry, path, dtype="float32")
    assert single.fingerprint() == base.fingerprint()
    noise = torch.randn(1, *base.latent_shape(64, 64), generator=torch.Generator().manual_seed(1))
    pictures = [b.decode(b.sample(b.encode_text(["a mug"]), noise, 64, 64, 2, 3.0)) for b in (base, single)]
    torch.testing.assert_close(*pictures, rtol=0, atol=1e-5)
    assert type(fresh_pipeline(single)) is type(base.pipeline())


def test_a_flux_file_without_the_rest_is_refused(tmp_path):
    path = tmp_path / "flux.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(Failure) as raised:
        load_family(entry_of("flux", path), path)
    assert raised.value.code == FailureCode.BASE_NOT_INSTALLED and "components" in raised.value.remedy


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux", "flux2"])
def test_what_is_not_there_or_is_something_else_is_named(tmp_path, family):
    entry = entry_of("sd15", tmp_path).model_copy(update={"family": family})
    with pytest.raises(Failure) as raised:
        load_family(entry, tmp_path / "nothing")
    assert raised.value.code == FailureCode.BASE_NOT_INSTALLED
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a checkpoint")
    with pytest.raises(Failure) as raised:
        load_family(entry.model_copy(update={"components": str(tmp_path)}), broken)
    assert raised.value.code == FailureCode.BASE_NOT_INSTALLED


def test_flux2_dev_loads_where_its_processor_cannot(tmp_path):
    """The real repository names a processor that needs torchvision; prompts need its tokenizer alone."""
    folder = tmp_path / "flux2"
    base = make_base("flux2-dev", folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "PixtralProcessor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    again = load_family(entry_of("flux2-dev", folder), folder, dtype="float32")
    texts = ["a photo of ohwx woman", ""]
    assert torch.equal(again.encode_text(texts)["hidden"], base.encode_text(texts)["hidden"])
