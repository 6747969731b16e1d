"""Exported files render in stock pipelines what our layers render, and say what they are."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save

from tunes_dagster.core.failures import Failure, FailureCode
from tunes_dagster.training.layouts import Files
from tunes_dagster.training.loop import train
from tunes_dagster.training.verify import verify

PROMPT = "a photo of ohwx woman on the beach"


@pytest.fixture
def tune(base, store, make_job):
    job = make_job(steps=6, rank=4, alpha=8.0)
    job.title = "Anna"
    return train([job], base, store)[job.tune_id]


@pytest.mark.parametrize("targets", ["attention", "attention+mlp", "all"])
def test_both_layouts_render_the_same_picture_in_a_fresh_pipeline(base, store, make_job, targets):
    result = train([make_job(steps=6, alpha=8.0, targets=targets)], base, store)["tune_one"]
    seen = verify(Files(result.weights_key, result.kohya_key), PROMPT, base, store)
    assert seen.passed and seen.layers == len(base.adapter_targets(targets))
    assert max(seen.diffusers_difference, seen.kohya_difference) < 1e-3 < seen.base_difference * 3


def test_silently_lost_layers_are_noticed(base, store, tune):
    """The mixed key styles of half-converted files, which stock loaders accept with a warning."""
    state = load(store.read_bytes(tune.weights_key))
    mixed = {
        k.replace("lora_A", "lora.down").replace("lora_B", "lora.up") if ".attn" in k else k: v
        for k, v in state.items()
    }
    store.write_bytes("mixed.safetensors", save(mixed))
    seen = verify(Files(tune.weights_key, "mixed.safetensors"), PROMPT, base, store)
    assert not seen.passed and seen.kohya_difference > seen.tolerance
    seen = verify(Files(tune.weights_key, tune.kohya_key), PROMPT, base, store)
    assert seen.passed


def test_what_is_no_number_or_no_file_is_noticed(base, store, tune):
    state = load(store.read_bytes(tune.weights_key))
    first = next(iter(state))
    store.write_bytes("nan.safetensors", save({**state, first: state[first] * float("nan")}))
    seen = verify(Files("nan.safetensors", "nan.safetensors"), PROMPT, base, store)
    assert not seen.finite and not seen.passed
    store.write_bytes("none.safetensors", b"nothing")
    with pytest.raises(Failure) as raised:
        verify(Files("none.safetensors", tune.kohya_key), PROMPT, base, store)
    assert raised.value.code == FailureCode.WEIGHTS_UNUSABLE


def test_the_header_says_what_it_is(base, store, tune):
    with store.local(tune.kohya_key) as path, safe_open(str(path), framework="pt") as file:
        header, keys = file.metadata(), list(file.keys())
    recipe = json.loads(header["tunes_dagster.recipe"])
    assert header["tunes_dagster.recipe_hash"] == tune.recipe_hash
    assert recipe["training"]["rank"] == 4 and recipe["training"]["alpha"] == 8.0
    assert len(recipe["pictures"]) == 3 and recipe["base"] == "tiny-sdxl"
    assert recipe["base_fingerprint"] == base.fingerprint()
    assert header["tunes_dagster.token"] == "ohwx" and header["modelspec.trigger_phrase"] == "ohwx woman"
    assert header["modelspec.prediction_type"] == "epsilon" and header["ss_network_dim"] == "4"
    assert all(key.startswith("lora_unet_") for key in keys)
    assert {key.rpartition(".")[2] for key in keys} == {"alpha", "weight"}
    card = store.read_text(tune.card_key)
    assert "# Anna" in card and tune.recipe_hash in card and "instance_prompt: ohwx woman" in card


def test_the_export_scale_multiplies_what_is_written_not_what_is_trained(base, make_job, store) -> None:
    files = []
    for scale in (None, 0.5):
        result = train([make_job(steps=3, export_scale=scale)], base, store)["tune_one"]
        files.append(load(store.read_bytes(result.weights_key)))
    full, half = files
    assert set(full) == set(half)
    for name, value in full.items():
        wanted = value * (0.5 if ".lora_B." in name else 1.0)
        assert torch.allclose(half[name], wanted, rtol=1e-4, atol=1e-9), name
