"""Headers of exported files: identifiers that other programs know, and nothing of who made the tune or where."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import pytest
from safetensors import safe_open

from tests.support.families import CASES, make_base, random_lora
from tunes_dagster.families.flux2 import _model_of
from tunes_dagster.training import export
from tunes_dagster.training.jobs import History

GENERATIVE_MODELS = "https://github.com/Stability-AI/generative-models"
FLUX = "https://github.com/black-forest-labs/flux"
# As sd-scripts (library/sai_model_spec.py, 10bfcb9) and musubi-tuner write them and SwarmUI's model classes know them:
# architecture, ss_base_model_version, ss_network_module, and the implementation of the file in kohya's names.
WRITTEN = {
    "sd15": ("stable-diffusion-v1/lora", "sd_v1", "networks.lora", "diffusers"),
    "sdxl": ("stable-diffusion-xl-v1-base/lora", "sdxl_base_v1-0", "networks.lora", GENERATIVE_MODELS),
    "flux-dev": ("flux-1-dev/lora", "flux1", "networks.lora_flux", FLUX),
    "flux-schnell": ("flux-1-schnell/lora", "flux1", "networks.lora_flux", FLUX),
    "flux2-dev": ("Flux.2-dev/lora", "flux_2_dev", "networks.lora_flux_2", f"{FLUX}2"),
    "flux2-klein": ("Flux.2-klein-4b/lora", "flux_2_klein_4b", "networks.lora_flux_2", f"{FLUX}2"),
}


@pytest.fixture(params=WRITTEN)
def written(request, tmp_path, store, make_job):
    """Return a case's name, its base, and the keys of a tune's two files."""
    base = make_base(request.param, tmp_path / "a-place" / "model")
    job = make_job(rank=4)
    job.title, job.date = "Anna: at sea", "2026-05-04"
    adapter = random_lora(base, 1, targets="attention")
    result = export.write(job, base, store, adapter, History(steps=1, curve=[], checkpoints=[]))
    return request.param, base, result


def read(store, key):
    """Return the header of a file as the library reads it, and the bytes of the file."""
    with store.local(key) as path, safe_open(str(path), framework="pt") as file:
        return file.metadata(), path.read_bytes()


def test_other_programs_know_what_the_file_is_for(written, store) -> None:
    name, _, result = written
    architecture, version, module, implementation = WRITTEN[name]
    for key, whose in ((result.weights_key, "diffusers"), (result.kohya_key, implementation)):
        header, _ = read(store, key)
        assert header["modelspec.architecture"] == architecture
        assert header["ss_base_model_version"] == version and header["ss_network_module"] == module
        assert header["modelspec.implementation"] == whose
        assert header["modelspec.license"] == "none" and header["modelspec.date"] == "2026-05-04"
        assert "woman" in header["modelspec.description"] and "ohwx woman" in header["modelspec.usage_hint"]


def test_a_tag_in_a_prompt_can_name_the_file(written, store) -> None:
    header, _ = read(store, written[2].kohya_key)
    assert header["ss_output_name"] == written[2].tune_id


def test_the_hashes_are_those_of_the_file(written, store) -> None:
    for key in (written[2].weights_key, written[2].kohya_key):
        header, data = read(store, key)
        tensors = data[8 + int.from_bytes(data[:8], "little") :]
        assert header["sshs_model_hash"] == hashlib.sha256(tensors).hexdigest()
        assert header["modelspec.hash_sha256"] == "0x" + header["sshs_model_hash"]
        assert len(header["sshs_legacy_hash"]) == 8


def test_nothing_of_this_machine_and_no_caption_goes_with_the_file(written, store, tmp_path) -> None:
    _, _, result = written
    captions = [picture["caption"] for picture in result.recipe["pictures"]]
    assert captions and all(captions)
    for key in (result.weights_key, result.kohya_key):
        header, _ = read(store, key)
        assert header["ss_sd_model_name"] == "model"
        said = json.dumps(header)
        assert str(tmp_path) not in said and "a-place" not in said
        assert not [caption for caption in captions if json.dumps(caption) in json.dumps(header)]
        assert "caption" not in json.loads(header["tunes_dagster.recipe"])["pictures"][0]
    assert "a-place" not in store.read_text(result.card_key)
    # It is not lost: it lies beside the files.
    assert export.recipe_beside(store, result.weights_key)["pictures"] == result.recipe["pictures"]


def test_captions_go_along_only_where_they_are_asked_for() -> None:
    """Those of pictures, and those that a person wrote into the request."""
    pictures = [{"key": "a", "caption": "Anna at her mother's"}]
    recipe = {"pictures": pictures, "captions": {"a.png": "Anna at her mother's"}, "dataset": {}}
    assert "Anna" not in export.written(export.shareable(recipe))
    asked = {**recipe, "dataset": {"captions_in_files": True}}
    assert export.shareable(asked) == asked


def test_the_address_of_imported_weights_stays_here() -> None:
    imported = {
        "name": "a",
        "sha256": "b",
        "url": "https://example.com/a?token=secret",
        "key": "tunes/t/uploads/a",
    }
    shared = export.shareable({"imported": imported})
    assert shared["imported"] == {"name": "a", "sha256": "b"}


@pytest.mark.parametrize(
    ("heads", "is_klein", "model"), [(48, False, "dev"), (24, True, "klein-4b"), (32, True, "klein-9b")]
)
def test_the_released_sizes_of_flux2_are_told_apart(heads: int, is_klein: bool, model: str) -> None:
    """Heads as in the released transformer configurations of FLUX.2 dev, klein 4B and klein 9B."""
    config = SimpleNamespace(num_attention_heads=heads, attention_head_dim=128)
    assert _model_of(is_klein, config) == model


def test_every_family_has_its_line() -> None:
    assert {CASES[name].family for name in WRITTEN} == {case.family for case in CASES.values()}
