"""Merged copies give what stacked layers give, for runs of rows of any length."""

from __future__ import annotations

import pytest
import torch

from tests.rendering.conftest import random_lora
from tunes_dagster.rendering.loras import LoraShelf, LoraUse
from tunes_dagster.rendering.merged import bytes_of, merged_into
from tunes_dagster.training.adapters import attached


@pytest.mark.parametrize("rows", [[0, 0, 1, 1], [0, 0, 0, 1], [-1, 0, 0, 2], [2, 2], [-1, -1], [1, 0, 1, -1]])
def test_merged_copies_equal_stacked_layers(base, rows):
    states = [random_lora(base, 1), random_lora(base, 2, rank=8), random_lora(base, 3, targets="attention")]
    scales = [1.0, 0.6, -0.5]
    draw = torch.Generator().manual_seed(0)
    noisy = torch.randn(len(rows), *base.latent_shape(64, 64), generator=draw)
    text = base.with_size(base.encode_text(["a dog"] * len(rows)), 64, 64)
    moments = torch.full((len(rows),), 500)
    said = []
    with torch.inference_mode():
        for way in (attached, merged_into):
            with way(base.denoiser, states, scales) as bank:
                bank.assign(rows)
                said.append(base.predict(noisy, moments, text))
        plain = base.predict(noisy, moments, text)
    assert torch.allclose(said[0], said[1], atol=2e-4), (said[0] - said[1]).abs().max()
    assert torch.allclose(said[1], plain) == (max(rows) < 0)
    assert not any(type(module).__name__ == "MergedLayer" for module in base.denoiser.modules())
    assert bytes_of(base.denoiser, states) > bytes_of(base.denoiser, states[:1]) > 0


def test_what_cannot_be_merged_is_stacked(base, store, loras):
    from safetensors.torch import save

    modules = dict(base.denoiser.named_modules())
    dora = dict(loras["comet"])
    for key in loras["comet"]:
        if key.endswith("lora_A.weight"):
            name = key.removeprefix("unet.").removesuffix(".lora_A.weight")
            dora[f"unet.{name}.lora_magnitude_vector"] = modules[name].weight.norm(dim=1)
    store.write_bytes("tunes/dora.safetensors", save(dora))
    for name, kind in (("fern", "MergedBank"), ("dora", "AdapterBank")):
        use = (LoraUse(f"tunes/{name}.safetensors"),)
        with LoraShelf(store, [use], base.denoiser).attached(base.denoiser, [use]) as bank:
            assert type(bank).__name__ == kind
