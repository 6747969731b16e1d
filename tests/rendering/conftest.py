"""A loaded random base and random LoRAs of it."""

from __future__ import annotations

import pytest
from safetensors.torch import save

from tunes_dagster.core.store import Store
from tunes_dagster.families.catalog import BaseModelEntry


def entry(folder, repo_id=None) -> BaseModelEntry:
    return BaseModelEntry(
        base_id="random",
        family="sdxl",
        repo_id=repo_id or str(folder),
        licence="none",
        native_size=64,
        max_pixels=128 * 128,
        memory_gb=1,
        embedded="random",
        token="ohwx",
    )


@pytest.fixture(scope="session")
def base(base_folder):
    from tunes_dagster.families.base import load_family

    return load_family(entry(base_folder), base_folder)


def random_lora(base, seed, rank=4, targets="all", strength=0.4):
    """Return a LoRA in peft's format that changes pictures visibly."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    modules = dict(base.denoiser.named_modules())
    state = {}
    for name in base.adapter_targets(targets):
        weight = modules[name].weight
        a = torch.randn(rank, *weight.shape[1:], generator=generator) / weight[0].numel() ** 0.5
        b = torch.randn(weight.shape[0], rank, *(1,) * (weight.ndim - 2), generator=generator)
        state[f"unet.{name}.lora_A.weight"] = a
        state[f"unet.{name}.lora_B.weight"] = b * strength
    return state


@pytest.fixture(scope="session")
def loras(base):
    return {
        "fern": random_lora(base, 1),
        "duo": random_lora(base, 2, rank=8),
        "comet": random_lora(base, 3, targets="attention", strength=1.0),
    }


@pytest.fixture
def store(tmp_path, loras):
    store = Store(tmp_path / "store")
    for name, state in loras.items():
        store.write_bytes(f"tunes/{name}.safetensors", save(state))
    return store
